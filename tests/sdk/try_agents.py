"""OpenAI's Agents SDK, through `/v1/responses` as it does by itself."""

import asyncio
import typing

import agents
import openai
import pydantic
from protocol import QUESTION, SCHEMA_QUESTION, TOOL, TOOL_QUESTION, serve

agents.set_tracing_disabled(True)
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


class Place(pydantic.BaseModel):
    city: typing.Annotated[str, pydantic.Field(max_length=20)]


def agent(case, **more):
    client = openai.AsyncOpenAI(base_url=f"{case.url}/v1", api_key=case.key)
    model = agents.OpenAIResponsesModel(model=case.model, openai_client=client)
    choice = "required" if "tools" in more else None
    settings = agents.ModelSettings(max_tokens=case.max_tokens, tool_choice=choice)
    return agents.Agent(name="one", model=model, model_settings=settings, **more)


def run(agent, question):
    return loop.run_until_complete(agents.Runner.run(agent, question))


def plain(case):
    return run(agent(case), QUESTION).final_output


def stream(case):
    async def begin():
        return agents.Runner.run_streamed(agent(case), QUESTION)

    result = loop.run_until_complete(begin())
    events = result.stream_events()
    try:
        while True:
            event = loop.run_until_complete(anext(events))
            if getattr(getattr(event, "data", None), "type", "") == "response.output_text.delta":
                yield event.data.delta
    except StopAsyncIteration:
        return
    finally:
        result.cancel()
        loop.run_until_complete(asyncio.sleep(0.2))


def tools(case):
    asked = []

    @agents.function_tool(name_override=TOOL)
    def weather(city: typing.Annotated[str, pydantic.Field(max_length=20)]) -> str:
        """The weather of a city."""
        asked.append(f"{TOOL} {city}")
        return "Sunny."

    run(agent(case, tools=[weather], tool_use_behavior="stop_on_first_tool"), TOOL_QUESTION)
    return asked[0]


def schema(case):
    return repr(run(agent(case, output_type=Place), SCHEMA_QUESTION).final_output)


serve(plain=plain, stream=stream, tools=tools, schema=schema)
