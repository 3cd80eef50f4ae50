"""LiteLLM as a library."""

import litellm
from protocol import (
    BEGINNING, FUNCTION, QUESTION, RESPONSE_FORMAT, SCHEMA_QUESTION, TOOL_QUESTION, WORDS,
    messages, serve, sound, vectors,
)


def where(case):
    return {"model": f"openai/{case.model}", "api_base": f"{case.url}/v1", "api_key": case.key}


def create(case, question=None, **more):
    asked = messages(question) if question else messages()
    return litellm.completion(**where(case), messages=asked, max_tokens=case.max_tokens, **more)


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


def complete(case):
    of_text = where(case) | {"model": f"text-completion-openai/{case.model}"}
    answer = litellm.text_completion(**of_text, prompt=BEGINNING, max_tokens=case.max_tokens)
    return answer.choices[0].text


def embed(case):
    return vectors([one["embedding"] for one in litellm.embedding(**where(case), input=WORDS).data])


def transcribe(case):
    with open(case.sound, "rb") as file:
        return litellm.transcription(**where(case), file=file).text


def speak(case):
    answer = litellm.speech(**where(case), voice="alloy", input=QUESTION, response_format="wav")
    return sound(answer.read())


serve(
    plain=plain, stream=stream, tools=tools, schema=schema, complete=complete, embed=embed,
    transcribe=transcribe, speak=speak,
)
