"""The Anthropic client for Python, unmodified: only the base URL is ours.

Arguments: BASE_URL MODEL. Exits 0 when everything held, and says what did not.
"""

import sys

import anthropic


def expect(condition, what):
    if not condition:
        sys.exit(f"anthropic client: {what}")


def main(base_url, model):
    client = anthropic.Anthropic(base_url=base_url, api_key="unused", timeout=120)
    messages = [{"role": "user", "content": "Say hello."}]
    asked = dict(model=model, messages=messages, max_tokens=8, extra_body={"temperature": 0})

    answer = client.messages.create(**asked)
    expect(answer.content[0].text, "the answer is empty")
    expect(answer.stop_reason in ("end_turn", "max_tokens"), f"odd end: {answer}")
    expect(answer.usage.output_tokens > 0, f"no usage: {answer}")

    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    expect(text == answer.content[0].text, f"streamed {text!r}, at once {answer.content[0].text!r}")
    expect(final.stop_reason == answer.stop_reason, f"the stream ended otherwise: {final}")

    counted = client.messages.count_tokens(model=model, messages=messages)
    expect(counted.input_tokens > 3, f"{counted.input_tokens} tokens were counted")

    try:
        client.messages.create(model="no-such-model", messages=messages, max_tokens=1)
        sys.exit("anthropic client: an unknown model was answered")
    except anthropic.NotFoundError as error:
        expect(error.body["error"]["type"] == "not_found_error", f"form {error.body}")
        expect(model in error.body["error"]["message"], f"it does not name {model}: {error.body}")

    print("anthropic client: ok")


main(sys.argv[1], sys.argv[2])
