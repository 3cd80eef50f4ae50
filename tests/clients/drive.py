"""Drives unmodified clients through the table of behaviours against a real daemon, and writes the table.

Arguments: SLOTD LLAMA_SERVER MODEL TOOLS DOCUMENT [CLIENT…]. TOOLS is the folder that
scripts/clients installs into. Exits 1, with a list, when a client saw something that it must not see or a
process was left behind; with names of clients only those are driven anew.
"""

import ctypes
import http.client
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

import behaviours
import document
from daemon import Daemon
from kinds import KINDS
from relay import Relay

SDK = pathlib.Path(__file__).resolve().parent.parent / "sdk"
PR_SET_CHILD_SUBREAPER = 36
# Longer than any client waits for anything here.
PATIENCE = 280


class Stage:
    """What a behaviour works with."""

    def __init__(self, daemon, relay, client):
        self.daemon, self.relay, self.client = daemon, relay, client


class Client:
    """One client's process, fed with cases."""

    def __init__(self, kind, tools, daemon, relay):
        self.kind, self.daemon, self.relay = kind, daemon, relay
        arguments = [str(part) for part in kind.command(tools, SDK)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=kind.environment(daemon.dir), cwd=daemon.dir,
        )
        self.lines, self.complaints = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        self._next()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def _listen(self):
        for line in self.process.stderr:
            self.complaints = [*self.complaints[-30:], line]

    def _next(self):
        line = self.lines.get(timeout=PATIENCE)
        if line is None:
            raise RuntimeError(f"{self.kind.name} ended: {''.join(self.complaints)}")
        return line

    def ask(self, call, model, max_tokens=behaviours.SHORT, key=None):
        self.begin(call, model, max_tokens, key)
        return self.end()

    def begin(self, call, model, max_tokens=behaviours.SHORT, key=None):
        self.relay.forget()
        case = {"call": call, "url": self.relay.url, "key": key or self.daemon.key}
        case |= {"model": self.kind.slot(model), "max_tokens": max_tokens}
        case |= {"sound": str(self.daemon.sound)}
        print(json.dumps(case), file=self.process.stdin, flush=True)

    def saw_first(self):
        """Waits for the first piece of a stream; tells whether there was one."""
        line = self._next()
        if "first" in line:
            return True
        self.lines.put(line)
        return False

    def end(self):
        while "done" not in (seen := self._next()):
            pass
        return seen | {"answers": list(self.relay.answers)}

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def drive(kind, tools, daemon, relay):
    """Puts one client through the table; yields the name of each behaviour and what was seen."""
    client = Client(kind, tools, daemon, relay)
    try:
        for name, _, act, wanted in behaviours.TABLE:
            if not kind.does(name):
                yield name, {"absent": True}
                continue
            try:
                seen = act(Stage(daemon, relay, client))
            except (TimeoutError, RuntimeError, OSError, queue.Empty) as fault:
                # Whatever it waits for, it is not kept for the next behaviour.
                message = str(fault) or type(fault).__name__
                seen = {"error": {"class": "driver", "message": message}, "answers": list(relay.answers)}
                seen["failed"] = True
                client.close()
                client = Client(kind, tools, daemon, relay)
            if not seen.get("absent"):
                is_cut = name == "survived" and not kind.resumed
                seen["wrong"] = behaviours.judge(behaviours.BROKEN if is_cut else wanted, seen)
                if seen.get("failed"):
                    seen["wrong"] = "did not come to its end"
            yield name, seen
    finally:
        client.close()


def speak(daemon):
    """Has the voice say the question, for those who have to hear it."""
    connection = http.client.HTTPConnection(*daemon.address, timeout=PATIENCE)
    body = json.dumps({"model": "voice", "voice": "alloy", "input": "Why is the sky blue?"})
    headers = {"authorization": f"Bearer {daemon.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/audio/speech", body, headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"no speech: {answer.read().decode()}")
    daemon.sound = daemon.dir / "question.wav"
    daemon.sound.write_bytes(answer.read())


def left_behind():
    """Ends and names the processes that the run has left: their parents gone, they are this one's."""
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    left = []
    for pid in map(int, children):
        name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            left.append(f"process {pid} ({name}) was left behind")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return left


def main(slotd, llama_server, model, tools, target, *names):
    # Whoever loses its parent becomes a child of this process; what ends it ends the daemon too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, lambda *_: sys.exit(1))
    tools = pathlib.Path(tools)
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    if not kinds:
        sys.exit("there are: " + ", ".join(kind.name for kind in KINDS))
    # With names, what was seen earlier stands beside what is seen now.
    kept = tools / "results.json"
    if not names:
        kept.unlink(missing_ok=True)
    results = json.loads(kept.read_text()) if kept.exists() else {}
    daemon = Daemon(slotd, llama_server, model, tools)
    try:
        for slot in ("chat", "tools", "worker", "words", "ears", "voice", "mlx", "vectors", "rerank"):
            daemon.order(slot, "load", "ready")
        speak(daemon)
        relays = {False: Relay(daemon.address), True: Relay(daemon.ollama)}
        for kind in kinds:
            relay = relays[kind.ollama]
            print(f"== {kind.name}", flush=True)
            began, seen = time.monotonic(), {}
            for name, what in drive(kind, tools, daemon, relay):
                seen[name] = what
                print(f"{name:16}", document.cell(what), flush=True)
            seconds = time.monotonic() - began
            results[kind.name] = {"seen": seen, "version": kind.version(tools), "seconds": seconds}
            kept.write_text(json.dumps(results))
    finally:
        daemon.close()
    shown = [kind for kind in KINDS if kind.name in results]
    pathlib.Path(target).write_text(document.write(shown, results, tools))
    wrong = [
        f"{kind.name}: {name}: {what['wrong']}"
        for kind in kinds
        for name, what in results[kind.name]["seen"].items()
        if what.get("wrong") and name not in kind.known
    ]
    wrong += left_behind()
    told = sum(1 for kind in kinds for what in results[kind.name]["seen"].values() if not what.get("absent"))
    print(f"\n{len(kinds)} clients, {told} behaviours:", "\n".join(wrong) or "all as they should be")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
