"""LangChain's ChatOpenAI for Python."""

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from protocol import (
    FUNCTION, PARAMETERS, QUESTION, SCHEMA_QUESTION, TOOL_QUESTION, WORDS, serve, vectors,
)


def client(case):
    return ChatOpenAI(
        base_url=f"{case.url}/v1", api_key=case.key, model=case.model, max_tokens=case.max_tokens
    )


def plain(case):
    return client(case).invoke(QUESTION).content


def stream(case):
    for chunk in client(case).stream(QUESTION):
        yield chunk.content


def tools(case):
    call = client(case).bind_tools([FUNCTION], tool_choice="any").invoke(TOOL_QUESTION).tool_calls[0]
    return f"{call['name']} {call['args']}"


def schema(case):
    place = {"title": "place", "description": "A place.", **PARAMETERS}
    asked = client(case).with_structured_output(place, method="json_schema")
    return str(asked.invoke(SCHEMA_QUESTION))


def embed(case):
    # With the check it cuts texts into tokens of OpenAI's, for which it asks the network.
    asked = OpenAIEmbeddings(
        base_url=f"{case.url}/v1", api_key=case.key, model=case.model, check_embedding_ctx_length=False
    )
    return vectors(asked.embed_documents(WORDS))


serve(plain=plain, stream=stream, tools=tools, schema=schema, embed=embed)
