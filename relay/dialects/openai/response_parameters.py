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
#: what a response shows of its request, by the types that it may have
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("prompt_cache_key", "safety_identifier", "service_tier", "user"),
        ((str,), "text"),
    ),
    **dict.fromkeys(("background", "parallel_tool_calls"), ((bool,), "true or false")),
    **dict.fromkeys(("temperature", "top_p"), ((int, float), "a number")),
    **dict.fromkeys(("max_tool_calls", "top_logprobs"), ((int,), "a whole number")),
    **dict.fromkeys(
        ("metadata", "reasoning", "stream_options", "text"), ((dict,), "an object")
    ),
    **dict.fromkeys(("include", "tools"), ((list,), "a list")),
}
_TOOL_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "description": ((str,), "text"),
    "parameters": ((dict,), "an object"),
    "strict": ((bool,), "true or false"),
}
_FORMAT_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "description": ((str,), "text"),
    "strict": ((bool,), "true or false"),
}
_FORMATS = ("text", "json_object", "json_schema")
_CHOICES = ("none", "auto", "required")
_TRUNCATIONS = ("auto", "disabled")
_LOGPROBS = "message.output_text.logprobs"


def check(payload: Fields, *, accepts_options: bool) -> None:
    """Raise for what a translated response cannot be. Raises BadRequest for wrong types, else Unsupported."""
    _check_types(payload, _TYPES)
    _check_foreign(payload)
    most = payload.get("max_output_tokens")
    if most is not None and (type(most) is not int or most < 1):
        raise BadRequest(
            "The field max_output_tokens must be a whole number of at least 1."
        )
    if payload.get("truncation") not in (None, *_TRUNCATIONS):
        raise BadRequest(f"The field truncation must be {' or '.join(_TRUNCATIONS)}.")
    _check_inner(payload)
    kind = _check_format(_format_of(payload))
    if accepts_options:
        _check_tools(payload)
        return
    check_tools(payload, f"The upstream calls no tools. {ELSEWHERE}")
    if kind != "text":
        raise Unsupported(
            "The upstream cannot be held to a format: leave text.format out, and say "
            f"in the input what you want. {ELSEWHERE}",
            parameter="text.format",
        )


def _check_foreign(payload: Fields) -> None:
    """Raise Unsupported for what no chat completion can be asked for."""
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


def _check_types(
    fields: Mapping[str, Any],
    types: Mapping[str, tuple[tuple[type, ...], str]],
    place: str = "",
) -> None:
    """Raise BadRequest for a field of another type. Of numbers true and false are none."""
    for name, (wanted, words) in types.items():
        value = fields.get(name)
        if value is not None and type(value) not in wanted:
            raise BadRequest(f"The field {place}{name} must be {words}.")


def _check_inner(payload: Fields) -> None:
    """Raise BadRequest for wrong types within the objects of a request."""
    text: tuple[tuple[type, ...], str] = ((str,), "text")
    _check_types(payload.get("text") or {}, {"verbosity": text}, "text.")
    names = ("effort", "summary", "generate_summary")
    reasoning = dict.fromkeys(names, text)
    _check_types(payload.get("reasoning") or {}, reasoning, "reasoning.")
    for name, value in (payload.get("metadata") or {}).items():
        if not isinstance(value, str):
            raise BadRequest(
                f"The field metadata.{name[:80]} must be text.", quoted=name[:80]
            )
    choice = payload.get("tool_choice")
    if isinstance(choice, Mapping):
        _tool_choice(choice)
    elif choice is not None and choice not in _CHOICES:
        raise BadRequest(
            f"The field tool_choice must be {', '.join(_CHOICES)} or an object."
        )


def _check_format(found: Mapping[str, Any]) -> str:
    """The kind of a format. Raises BadRequest."""
    kind = found.get("type", "text")
    if kind not in _FORMATS:
        raise BadRequest(
            f"The field text.format.type must be one of {', '.join(_FORMATS)}."
        )
    if kind == "json_schema":
        has_name = isinstance(found.get("name"), str)
        if not has_name or not isinstance(found.get("schema"), Mapping):
            raise BadRequest(
                "The field text.format must have a name, and a schema that is an object."
            )
        _check_types(found, _FORMAT_TYPES, "text.format.")
    return str(kind)


def _check_tools(payload: Fields) -> None:
    for at, tool in enumerate(payload.get("tools") or ()):
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if not isinstance(kind, str):
            raise BadRequest(f"tools[{at}] must be an object with a type.")
        if kind != "function":
            raise _no_tool(f"tools[{at}]", kind)
        if not isinstance(tool.get("name"), str):
            raise BadRequest(f"tools[{at}].name must be text.")
        _check_types(tool, _TOOL_TYPES, f"tools[{at}].")


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
    """Which tool is to be called, as chat completions say it. Raises Unsupported, BadRequest."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        mode = choice.get("mode")
        if not isinstance(tools, list) or mode not in ("auto", "required"):
            raise BadRequest(
                "The field tool_choice must have a list of tools, and the mode auto or "
                "required."
            )
        named = [
            _named_tool(tool, f"tool_choice.tools[{at}]")
            for at, tool in enumerate(tools)
        ]
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": named},
        }
    return _named_tool(choice, "tool_choice")


def _named_tool(tool: Any, place: str) -> dict[str, Any]:
    """A function tool that is named alone. Raises Unsupported, BadRequest."""
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if not isinstance(kind, str):
        raise BadRequest(f"{place} must be an object with a type.")
    if kind != "function":
        raise _no_tool(place, kind)
    if not isinstance(tool.get("name"), str):
        raise BadRequest(f"{place}.name must be text.")
    return {"type": "function", "function": {"name": tool["name"]}}


def _format_of(payload: Fields) -> Mapping[str, Any]:
    found = (payload.get("text") or {}).get("format")
    if found is None:
        return {}
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
