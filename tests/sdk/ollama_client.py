"""The Ollama client for Python, unmodified: only the host is ours.

Arguments: HOST MODEL. Exits 0 when everything held, and says what did not.
"""

import json
import sys

import ollama


def expect(condition, what):
    if not condition:
        sys.exit(f"ollama client: {what}")


def main(host, model):
    client = ollama.Client(host=host, timeout=120)
    messages = [{"role": "user", "content": "Say hello."}]
    options = {"num_predict": 12, "temperature": 0, "seed": 1, "num_ctx": 1024}

    listed = [entry.model for entry in client.list().models]
    expect(f"{model}:latest" in listed, f"{model} is not among {listed}")
    shown = client.show(model)
    expect("completion" in shown.capabilities, f"odd capabilities: {shown.capabilities}")

    loaded = client.generate(model=model)
    expect(loaded.done and loaded.done_reason == "load", f"not loaded: {loaded}")
    expect(client.ps().models[0].model == f"{model}:latest", f"not running: {client.ps()}")

    answer = client.chat(model=f"{model}:latest", messages=messages, options=options)
    expect(answer.message.content, "the chat answer is empty")
    expect(answer.done_reason in ("stop", "length"), f"odd reason: {answer.done_reason}")
    expect(answer.eval_count > 0 and answer.prompt_eval_count > 0, f"no counts: {answer}")
    expect(answer.total_duration >= answer.eval_duration > 0, f"odd times: {answer}")

    pieces = list(client.chat(model=model, messages=messages, options=options, stream=True))
    text = "".join(piece.message.content or "" for piece in pieces)
    expect(len(pieces) > 2 and pieces[-1].done, f"odd stream: {pieces}")
    expect(pieces[-1].eval_count > 0, f"the stream has no counts: {pieces[-1]}")
    expect(
        text == answer.message.content,
        f"streamed {text!r}, at once {answer.message.content!r}",
    )

    raw = client.generate(
        model=model, prompt="The capital of France is", raw=True, options={"num_predict": 8, "temperature": 0}
    )
    expect("Paris" in raw.response, f"raw: {raw.response!r}")
    told = "".join(
        piece.response for piece in client.generate(model=model, prompt="Say hello.", options=options, stream=True)
    )
    expect(told == text, f"generated {told!r}, chatted {text!r}")

    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
    }
    formed = client.chat(
        model=model, messages=messages, format=schema, options={"num_predict": 40, "temperature": 0}
    )
    expect(json.loads(formed.message.content)["colour"] in ("red", "blue"), f"format: {formed}")

    vectors = client.embed(model=model, input=["a cat", "a kitten", "tax law"])
    expect(len(vectors.embeddings) == 3, "three inputs, another number of embeddings")
    one = client.embeddings(model=model, prompt="a cat")
    expect(
        max(abs(a - b) for a, b in zip(one.embedding, vectors.embeddings[0])) < 1e-2,
        "the same text has two embeddings",
    )

    for call in (
        lambda: client.chat(model="no-such-model", messages=messages),
        lambda: next(client.chat(model="no-such-model", messages=messages, stream=True)),
    ):
        try:
            call()
            sys.exit("ollama client: an unknown model was answered")
        except ollama.ResponseError as error:
            expect(error.status_code == 404, f"status {error.status_code}")
            expect(model in error.error, f"the message does not name {model}: {error.error}")
    try:
        client.pull("llama3")
        sys.exit("ollama client: a pull was answered")
    except ollama.ResponseError as error:
        expect("profiles" in error.error, f"odd refusal: {error.error}")

    let_go = client.generate(model=model, keep_alive=0)
    expect(let_go.done_reason == "unload", f"not let go of: {let_go}")
    print("ollama client: ok")


main(sys.argv[1], sys.argv[2])
