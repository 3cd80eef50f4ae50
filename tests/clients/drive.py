"""Drives unmodified clients through the table of behaviours against a real daemon, and writes the table.

Arguments: SLOTD LLAMA_SERVER MODEL TOOLS DOCUMENT [CLIENT…]. TOOLS is the folder that
scripts/clients installs into. Exits 1 when a client saw something that it must not see; with names of
clients only those are driven anew.
"""

import json
import pathlib
import queue
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
# Longer than any client waits for anything here.
PATIENCE = 150


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
        case |= {"model": self.kind.slots.get(model, model), "max_tokens": max_tokens}
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
    for name, _, act, wanted in behaviours.TABLE:
        if not kind.does(name):
            yield name, {"absent": True}
            continue
        try:
            seen = act(Stage(daemon, relay, client))
        except (TimeoutError, RuntimeError, queue.Empty) as fault:
            # Whatever it waits for, it is not kept for the next behaviour.
            seen = {"error": {"class": "driver", "message": str(fault)}, "answers": relay.answers}
            client.process.kill()
            client = Client(kind, tools, daemon, relay)
        if not seen.get("absent"):
            is_cut = name == "survived" and not kind.resumed
            seen["wrong"] = behaviours.judge(behaviours.BROKEN if is_cut else wanted, seen)
        yield name, seen
    client.close()


def main(slotd, llama_server, model, tools, target, *names):
    tools = pathlib.Path(tools)
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    if not kinds:
        sys.exit("there are: " + ", ".join(kind.name for kind in KINDS))
    # What was seen earlier stands beside what is seen now.
    kept = tools / "results.json"
    daemon = Daemon(slotd, llama_server, model)
    try:
        for slot in ("chat", "worker", "tools"):
            daemon.order(slot, "load", "ready")
        relay = Relay(daemon.address)
        for kind in kinds:
            print(f"== {kind.name}", flush=True)
            began, seen = time.monotonic(), {}
            for name, what in drive(kind, tools, daemon, relay):
                seen[name] = what
                print(f"{name:16}", document.cell(what), flush=True)
            seconds = time.monotonic() - began
            results = json.loads(kept.read_text()) if kept.exists() else {}
            results[kind.name] = {"seen": seen, "version": kind.version(tools), "seconds": seconds}
            kept.write_text(json.dumps(results))
    finally:
        daemon.close()
    shown = [kind for kind in KINDS if kind.name in results]
    pathlib.Path(target).write_text(document.write(shown, results))
    wrong = [
        f"{kind.name}: {name}: {what['wrong']}"
        for kind in kinds
        for name, what in results[kind.name]["seen"].items()
        if what.get("wrong") and name not in kind.known
    ]
    print("\n".join(wrong) or "as it should be")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
