"""The machine from inside: units, slots, clients, and waiting for what is to come."""

import http.client
import json
import pathlib
import socket
import subprocess
import threading
import time

# Longer than anything takes under emulation; only a failure waits this long.
DEADLINE_S = 180
ENDPOINT = ("127.0.0.1", 7568)
CONTROL = "/run/slotd/control.sock"
ENGINE = "/usr/local/libexec/slotd/fake_engine"


class Failed(Exception):
    """A check does not hold; the text is for a person."""


class Skipped(Exception):
    """A check cannot run here; the text says why."""


def ensure(claim, text):
    if not claim:
        raise Failed(text)


def wait_until(what, look, limit_s=DEADLINE_S):
    """Returns the first true answer of `look`."""
    end = time.monotonic() + limit_s
    last = None
    while time.monotonic() < end:
        try:
            answer = look()
            if answer:
                return answer
            last = answer
        except (OSError, http.client.HTTPException, Failed) as error:
            last = error
        time.sleep(0.05)
    raise Failed(f"no {what} within {limit_s} s, last: {last!r}")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout


def is_alive(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return text.rsplit(")", 1)[1].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def journal(form=None):
    """Returns the journal of slotd and of systemd about it: as text, or as entries."""
    command = ["journalctl", "--no-pager", "-u", "slotd.service", "-u", "slotd.socket"]
    if form is None:
        return run(*command, "-o", "short-monotonic")
    return [json.loads(line) for line in run(*command, "-o", form).splitlines()]


class Unit:
    def __init__(self, name):
        self.name = name

    def show(self, key):
        return run("systemctl", "show", "--value", "-p", key, self.name).strip()

    def is_active(self):
        return self.show("ActiveState") == "active"

    def main_pid(self):
        return int(self.show("MainPID") or 0)

    def cgroup(self):
        return pathlib.Path("/sys/fs/cgroup/system.slice") / self.name


def drop_in(name, text):
    """Puts a drop-in of slotd.service, or takes it away."""
    folder = pathlib.Path("/run/systemd/system/slotd.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    run("systemctl", "daemon-reload")


def profile(name, script, keys):
    words = [ENGINE, "socket={socket}", *script.split()]
    folder = pathlib.Path("/etc/slotd/profiles")
    fresh = folder / f".{name}"
    fresh.write_text(f'engine = "command"\ncommand = {json.dumps(words)}\n{keys}\n')
    fresh.rename(folder / f"{name}.toml")


def engines_in():
    """Returns every process of engines: all of the unit but what is in the daemon's own cgroup."""
    found = []
    unit = Unit("slotd.service").cgroup()
    for file in unit.glob("*/**/cgroup.procs"):
        if not file.parent.name.startswith("supervisor"):
            found += [int(pid) for pid in file.read_text().split()]
    return [pid for pid in found if is_alive(pid)]


class OverUnix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(CONTROL)


def control(path):
    connection = OverUnix("slotd", timeout=20)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def slot(name):
    found = [one for one in control("/v1/slots") if one["slot"] == name]
    ensure(found, f"there is no slot {name}")
    return found[0]


def ask_slot(name, tokens=2, limit_s=DEADLINE_S):
    """Asks a short question on a connection of its own; returns the status and the answer."""
    connection = http.client.HTTPConnection(*ENDPOINT, timeout=limit_s)
    message = {"role": "user", "content": "Hi"}
    body = json.dumps({"model": name, "messages": [message], "max_tokens": tokens})
    try:
        head = {"content-type": "application/json", "connection": "close"}
        connection.request("POST", "/v1/chat/completions", body, head)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Clients:
    """Two clients that ask one short question after another while something happens."""

    def __init__(self, name):
        self.name = name
        self.answers = []
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(2)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        wait_until("first answers", lambda: len(self.answers) > 2)
        self.mark = len(self.answers)
        return self

    def __exit__(self, kind, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join(DEADLINE_S)
        if kind is None:
            ensure(not any(thread.is_alive() for thread in self.threads), "a client waits for ever")
            refused = self.answers.count("refused")
            ensure(refused == 0, f"{refused} of {len(self.answers)} connections were refused")
            # Who comes while nobody serves waits for the next daemon; a killed one cuts connections.
            turned_away = [one for one in self.answers if isinstance(one, int) and one != 200]
            ensure(not turned_away, f"{len(turned_away)} of {len(self.answers)} got {turned_away[:1]}")

    def ask(self):
        while not self.is_over.is_set():
            began = time.monotonic()
            try:
                self.answers.append(ask_slot(self.name)[0])
            except ConnectionRefusedError:
                self.answers.append("refused")
            except (OSError, http.client.HTTPException) as error:
                self.answers.append(type(error).__name__)
            self.longest = max(time.monotonic() - began, getattr(self, "longest", 0))

    def answers_more(self):
        """Tells whether there were three answers since this was first asked."""
        if not hasattr(self, "since"):
            self.since = self.answers.count(200)
        return self.answers.count(200) >= self.since + 3

    def told(self):
        kinds = {str(kind): self.answers.count(kind) for kind in sorted(set(self.answers), key=str)}
        counts = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        return f"none refused of {len(self.answers)} ({counts}), the longest waited {self.longest:.1f} s"
