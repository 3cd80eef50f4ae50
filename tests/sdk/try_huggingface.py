"""Hugging Face's InferenceClient."""

from huggingface_hub import InferenceClient
from protocol import (
    FUNCTION, RESPONSE_FORMAT, SCHEMA_QUESTION, TOOL_QUESTION, messages, serve,
)


def create(case, question=None, **more):
    global client  # One that nobody holds closes its streams.
    client = InferenceClient(base_url=f"{case.url}/v1", api_key=case.key)
    asked = messages(question) if question else messages()
    return client.chat_completion(asked, model=case.model, max_tokens=case.max_tokens, **more)


def plain(case):
    return create(case).choices[0].message.content


def stream(case):
    for chunk in create(case, stream=True):
        for choice in chunk.choices:
            yield choice.delta.content


def tools(case):
    answer = create(case, TOOL_QUESTION, tools=[FUNCTION], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0].function
    return f"{call.name} {call.arguments}"


def schema(case):
    answer = create(case, SCHEMA_QUESTION, response_format=RESPONSE_FORMAT)
    return answer.choices[0].message.content


serve(plain=plain, stream=stream, tools=tools, schema=schema)
