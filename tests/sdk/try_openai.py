"""The OpenAI client for Python."""

import openai
from protocol import (
    BEGINNING, FUNCTION, QUESTION, RESPONSE_FORMAT, SCHEMA_QUESTION, TOOL_QUESTION, WORDS,
    messages, serve, sound, vectors,
)


def client(case):
    return openai.OpenAI(base_url=f"{case.url}/v1", api_key=case.key)


def create(case, question=None, **more):
    asked = messages(question) if question else messages()
    return client(case).chat.completions.create(
        model=case.model, messages=asked, max_tokens=case.max_tokens, temperature=0, **more
    )


def plain(case):
    return create(case).choices[0].message.content


def stream(case):
    with create(case, stream=True) as chunks:
        for chunk in chunks:
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
    answer = client(case).completions.create(
        model=case.model, prompt=BEGINNING, max_tokens=case.max_tokens, temperature=0
    )
    return answer.choices[0].text


def respond(case):
    answer = client(case).responses.create(
        model=case.model, input=QUESTION, max_output_tokens=case.max_tokens
    )
    return answer.output_text


def embed(case):
    answer = client(case).embeddings.create(model=case.model, input=WORDS)
    return vectors([one.embedding for one in answer.data])


def transcribe(case):
    with open(case.sound, "rb") as file:
        return client(case).audio.transcriptions.create(model=case.model, file=file).text


def speak(case):
    with client(case).audio.speech.with_streaming_response.create(
        model=case.model, voice="alloy", input=QUESTION, response_format="wav"
    ) as answer:
        return sound(answer.read())


serve(
    plain=plain, stream=stream, tools=tools, schema=schema, complete=complete, respond=respond,
    embed=embed, transcribe=transcribe, speak=speak,
)
