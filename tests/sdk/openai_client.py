"""The OpenAI client for Python, unmodified: only the base URL is ours.

Arguments: BASE_URL MODEL. Exits 0 when everything held, and says what did not.
"""

import sys

import openai


def expect(condition, what):
    if not condition:
        sys.exit(f"python client: {what}")


def main(base_url, model):
    client = openai.OpenAI(base_url=base_url, api_key="unused", timeout=120)
    messages = [{"role": "user", "content": "Say hello."}]

    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=12, temperature=0, seed=1
    )
    expect(answer.choices[0].message.content, "the chat answer is empty")
    expect(answer.choices[0].finish_reason in ("stop", "length"), f"odd finish: {answer}")
    expect(answer.usage.completion_tokens > 0, f"no usage: {answer}")

    text, usage, finish = "", None, None
    with client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=12,
        temperature=0,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.usage:
                usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    expect(text, "the streamed chat answer is empty")
    expect(finish in ("stop", "length"), f"the stream has no finish reason: {finish}")
    expect(usage and usage.completion_tokens > 0, "the stream has no usage")
    expect(
        text == answer.choices[0].message.content,
        f"streamed {text!r}, at once {answer.choices[0].message.content!r}",
    )

    completion = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=8, temperature=0
    )
    expect("Paris" in completion.choices[0].text, f"completion: {completion.choices[0].text!r}")

    # The client asks for base64 by itself, and for floats when told to.
    embeddings = client.embeddings.create(model=model, input=["a cat", "a kitten", "tax law"])
    expect(len(embeddings.data) == 3, "three inputs, another number of embeddings")
    floats = client.embeddings.create(model=model, input="a cat", encoding_format="float")
    first, again = embeddings.data[0].embedding, floats.data[0].embedding
    expect(len(first) == len(again) > 100, f"{len(first)} and {len(again)} dimensions")
    expect(
        max(abs(a - b) for a, b in zip(first, again)) < 1e-2,
        "the same text has two embeddings",
    )

    ids = [entry.id for entry in client.models.list()]
    expect(model in ids, f"{model} is not among {ids}")
    expect(client.models.retrieve(model).id == model, "retrieve gave another model")

    try:
        client.chat.completions.create(model="no-such-model", messages=messages)
        sys.exit("python client: an unknown model was answered")
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found", f"code {error.code!r}")
        expect(model in error.message, f"the message does not name {model}: {error.message}")

    try:
        client.chat.completions.create(model=model, messages="not a list")
        sys.exit("python client: a bad body was answered")
    except openai.BadRequestError as error:
        expect(error.type == "invalid_request_error", f"type {error.type!r}")

    print("python client: ok")


main(sys.argv[1], sys.argv[2])
