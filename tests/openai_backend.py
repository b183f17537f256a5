"""An OpenAI-compatible server of the tests' own, as strict as OpenAI's about what it takes: it knows its parameters and its
models, asks for a key, and remembers nothing. It behaves as its `Mode` states, and records what it was asked and whether the
asker left. Everything it says is invented; the shapes are those of OpenAI's reference.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

from tests import chatgpt_backend
from tests.chatgpt_backend import Asked, data

PARAMETERS = {
    *(
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
    ),
    *(
        "seed",
        "stop",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "user",
        "reasoning_effort",
        "response_format",
    ),
    *("tools", "tool_choice", "parallel_tool_calls", "metadata"),
}


@dataclass(frozen=True)
class Call:
    """A call of a tool, as the model wants it."""

    name: str
    arguments: str  # JSON


@dataclass
class Mode(chatgpt_backend.Mode):
    """How the server behaves from now on."""

    keys: tuple[str, ...] = ("sk-invented-1",)  # none: it asks for no key
    models: tuple[str, ...] = ("tiny-1", "tiny-2")
    reasoning: str = ""
    reasoning_field: str = "reasoning_content"
    refusal: str = ""
    finish: str | None = "stop"
    usage: bool = True
    usage_with_last: bool = False
    text: str | None = None  # this instead of its own answer
    streams: bool = True  # else the whole answer is JSON, whatever is asked for
    failing: dict[str, tuple[int, bytes]] = field(
        default_factory=dict
    )  # a word of the prompt -> how it is refused
    cutting: str = ""  # answers to prompts with this word are cut in the middle
    listing: float = 0.0  # seconds before the models are listed
    calls: tuple[Call, ...] = ()  # the answer to a user who offers these tools
    arguments_of: int = 0  # characters of arguments a chunk; 0: a call is one chunk


def error(
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class OpenAIBackend(chatgpt_backend.Backend):
    """`url` is its base, /v1 included."""

    mode: Mode

    def __init__(self, prefix: str = "/v1") -> None:
        super().__init__(prefix)
        self.RequestHandlerClass = Handler
        self.mode = Mode()
        self.origin, self.url = self.url, self.url + prefix

    @property
    def completions(self) -> list[Asked]:
        return [
            asked for asked in self.asked if asked.path.endswith("/chat/completions")
        ]


class Handler(chatgpt_backend.Handler):
    server: OpenAIBackend

    def route(self, asked: Asked) -> None:
        mode, path = self.server.mode, asked.path
        if not path.startswith(f"{self.server.prefix}/"):
            return self.respond(404, {"detail": "Not Found"})
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if mode.keys and token not in mode.keys:
            text = f"Incorrect API key provided: {token[:5]}****{token[-4:]}. You can find your key in your settings."
            return self.respond(401, error(text, code="invalid_api_key"))
        if token in mode.refuse_tokens:
            status, headers, body = mode.refuse_tokens[token]
            return self.respond(status, body, headers)
        path = path.removeprefix(self.server.prefix)
        if asked.method == "GET" and path == "/models":
            self.wait(asked, mode.listing)
            listed = [
                {"id": name, "object": "model", "created": 1, "owned_by": "tests"}
                for name in mode.models
            ]
            return self.respond(200, {"object": "list", "data": listed})
        if asked.method == "POST" and path == "/chat/completions":
            return self.complete(asked)
        return self.respond(
            404, error(f"Unknown request URL: {asked.method} {asked.path}.")
        )

    def problem_with(self, asked: Asked) -> tuple[int, Any] | None:
        body, mode = asked.body, self.server.mode
        if asked.headers.get("content-type") != "application/json" or not isinstance(
            body, dict
        ):
            return 400, error("We could not parse the JSON body of your request.")
        if unknown := set(body) - PARAMETERS:
            return 400, error(
                f"Unrecognized request argument supplied: {unknown}",
                code="unknown_parameter",
            )
        if body.get("stream_options") is not None and not body.get("stream"):
            return 400, error(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            )
        if not isinstance(body.get("temperature", 1), (int, float)):
            return 400, error(
                "Invalid type for 'temperature'.",
                code="invalid_type",
                param="temperature",
            )
        if body.get("model") not in mode.models:
            text = f"The model `{body.get('model')}` does not exist or you do not have access to it."
            return 404, error(text, code="model_not_found", param="model")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            return 400, error("Invalid 'messages': empty array.", code="empty_array")
        for message in messages:
            if message.get("role") not in (
                "system",
                "developer",
                "user",
                "assistant",
                "tool",
            ):
                return 400, error("Invalid value for 'role'.", code="invalid_value")
            if not isinstance(message.get("content"), (str, list)) and not message.get(
                "tool_calls"
            ):
                return 400, error("Invalid type for 'content'.", code="invalid_type")
        if problem := unmatched_result(messages):
            return 400, error(problem)
        return None

    def complete(self, asked: Asked) -> None:
        mode, body = self.server.mode, asked.body
        if (problem := self.problem_with(asked)) is not None:
            return self.respond(*problem)
        if mode.refusals:
            status, headers, payload = mode.refusals.pop(0)
            return self.respond(status, payload, headers)
        prompt = text_of(body["messages"][-1])
        for word, (status, payload) in mode.failing.items():
            if word in prompt:
                return self.respond(status, payload)
        time.sleep(mode.delay) if mode.delay < 1 else self.wait(asked, mode.delay)
        asks = [
            text_of(message)
            for message in body["messages"]
            if message["role"] == "user"
        ]
        text = (
            f"Turn {len(asks)}. You said: {asks[-1]} — 你好 🙂."
            if mode.text is None
            else mode.text
        )
        if results := results_of(body["messages"]):
            text = f"The tools said: {', '.join(results)}."
        calls = [] if results else offered(body, mode.calls)
        if calls and body.get("stream"):
            return self.stream(asked, calling_chunks(body["model"], calls, mode))
        if calls:
            return self.respond(200, calling(body["model"], calls, mode))
        if not body.get("stream") or not mode.streams:
            return self.respond(200, whole(body["model"], text, mode))
        self.stream(asked, chunks(body["model"], text, mode))
        return None

    def stream(self, asked: Asked, events: list[str]) -> None:
        mode = self.server.mode
        cuts = mode.cutting and mode.cutting in text_of(asked.body["messages"][-1])
        super().stream(asked, events[: len(events) // 2] if cuts else events)


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text", f"[{part['type']}]") for part in content)
    return content or ""


def unmatched_result(messages: list[dict[str, Any]]) -> str | None:
    """Every call needs its result behind it, and every result a call before it."""
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message.get("tool_call_id") not in open_calls:
                return "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            break
        open_calls = {call["id"] for call in message.get("tool_calls") or []}
    if open_calls:
        return f"An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(sorted(open_calls))}"
    return None


def results_of(messages: list[dict[str, Any]]) -> list[str]:
    """The results of tools that the messages end with."""
    last = itertools.takewhile(
        lambda message: message["role"] == "tool", reversed(messages)
    )
    return [text_of(message) for message in last][::-1]


def offered(body: dict[str, Any], calls: tuple[Call, ...]) -> list[dict[str, Any]]:
    """The calls of tools that the request offers."""
    if body.get("tool_choice") == "none":
        return []
    names = {tool["function"]["name"] for tool in body.get("tools") or []}
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
        if call.name in names
    ]


def calling(model: str, calls: list[dict[str, Any]], mode: Mode) -> dict[str, Any]:
    answer = whole(model, "", mode)
    choice = answer["choices"][0]
    choice["message"] |= {"content": None, "tool_calls": calls}
    choice["finish_reason"] = "tool_calls"
    return answer


def calling_chunks(model: str, calls: list[dict[str, Any]], mode: Mode) -> list[str]:
    """As a server of the API streams calls: one behind the other, each by its index, the arguments whole or in pieces."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    for index, call in enumerate(calls):
        function = call["function"]
        if not mode.arguments_of:
            deltas.append({"tool_calls": [{"index": index, **call}]})
            continue
        started = {**call, "function": {**function, "arguments": ""}}
        deltas.append({"tool_calls": [{"index": index, **started}]})
        arguments, step = function["arguments"], mode.arguments_of
        for at in range(0, len(arguments), step):
            piece = {"arguments": arguments[at : at + step]}
            deltas.append({"tool_calls": [{"index": index, "function": piece}]})
    fields = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": f"{model}-2026",
    }
    choices = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        for delta in deltas
    ]
    choices.append(
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
    )
    events = [data({**fields, "choices": [choice]}) for choice in choices]
    events.append(data({**fields, "choices": [], "usage": USAGE}))
    return [*events, "data: [DONE]\n\n"] if mode.done else events


USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def whole(model: str, text: str, mode: Mode) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": mode.refusal or None}
    if mode.reasoning:
        message[mode.reasoning_field] = mode.reasoning
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": mode.finish,
    }
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": f"{model}-2026", "choices": [choice], "usage": USAGE}  # fmt: skip


def chunks(model: str, text: str, mode: Mode) -> list[str]:
    """What is streamed: a first chunk with the role, the thoughts, the words, the finish reason, usage, and [DONE]."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        fields = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": f"{model}-2026",
        }
        usage = {"usage": None} if mode.usage else {}
        return data({**fields, "choices": [choice], **usage, **more})

    events = [chunk({"role": "assistant", "content": "", "refusal": None})]
    events += [
        chunk({mode.reasoning_field: mode.reasoning[at : at + 5]})
        for at in range(0, len(mode.reasoning), 5)
    ]
    if mode.refusal:
        return [
            *events,
            chunk({"refusal": mode.refusal}),
            chunk({}, "stop"),
            "data: [DONE]\n\n",
        ]
    events += [chunk({"content": text[at : at + 4]}) for at in range(0, len(text), 4)]
    events.insert(len(events) // 2, ": keep-alive\n\n")
    if mode.finish:
        events.append(
            chunk({}, mode.finish, **({"usage": USAGE} if mode.usage_with_last else {}))
        )
    if mode.usage and not mode.usage_with_last:
        events.append(
            data(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion.chunk",
                    "choices": [],
                    "usage": USAGE,
                }
            )
        )
    return [*events, "data: [DONE]\n\n"] if mode.done else events


__all__ = ["USAGE", "Call", "Mode", "OpenAIBackend", "chunks", "error", "json"]
