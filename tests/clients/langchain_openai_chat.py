"""LangChain's client of OpenAI's API."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from serving import Ask, Outcome, get_weather, serve


class City(BaseModel):
    """A city."""

    city: str


def model(ask: Ask, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=ask.base_url,
        api_key=ask.key,
        model=ask.model,
        use_responses_api=ask.api == "responses",
        max_retries=0,
        timeout=30,
        **more,
    )


def finish(message: Any) -> Any:
    metadata = message.response_metadata
    return metadata.get("finish_reason") or metadata.get("status")


def plain(ask: Ask) -> Outcome:
    message = model(ask).invoke(ask.prompt)
    return {"text": str(message.text), "finish": finish(message)}


def streamed(ask: Ask) -> Outcome:
    chunks = list(model(ask).stream(ask.prompt))
    message = reduce(add, chunks)
    pieces = [chunk for chunk in chunks if chunk.text]
    return {
        "text": str(message.text),
        "pieces": len(pieces),
        "finish": finish(message),
    }


def stopped(ask: Ask) -> Outcome:
    stream = model(ask).stream(ask.prompt)
    text = next(str(chunk.text) for chunk in stream if chunk.text)
    stream.close()
    return {"text": text}


def continued(ask: Ask) -> Outcome:
    llm = model(ask, use_previous_response_id=ask.api == "responses")
    messages = [HumanMessage(ask.prompt)]
    messages = [*messages, llm.invoke(messages), HumanMessage(f"{ask.prompt} again")]
    return {"text": str(llm.invoke(messages).text)}


def tools(ask: Ask) -> Outcome:
    llm = model(ask).bind_tools([tool(get_weather)])
    return results(llm, ask, llm.invoke(ask.prompt))


def tools_streamed(ask: Ask) -> Outcome:
    llm = model(ask).bind_tools([tool(get_weather)])
    return results(llm, ask, reduce(add, llm.stream(ask.prompt)))


def results(llm: Any, ask: Ask, answer: Any) -> Outcome:
    called = [tool(get_weather).invoke(call) for call in answer.tool_calls]
    last = llm.invoke([HumanMessage(ask.prompt), answer, *called])
    return {
        "text": str(last.text),
        "calls": [[call["name"], call["args"]] for call in answer.tool_calls],
        "finish": finish(answer),
    }


def image(ask: Ask) -> Outcome:
    parts: Any = [
        {"type": "text", "text": ask.prompt},
        {"type": "image_url", "image_url": {"url": ask.image}},
    ]
    return {"text": str(model(ask).invoke([HumanMessage(parts)]).text)}


def format(ask: Ask) -> Outcome:
    city: Any = (
        model(ask).with_structured_output(City, method="json_schema").invoke(ask.prompt)
    )
    return {"value": city.model_dump()}


def twenty(ask: Ask) -> Outcome:
    answers = model(ask).batch(list(ask.prompts), config={"max_concurrency": 20})
    return {"texts": [str(answer.text) for answer in answers]}


if __name__ == "__main__":
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
