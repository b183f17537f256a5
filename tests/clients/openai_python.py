"""OpenAI's own Python client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import openai
from pydantic import BaseModel
from serving import WEATHER, Ask, Outcome, call_tool, serve

FUNCTION = {"name": "get_weather", "parameters": WEATHER, "strict": True}
CHAT_TOOLS: Any = [{"type": "function", "function": FUNCTION}]
RESPONSES_TOOLS: Any = [{"type": "function", **FUNCTION}]


class City(BaseModel):
    city: str


def client(ask: Ask) -> openai.OpenAI:
    return connect(ask.base_url, ask.key)


@cache
def connect(base_url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def at_once(ask: Ask, one: Any) -> Outcome:
    with ThreadPoolExecutor(20) as pool:
        return {"texts": list(pool.map(one, ask.prompts))}


def chat(ask: Ask, messages: Any, **more: Any) -> Any:
    return client(ask).chat.completions.create(
        model=ask.model, messages=messages, **more
    )


def chat_plain(ask: Ask) -> Outcome:
    choice = chat(ask, [user(ask.prompt)]).choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason}


def chat_streamed(ask: Ask) -> Outcome:
    stream = chat(ask, [user(ask.prompt)], stream=True)
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    pieces = [
        choice.delta.content for choice in choices if choice.delta.content is not None
    ]
    return {
        "text": "".join(pieces),
        "pieces": len(pieces),
        "finish": choices[-1].finish_reason,
    }


def chat_stopped(ask: Ask) -> Outcome:
    stream = chat(ask, [user(ask.prompt)], stream=True)
    text = next(
        c.choices[0].delta.content for c in stream if c.choices[0].delta.content
    )
    stream.close()
    return {"text": text}


def chat_continued(ask: Ask) -> Outcome:
    messages = [user(ask.prompt)]
    messages.append(chat(ask, messages).choices[0].message)
    answer = chat(ask, [*messages, user(f"{ask.prompt} again")])
    return {"text": answer.choices[0].message.content}


def chat_tools(ask: Ask) -> Outcome:
    messages = [user(ask.prompt)]
    answer = chat(ask, messages, tools=CHAT_TOOLS).choices[0]
    return chat_results(ask, messages, answer)


def chat_tools_streamed(ask: Ask) -> Outcome:
    messages = [user(ask.prompt)]
    with client(ask).chat.completions.stream(
        model=ask.model, messages=messages, tools=CHAT_TOOLS
    ) as stream:
        answer = stream.get_final_completion().choices[0]
    return chat_results(ask, messages, answer)


def chat_results(ask: Ask, messages: list[Any], choice: Any) -> Outcome:
    calls = [call.function for call in choice.message.tool_calls]
    results = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": call_tool(call.function.name, call.function.arguments),
        }
        for call in choice.message.tool_calls
    ]
    last = chat(ask, [*messages, choice.message, *results], tools=CHAT_TOOLS)
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
    return {"text": chat(ask, [user(parts)]).choices[0].message.content}


def chat_format(ask: Ask) -> Outcome:
    answer = client(ask).chat.completions.parse(
        model=ask.model, messages=[user(ask.prompt)], response_format=City
    )
    parsed = answer.choices[0].message.parsed
    return {"value": parsed and parsed.model_dump()}


def chat_twenty(ask: Ask) -> Outcome:
    return at_once(
        ask, lambda prompt: chat(ask, [user(prompt)]).choices[0].message.content
    )


def respond(ask: Ask, given: Any, **more: Any) -> Any:
    return client(ask).responses.create(model=ask.model, input=given, **more)


def plain(ask: Ask) -> Outcome:
    answer = respond(ask, ask.prompt)
    return {"text": answer.output_text, "finish": answer.status}


def streamed(ask: Ask) -> Outcome:
    events = list(respond(ask, ask.prompt, stream=True))
    pieces = [
        event.delta for event in events if event.type == "response.output_text.delta"
    ]
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers)), numbers
    last = events[-1].response
    assert last.output_text == "".join(pieces)
    return {"text": "".join(pieces), "pieces": len(pieces), "finish": last.status}


def stopped(ask: Ask) -> Outcome:
    stream = respond(ask, ask.prompt, stream=True)
    text = next(e.delta for e in stream if e.type == "response.output_text.delta")
    stream.close()
    return {"text": text}


def continued(ask: Ask) -> Outcome:
    first = respond(ask, ask.prompt)
    second = respond(ask, f"{ask.prompt} again", previous_response_id=first.id)
    return {"text": second.output_text}


def tools(ask: Ask) -> Outcome:
    """The second request names the first response."""
    answer = respond(ask, ask.prompt, tools=RESPONSES_TOOLS)
    last = respond(
        ask, results(answer), tools=RESPONSES_TOOLS, previous_response_id=answer.id
    )
    return {"text": last.output_text, "calls": calls(answer), "finish": answer.status}


def tools_streamed(ask: Ask) -> Outcome:
    """The second request brings the whole conversation, and nothing is stored."""
    given = [user(ask.prompt)]
    with client(ask).responses.stream(
        model=ask.model, input=given, tools=RESPONSES_TOOLS, store=False
    ) as stream:
        answer = stream.get_final_response()
    items = [*given, *answer.output, *results(answer)]
    last = respond(ask, items, tools=RESPONSES_TOOLS, store=False)
    return {"text": last.output_text, "calls": calls(answer), "finish": answer.status}


def called(answer: Any) -> list[Any]:
    return [item for item in answer.output if item.type == "function_call"]


def calls(answer: Any) -> list[list[str]]:
    return [[item.name, item.arguments] for item in called(answer)]


def results(answer: Any) -> Any:
    return [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": call_tool(item.name, item.arguments),
        }
        for item in called(answer)
    ]


def image(ask: Ask) -> Outcome:
    parts = [
        {"type": "input_text", "text": ask.prompt},
        {"type": "input_image", "image_url": ask.image, "detail": "auto"},
    ]
    return {"text": respond(ask, [user(parts)]).output_text}


def format(ask: Ask) -> Outcome:
    answer = client(ask).responses.parse(
        model=ask.model, input=ask.prompt, text_format=City
    )
    return {"value": answer.output_parsed and answer.output_parsed.model_dump()}


def twenty(ask: Ask) -> Outcome:
    return at_once(ask, lambda prompt: respond(ask, prompt).output_text)


if __name__ == "__main__":
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
