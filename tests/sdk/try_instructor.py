"""Instructor on top of the OpenAI client: answers as typed objects."""

import typing

import instructor
import openai
import pydantic
from protocol import QUESTION, SCHEMA_QUESTION, TOOL_QUESTION, messages, serve


class Place(pydantic.BaseModel):
    city: typing.Annotated[str, pydantic.Field(max_length=20)]


def create(case, mode, question, kind=Place, **more):
    client = openai.OpenAI(base_url=f"{case.url}/v1", api_key=case.key)
    return instructor.from_openai(client, mode=mode).chat.completions.create(
        model=case.model, messages=messages(question), max_tokens=case.max_tokens,
        response_model=kind, **more,
    )


def plain(case):
    return create(case, instructor.Mode.TOOLS, QUESTION, None).choices[0].message.content


def tools(case):
    return repr(create(case, instructor.Mode.TOOLS, TOOL_QUESTION))


def schema(case):
    return repr(create(case, instructor.Mode.JSON_SCHEMA, SCHEMA_QUESTION))


serve(plain=plain, tools=tools, schema=schema)
