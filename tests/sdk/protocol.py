"""What every Python client under test shares: a case in, what the client saw out, both lines of JSON.

A client's file hands over functions: `stream` yields text, all the others return it.
The client is made anew for each case, as a program would make it, with no setting but address and key.
"""

import json
import math
import os
import struct
import sys
import time
import types

QUESTION = "Why is the sky blue?"
TOOL = "get_weather"
TOOL_QUESTION = "What is the weather in Paris?"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {
    "type": "function",
    "function": {"name": TOOL, "description": "The weather of a city.", "parameters": PARAMETERS},
}
SCHEMA_QUESTION = "Name a city as JSON."
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "place", "strict": True, "schema": PARAMETERS},
}


BEGINNING = "The capital of France is"
WORDS = ["a cat", "a kitten", "tax law"]


def messages(question=QUESTION):
    return [{"role": "user", "content": question}]


def vectors(found):
    """What there is to say of the embeddings of `WORDS`."""
    near, far = (cosine(found[0], other) for other in found[1:])
    return f"{len(found)} of {len(found[0])}: cat and kitten {near:.2f}, cat and tax {far:.2f}"


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other)) / math.hypot(*one) / math.hypot(*other)


def sound(data):
    """What there is to say of a file of sound, 16 bit and mono."""
    form, rate = data[:4].decode(), struct.unpack("<I", data[24:28])[0]
    return f"{form}, {(len(data) - 44) / 2 / rate:.1f} s of speech"


def serve(**calls):
    """Answers one case a line until there are no more."""
    # What a client prints is no answer of ours.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**what):
        print(json.dumps(what), file=answers, flush=True)

    say(ready=True)
    for line in sys.stdin:
        case = types.SimpleNamespace(**json.loads(line))
        call = calls.get("stream" if case.call == "leave" else case.call)
        if call is None:
            say(done=True, absent=True)
            continue
        text, error, began = "", None, time.monotonic()
        try:
            if case.call in ("stream", "leave"):
                pieces = call(case)
                for piece in pieces:
                    if piece and not text:
                        say(first=True)
                    text += piece or ""
                    if text and case.call == "leave":
                        pieces.close()
                        break
            else:
                text = call(case)
        except Exception as raised:
            kind = type(raised)
            error = {"class": f"{kind.__module__.split('.')[0]}.{kind.__name__}", "message": str(raised)}
        say(done=True, text=text or "", error=error, seconds=time.monotonic() - began)
