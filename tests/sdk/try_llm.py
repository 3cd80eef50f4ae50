"""Simon Willison's llm, as a library, with a model of the OpenAI kind."""

from llm.default_plugins.openai_models import Chat
from protocol import PARAMETERS, QUESTION, SCHEMA_QUESTION, serve


def ask(case, question=QUESTION, **more):
    model = Chat(
        case.model, model_name=case.model, api_base=f"{case.url}/v1", supports_schema=True
    )
    return model.prompt(question, key=case.key, max_tokens=case.max_tokens, **more)


def plain(case):
    return ask(case, stream=False).text()


def stream(case):
    yield from ask(case)


def schema(case):
    return ask(case, SCHEMA_QUESTION, stream=False, schema=PARAMETERS).text()


serve(plain=plain, stream=stream, schema=schema)
