"""Two processes on one PostgreSQL, forty callers, two thousand asks, one in twenty of them failing upstream: nothing is lost,
nothing is mixed up, and every ask is either kept or answered with an error."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import requests

from tests.openai_backend import Mode, OpenAIBackend, error, json
from tests.postgresql import PostgreSQL
from tests.processes import Service

CALLERS = 40
ASKS = 50


class Caller(threading.Thread):
    """One key, one conversation, asked through either process in turn; remembers its answers."""

    def __init__(self, number: int, services: list[Service]) -> None:
        super().__init__()
        self.key = f"client-key-{number}"
        self.services = services
        self.random = random.Random(number)
        self.conversation_id = ""
        self.whole: list[str] = []
        self.broken: list[str] = []
        self.refused = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        for number in range(ASKS):
            kind = self.random.choices(
                ["", "cut-it", "refuse-it", "fail-it"], [95, 2, 1, 2]
            )[0]
            prompt = f"{self.key} asks {number} {kind}".strip()
            fields = {"msg": prompt} | (
                {"conversation_id": self.conversation_id}
                if self.conversation_id
                else {}
            )
            url = f"{self.services[number % 2].url}/ask"
            answer = requests.post(
                url, data=fields, headers={"Authorization": self.key}, timeout=60
            ).json()
            if answer["code"] == 0:
                data = answer["data"]
                if (
                    f"You said: {prompt} " not in data["message"]
                    or f"Turn {len(self.whole) + 1}." not in data["message"]
                    or kind
                ):
                    self.wrong.append(data["message"])
                self.conversation_id = data["conversation_id"]
                self.whole.append(prompt)
            elif kind == "refuse-it" and "Rate limit" in answer["msg"]:
                self.refused += 1
            elif kind in ("cut-it", "fail-it") and answer["source"] == "upstream":
                self.broken.append(prompt)
            else:
                self.wrong.append(str(answer))


@pytest.mark.parametrize("database", ["postgresql", "pgbouncer"], indirect=True)
def test_two_thousand_asks(
    serve: Callable[..., Service],
    api: OpenAIBackend,
    postgresql: PostgreSQL,
    database: str,
) -> None:
    limit = json.dumps(
        error("Rate limit reached", "requests", "rate_limit_exceeded")
    ).encode()
    failing = {
        "refuse-it": (429, limit),
        "fail-it": (500, json.dumps(error("boom", "server_error")).encode()),
    }
    api.mode = Mode(failing=failing, cutting="cut-it")
    keys = ",".join(f"caller{number}:client-key-{number}" for number in range(CALLERS))
    settings = {
        "OPENAI_BASE_URL": api.url,
        "OPENAI_API_KEY": "sk-invented-1",
        "OPENAI_MODEL": "tiny-1",
        "HISTORY_BUDGET": "0",
    }
    services = [
        serve(AUTHORIZATION=keys, DATABASE_URL=database, **settings) for _ in range(2)
    ]
    callers = [Caller(number, services) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(100)
    assert (
        not any(caller.is_alive() for caller in callers)
        and [caller.wrong for caller in callers if caller.wrong] == []
    )
    assert len(api.completions) == CALLERS * ASKS
    outcomes: Counter[str] = Counter()
    for caller in callers:
        assert len(caller.whole) + len(caller.broken) + caller.refused == ASKS
        url, headers = f"{services[0].url}/conversation", {"Authorization": caller.key}
        listed = requests.get(f"{url}s", headers=headers, timeout=20).json()
        rows = [
            json.loads(line)
            for item in listed
            for line in requests.get(
                f"{url}/{item['id']}?format=jsonl", headers=headers, timeout=20
            ).text.splitlines()
        ]
        answers = {row["parent"]: row for row in rows if row["role"] == "assistant"}
        asked = [row for row in rows if row["role"] == "user"]
        whole = [
            row["text"] for row in asked if answers[row["id"]]["status"] == "whole"
        ]
        assert whole == caller.whole, "whole and in order"
        assert sorted(
            row["text"] for row in asked if answers[row["id"]]["status"] == "broken"
        ) == sorted(caller.broken)
        outcomes.update(
            whole=len(whole), broken=len(caller.broken), refused=caller.refused
        )
    assert (
        outcomes.total() == CALLERS * ASKS
        and outcomes["broken"] > 20
        and outcomes["refused"] > 5
    )
    print(dict(outcomes))
    for service in services:
        assert (
            "Traceback" not in service.logged() and "deadlock" not in service.logged()
        )
    assert postgresql.execute(
        "SELECT count(*) FROM leases WHERE name LIKE 'conversation/%'",
        database.rpartition("/")[2],
    ) == [(0,)]
