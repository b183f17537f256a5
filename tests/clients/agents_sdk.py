"""OpenAI's Agents SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import cache
from threading import Thread
from typing import Any, TypeVar

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from serving import Ask, Outcome, get_weather, serve

Result = TypeVar("Result")
LOOP = asyncio.new_event_loop()


def wait_for(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """In the one loop that the connections belong to, which runs on behind it."""
    return asyncio.run_coroutine_threadsafe(coroutine, LOOP).result()


class City(BaseModel):
    city: str


@cache
def connect(base_url: str, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30)


def agent(ask: Ask, **more: Any) -> Agent:
    kind = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
    model = kind[ask.api](ask.model, connect(ask.base_url, ask.key))
    return Agent(name="agent", instructions="Be brief.", model=model, **more)


def run(ask: Ask, given: Any, **more: Any) -> Any:
    return wait_for(Runner.run(agent(ask, **more), given)).final_output


def plain(ask: Ask) -> Outcome:
    return {"text": run(ask, ask.prompt)}


async def pieces_of(result: Any) -> list[str]:
    return [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event"
        and event.data.type == "response.output_text.delta"
    ]


def streamed(ask: Ask) -> Outcome:
    async def stream() -> Outcome:
        result = Runner.run_streamed(agent(ask), ask.prompt)
        pieces = await pieces_of(result)
        assert "".join(pieces) == result.final_output
        return {"text": "".join(pieces), "pieces": len(pieces)}

    return wait_for(stream())


def stopped(ask: Ask) -> Outcome:
    async def stop() -> Outcome:
        result = Runner.run_streamed(agent(ask), ask.prompt)
        async for event in result.stream_events():
            data = getattr(event, "data", None)
            if getattr(data, "type", "") == "response.output_text.delta":
                result.cancel()
                return {"text": data.delta}
        raise AssertionError("no text came")

    return wait_for(stop())


def continued(ask: Ask) -> Outcome:
    async def go_on() -> Outcome:
        first = await Runner.run(agent(ask), ask.prompt)
        if ask.api == "responses":
            given: Any = f"{ask.prompt} again"
            more = {"previous_response_id": first.last_response_id}
        else:
            given = [
                *first.to_input_list(),
                {"role": "user", "content": f"{ask.prompt} again"},
            ]
            more = {}
        return {"text": (await Runner.run(agent(ask), given, **more)).final_output}

    return wait_for(go_on())


def calls(result: Any) -> list[list[str]]:
    return [
        [item.raw_item.name, item.raw_item.arguments]
        for item in result.new_items
        if item.type == "tool_call_item"
    ]


def tools(ask: Ask) -> Outcome:
    """Over responses, the second request names the first response."""
    one = agent(ask, tools=[function_tool(get_weather)])
    names_first = ask.api == "responses"
    result = wait_for(
        Runner.run(one, ask.prompt, auto_previous_response_id=names_first)
    )
    return {"text": result.final_output, "calls": calls(result)}


def tools_streamed(ask: Ask) -> Outcome:
    """The second request brings the whole conversation."""

    async def stream() -> Outcome:
        one = agent(ask, tools=[function_tool(get_weather)])
        result = Runner.run_streamed(one, ask.prompt)
        text = "".join(await pieces_of(result))
        return {"text": text, "calls": calls(result)}

    return wait_for(stream())


def image(ask: Ask) -> Outcome:
    parts = [
        {"type": "input_text", "text": ask.prompt},
        {"type": "input_image", "image_url": ask.image, "detail": "auto"},
    ]
    return {"text": run(ask, [{"role": "user", "content": parts}])}


def format(ask: Ask) -> Outcome:
    return {"value": run(ask, ask.prompt, output_type=City).model_dump()}


def twenty(ask: Ask) -> Outcome:
    async def gather() -> list[Any]:
        one = agent(ask)
        return await asyncio.gather(*(Runner.run(one, text) for text in ask.prompts))

    return {"texts": [result.final_output for result in wait_for(gather())]}


if __name__ == "__main__":
    set_tracing_disabled(True)
    Thread(target=LOOP.run_forever, daemon=True).start()
    asks = {
        "plain": plain,
        "streamed": streamed,
        "stopped": stopped,
        "continued": continued,
        "tools": tools,
        "tools-streamed": tools_streamed,
        "image": image,
        "format": format,
        "twenty": twenty,
    }
    serve(asks, asks)
