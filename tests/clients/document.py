"""The table as people read it."""

import behaviours

HEAD = """# Clients

What unmodified clients see of slotd, written by `make clients`: each client, with no setting but its
address and key, asks a real daemon with the real llama-server, the candle worker and the small model
of the tests; engines die of `SIGKILL`. A relay between client and daemon passes the bytes on as they
are and notes the status of each answer. Each client's rows are of its own latest run.
Times are of a small machine, busy with other work.

`make clients` installs the clients by name into the cache (pip, npm; pinned in `tests/clients/pins`) and
takes about {minutes} minutes, so it is no part of `make test`.
"""


def cell(seen):
    """What a client saw, in one line."""
    if seen.get("absent"):
        return "–"
    error, answers = seen.get("error"), seen.get("answers", [])
    parts = []
    if text := " ".join((seen.get("text") or "").split()):
        parts.append(f"“{cut(text, 40)}”")
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


def write(kinds, results):
    """Returns the whole document."""
    seconds = sum(results[kind.name]["seconds"] for kind in kinds)
    text = HEAD.format(minutes=max(1, round(seconds / 60)))
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
    notes = [(kind.name, name, note) for kind in kinds for name, note in kind.known.items()]
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
_WORKER = "The worker has no grammars: what it cannot do it has to refuse, and the client has to say so."
WANTED = {
    "plain": "An answer at once.",
    "stream": "The whole answer, piece by piece.",
    "tools": "Of an engine of the tests that calls every tool, since the small model calls none: a call of the one tool offered, `tool_choice` being `required` where the client can say so.",
    "schema": "JSON of the schema asked for.",
    "worker-plain": "An answer at once.",
    "worker-stream": "The whole answer, piece by piece.",
    "worker-tools": _WORKER,
    "worker-schema": _WORKER,
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
