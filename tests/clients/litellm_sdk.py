"""LiteLLM's SDK, with `openai/` before the model's name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litellm
from pydantic import BaseModel
from serving import WEATHER, Ask, Outcome, call_tool, serve

FUNCTION = {"name": "get_weather", "parameters": WEATHER}


class City(BaseModel):
    city: str


def options(ask: Ask) -> dict[str, Any]:
    return {
        "model": f"openai/{ask.model}",
        "api_base": ask.base_url,
        "api_key": ask.key,
        "max_retries": 0,
        "timeout": 30,
    }


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def chat(ask: Ask, *messages: Any, **more: Any) -> Any:
    return litellm.completion(messages=list(messages), **options(ask), **more)


def chat_plain(ask: Ask) -> Outcome:
    choice = chat(ask, user(ask.prompt)).choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason}


def chat_streamed(ask: Ask) -> Outcome:
    chunks = list(chat(ask, user(ask.prompt), stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    return {
        "text": "".join(pieces),
        "pieces": len([piece for piece in pieces if piece]),
        "finish": chunks[-1].choices[0].finish_reason,
    }


def chat_stopped(ask: Ask) -> Outcome:
    stream = chat(ask, user(ask.prompt), stream=True)
    pieces = (chunk.choices[0].delta.content for chunk in stream)
    text = next(piece for piece in pieces if piece)
    stream.completion_stream.close()
    return {"text": text}


def chat_continued(ask: Ask) -> Outcome:
    first = chat(ask, user(ask.prompt)).choices[0].message
    again = chat(ask, user(ask.prompt), first, user(f"{ask.prompt} again"))
    return {"text": again.choices[0].message.content}


def chat_tools(ask: Ask) -> Outcome:
    tools = [{"type": "function", "function": FUNCTION}]
    return results(ask, tools, chat(ask, user(ask.prompt), tools=tools))


def chat_tools_streamed(ask: Ask) -> Outcome:
    tools = [{"type": "function", "function": FUNCTION}]
    chunks = list(chat(ask, user(ask.prompt), tools=tools, stream=True))
    return results(ask, tools, litellm.stream_chunk_builder(chunks))


def results(ask: Ask, tools: Any, answer: Any) -> Outcome:
    [choice] = answer.choices
    outputs = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": call_tool(call.function.name, call.function.arguments),
        }
        for call in choice.message.tool_calls
    ]
    last = chat(ask, user(ask.prompt), choice.message, *outputs, tools=tools)
    calls = [call.function for call in choice.message.tool_calls]
    return {
        "text": last.choices[0].message.content,
        "calls": [[call.name, call.arguments] for call in calls],
        "finish": choice.finish_reason,
    }


def chat_image(ask: Ask) -> Outcome:
    parts = [
        {"type": "text", "text": ask.prompt},
        {"type": "image_url", "image_url": {"url": ask.image}},
    ]
    return {"text": chat(ask, user(parts)).choices[0].message.content}


def chat_format(ask: Ask) -> Outcome:
    answer = chat(ask, user(ask.prompt), response_format=City)
    return {"value": json.loads(answer.choices[0].message.content)}


def chat_twenty(ask: Ask) -> Outcome:
    def one(prompt: str) -> Any:
        return chat(ask, user(prompt)).choices[0].message.content

    with ThreadPoolExecutor(20) as pool:
        return {"texts": list(pool.map(one, ask.prompts))}


def respond(ask: Ask, given: Any, **more: Any) -> Any:
    return litellm.responses(input=given, **options(ask), **more)


def text_of(answer: Any) -> str:
    parts = [
        part
        for item in answer.output
        if item.type == "message"
        for part in item.content
    ]
    return "".join(part.text for part in parts)


def plain(ask: Ask) -> Outcome:
    answer = respond(ask, ask.prompt)
    return {"text": text_of(answer), "finish": answer.status}


def streamed(ask: Ask) -> Outcome:
    events = list(respond(ask, ask.prompt, stream=True))
    pieces = [e.delta for e in events if e.type == "response.output_text.delta"]
    return {
        "text": "".join(pieces),
        "pieces": len(pieces),
        "finish": events[-1].response.status,
    }


def stopped(ask: Ask) -> Outcome:
    stream = respond(ask, ask.prompt, stream=True)
    text = next(e.delta for e in stream if e.type == "response.output_text.delta")
    return {"text": text}


def continued(ask: Ask) -> Outcome:
    first = respond(ask, ask.prompt)
    again = respond(ask, f"{ask.prompt} again", previous_response_id=first.id)
    return {"text": text_of(again)}


def tools(ask: Ask) -> Outcome:
    offered = [{"type": "function", **FUNCTION}]
    answer = respond(ask, ask.prompt, tools=offered)
    called = [item for item in answer.output if item.type == "function_call"]
    last = respond(
        ask, outputs_of(called), tools=offered, previous_response_id=answer.id
    )
    return {
        "text": text_of(last),
        "calls": [[item.name, item.arguments] for item in called],
        "finish": answer.status,
    }


def tools_streamed(ask: Ask) -> Outcome:
    """The second request brings the whole conversation."""
    offered = [{"type": "function", **FUNCTION}]
    events = list(respond(ask, ask.prompt, tools=offered, stream=True))
    answer = events[-1].response
    called = [item for item in answer.output if item.type == "function_call"]
    items = [item.model_dump(exclude_none=True) for item in answer.output]
    given = [user(ask.prompt), *items, *outputs_of(called)]
    last = respond(ask, given, tools=offered)
    return {
        "text": text_of(last),
        "calls": [[item.name, item.arguments] for item in called],
        "finish": answer.status,
    }


def outputs_of(called: Any) -> list[dict[str, Any]]:
    return [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": call_tool(item.name, item.arguments),
        }
        for item in called
    ]


def image(ask: Ask) -> Outcome:
    parts = [
        {"type": "input_text", "text": ask.prompt},
        {"type": "input_image", "image_url": ask.image},
    ]
    return {"text": text_of(respond(ask, [user(parts)]))}


def format(ask: Ask) -> Outcome:
    return {"value": json.loads(text_of(respond(ask, ask.prompt, text_format=City)))}


def twenty(ask: Ask) -> Outcome:
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda prompt: respond(ask, prompt), ask.prompts)
        return {"texts": [text_of(answer) for answer in answers]}


if __name__ == "__main__":
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    # else it asks for a whole answer and cuts that in pieces itself
    native = {"litellm_provider": "openai", "supports_native_streaming": True}
    names = ("offline", "tiny-1", "gpt-5-mini", "no-such-model")
    litellm.register_model({f"openai/{name}": dict(native) for name in names})
    serve(
        {
            "plain": chat_plain,
            "streamed": chat_streamed,
            "stopped": chat_stopped,
            "continued": chat_continued,
            "tools": chat_tools,
            "tools-streamed": chat_tools_streamed,
            "image": chat_image,
            "format": chat_format,
            "twenty": chat_twenty,
        },
        {
            "plain": plain,
            "streamed": streamed,
            "stopped": stopped,
            "continued": continued,
            "tools": tools,
            "tools-streamed": tools_streamed,
            "image": image,
            "format": format,
            "twenty": twenty,
        },
    )
