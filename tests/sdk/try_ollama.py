"""Ollama's client for Python, on the listener of Ollama's API."""

import ollama
from protocol import (
    BEGINNING, FUNCTION, PARAMETERS, SCHEMA_QUESTION, TOOL_QUESTION, WORDS, messages, serve, vectors,
)


def client(case):
    return ollama.Client(host=case.url, headers={"authorization": f"Bearer {case.key}"})


def chat(case, question=None, **more):
    asked = messages(question) if question else messages()
    return client(case).chat(
        model=case.model, messages=asked, options={"num_predict": case.max_tokens}, **more
    )


def plain(case):
    return chat(case).message.content


def stream(case):
    for piece in chat(case, stream=True):
        yield piece.message.content


def tools(case):
    call = chat(case, TOOL_QUESTION, tools=[FUNCTION]).message.tool_calls[0].function
    return f"{call.name} {dict(call.arguments)}"


def schema(case):
    return chat(case, SCHEMA_QUESTION, format=PARAMETERS).message.content


def complete(case):
    answer = client(case).generate(
        model=case.model, prompt=BEGINNING, raw=True, options={"num_predict": case.max_tokens}
    )
    return answer.response


def embed(case):
    return vectors(client(case).embed(model=case.model, input=WORDS).embeddings)


serve(plain=plain, stream=stream, tools=tools, schema=schema, complete=complete, embed=embed)
