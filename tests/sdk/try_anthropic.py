"""Anthropic's client for Python, through `/v1/messages`."""

import anthropic
from protocol import PARAMETERS, TOOL, TOOL_QUESTION, messages, serve


def settings(case, question=None, **more):
    client = anthropic.Anthropic(base_url=case.url, api_key=case.key)
    asked = messages(question) if question else messages()
    return client, {"model": case.model, "messages": asked, "max_tokens": case.max_tokens, **more}


def plain(case):
    client, asked = settings(case)
    return client.messages.create(**asked).content[0].text


def stream(case):
    client, asked = settings(case)
    with client.messages.stream(**asked) as answer:
        yield from answer.text_stream


def tools(case):
    tool = {"name": TOOL, "description": "The weather of a city.", "input_schema": PARAMETERS}
    client, asked = settings(case, TOOL_QUESTION, tools=[tool], tool_choice={"type": "any"})
    answer = client.messages.create(**asked)
    call = next(block for block in answer.content if block.type == "tool_use")
    return f"{call.name} {call.input}"


serve(plain=plain, stream=stream, tools=tools)
