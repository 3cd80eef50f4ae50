"""Simon Willison's llm, as a library, with a model of the OpenAI kind."""

import llm
from llm.default_plugins.openai_models import Chat
from protocol import PARAMETERS, QUESTION, SCHEMA_QUESTION, TOOL, TOOL_QUESTION, serve


def ask(case, question=QUESTION, **more):
    model = Chat(
        case.model, model_name=case.model, api_base=f"{case.url}/v1", supports_schema=True,
        supports_tools=True,
    )
    return model.prompt(question, key=case.key, max_tokens=case.max_tokens, **more)


def plain(case):
    return ask(case, stream=False).text()


def stream(case):
    yield from ask(case)


def schema(case):
    return ask(case, SCHEMA_QUESTION, stream=False, schema=PARAMETERS).text()


def tools(case):
    weather = llm.Tool(name=TOOL, description="The weather of a city.", input_schema=PARAMETERS)
    call = ask(case, TOOL_QUESTION, stream=False, tools=[weather]).tool_calls()[0]
    return f"{call.name} {call.arguments}"


serve(plain=plain, stream=stream, tools=tools, schema=schema)
