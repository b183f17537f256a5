"""The parameters of a Responses request: what a chat completion has under another name, and what it has not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.dialects import fields as read
from relay.dialects.bodies import SECRETS, Fields
from relay.dialects.openai.parameters import ELSEWHERE, check_tools
from relay.errors import BadRequest, Unsupported

#: parameters that chat completions have under the same name
_SAME = ("parallel_tool_calls", "temperature", "top_p", "user")
#: fields that have their effect here, or whose checked values ask for nothing
_READ = {
    "background",
    "conversation",
    "input",
    "instructions",
    "max_output_tokens",
    "metadata",
    "model",
    "previous_response_id",
    "prompt",
    "request_id",
    "store",
    "stream",
    "stream_options",
    "text",
    "tool_choice",
    "tools",
    "truncation",
}
_LOGPROBS = "message.output_text.logprobs"


def check(payload: Fields, *, accepts_options: bool) -> None:
    """Raise for what a translated response cannot be. Raises BadRequest for wrong types, else Unsupported."""
    for name in ("background", "prompt", "top_logprobs"):
        if payload.get(name):
            raise Unsupported(
                f"A translated response knows no {name}: leave it out.", parameter=name
            )
    if _LOGPROBS in (payload.get("include") or ()):
        raise Unsupported(
            "A translated response has no probabilities of tokens: leave "
            f"{_LOGPROBS} out.",
            parameter="include",
        )
    most = payload.get("max_output_tokens")
    if most is not None and (type(most) is not int or most < 1):
        raise BadRequest(
            "The field max_output_tokens must be a whole number of at least 1."
        )
    for name in ("reasoning", "text", "metadata"):
        if not isinstance(payload.get(name) or {}, Mapping):
            raise BadRequest(f"The field {name} must be an object.")
    if accepts_options:
        _check_tools(payload)
        return
    check_tools(payload, f"The upstream calls no tools. {ELSEWHERE}")
    if _format_of(payload).get("type", "text") != "text":
        raise Unsupported(
            "The upstream cannot be held to a format: leave text.format out, and say "
            f"in the input what you want. {ELSEWHERE}",
            parameter="text.format",
        )


def _check_tools(payload: Fields) -> None:
    tools = payload.get("tools") or []
    if not isinstance(tools, list):
        raise BadRequest("The field tools must be a list.")
    for at, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if not isinstance(kind, str):
            raise BadRequest(f"tools[{at}] must be an object with a type.")
        if kind != "function":
            raise _no_tool(f"tools[{at}]", kind)
        if not isinstance(tool.get("name"), str):
            raise BadRequest(f"tools[{at}].name must be text.")


def _no_tool(place: str, kind: str) -> Unsupported:
    return Unsupported(
        f"{place} is the tool {kind[:80]}, which a translated response has not: only "
        "function tools are called. Leave it out.",
        parameter=place,
        quoted=kind[:80],
    )


def options_of(payload: Fields, *, accepts_options: bool) -> dict[str, Any]:
    """The parameters of the chat completion; only what any answer can be cut by where the upstream takes none.

    Raises BadRequest, Unsupported.
    """
    most = payload.get("max_output_tokens")
    options = {} if most is None else {"max_tokens": most}
    if accepts_options:
        options.update(_translated(payload))
    return options


def _translated(payload: Fields) -> dict[str, Any]:
    options = {name: payload.get(name) for name in _SAME}
    options["reasoning_effort"] = (payload.get("reasoning") or {}).get("effort")
    options["verbosity"] = (payload.get("text") or {}).get("verbosity")
    options["response_format"] = _response_format(_format_of(payload))
    if tools := payload.get("tools"):
        options["tools"] = [_tool(tool) for tool in tools]
        options["tool_choice"] = _tool_choice(payload.get("tool_choice"))
    else:
        options["parallel_tool_calls"] = None
    return {name: value for name, value in options.items() if value is not None}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    """Which tool is to be called, as chat completions say it."""
    if not isinstance(choice, Mapping):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        tools = [_tool(tool) for tool in choice.get("tools") or ()]
        allowed = {"mode": choice.get("mode", "auto"), "tools": tools}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    raise _no_tool("tool_choice", str(kind))


def _format_of(payload: Fields) -> Mapping[str, Any]:
    found = (payload.get("text") or {}).get("format") or {}
    if not isinstance(found, Mapping):
        raise BadRequest(
            'The field text.format must be an object, as in {"type": "text"}.'
        )
    return found


def _response_format(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The format as chat completions have it; None for plain text."""
    kind = found.get("type", "text")
    if kind == "text":
        return None
    if kind != "json_schema":
        return dict(found)
    names = ("name", "description", "schema", "strict")
    schema = {name: found[name] for name in names if found.get(name) is not None}
    return {"type": "json_schema", "json_schema": schema}


def ignored_of(payload: Fields, *, accepts_options: bool) -> tuple[str, ...]:
    """The fields without effect, but for those that are empty. Raises BadRequest for a misspelt place."""
    known = {*_READ, *SECRETS}
    if accepts_options:
        known.update((*_SAME, "reasoning"))
    ignored = read.unknown_of(payload, known)
    empty = {name for name in ignored if payload[name] in ([], {})}
    return tuple(name for name in ignored if name not in empty)
