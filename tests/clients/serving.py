"""How a client of tests/clients is driven: it reads an ask in JSON from each line of its input, and prints what came of it.

The client runs in an environment of its own, so this imports nothing of the project.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
    name: str
    api: str  # chat or responses
    base_url: str
    key: str
    model: str
    prompt: str
    image: str  # a data URL

    @property
    def prompts(self) -> list[str]:
        """What is asked at once."""
        return [f"{self.prompt} number {number}." for number in range(20)]


Outcome = dict[str, Any]
Asks = Mapping[str, Callable[[Ask], Outcome]]


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def call_tool(name: str, arguments: str | dict[str, Any]) -> str:
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"get_weather": get_weather}[name](**given)


def describe(error: BaseException) -> Outcome:
    """The class, and what the SDKs tell beside the text."""
    values = {
        "class": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "param": getattr(error, "param", None),
        "message": str(error),
    }
    return {name: value if _is_plain(value) else None for name, value in values.items()}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int))


def serve(chat: Asks, responses: Asks) -> None:
    """Until the input ends. What a library prints goes to the error output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        ask = Ask(**json.loads(line))
        asks = {"chat": chat, "responses": responses}[ask.api]
        try:
            outcome = asks[ask.name](ask)
        except Exception as error:
            outcome = {"error": describe(error)}
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()
        # httpcore waits for itself for ever where a stream that was left is collected while it opens another
        gc.collect()
