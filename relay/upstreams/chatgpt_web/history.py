"""Conversations that ChatGPT keeps: listed, read, renamed and deleted at the account where they live."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import orjson

from relay.accounts import Account
from relay.domain import Caller
from relay.errors import NoConversation, Unauthorized, UpstreamFailed, UpstreamRefused
from relay.transports import Call, Head
from relay.upstreams.chatgpt_web import body, failures
from relay.upstreams.chatgpt_web.session import LONGEST_TREE, Backend, parsed_tree
from relay.upstreams.words import json_of, words_of

Items: TypeAlias = list[dict[str, Any]]

PAGE = 100
MOST_PAGES = 10


class WebHistory:
    """The history of the owner's accounts, or of the one that a caller's own token opens."""

    def __init__(self, backend: Backend, seconds: float = 60.0) -> None:
        self._backend = backend
        self._seconds = seconds

    @property
    def has_accounts(self) -> bool:
        return len(self._backend.pool) > 0

    def knows(self, token: str) -> bool:
        return self._backend.knows(token)

    def list(self, caller: Caller, most: int) -> Items:
        """The newest conversations of all accounts in reach, as the backend's list has them, up to `most` of each."""
        found: Items = []
        for account in self._accounts(caller, None):
            offset = 0
            for _ in range(MOST_PAGES):
                items, size = self._page(caller, account, offset)
                found += items
                offset += len(items)
                if len(items) < size or offset >= most:
                    break
        return found

    def _page(self, caller: Caller, account: Account, offset: int) -> tuple[Items, int]:
        """A page of an account's list, and how long the backend makes its pages: it may give less than is asked for."""
        head, told = self._fetch(
            caller,
            account,
            "GET",
            f"conversations?offset={offset}&limit={PAGE}&order=updated",
        )
        items, size = json_of(told), PAGE
        if isinstance(items, dict):
            limit = items.get("limit")
            items, size = (
                items.get("items"),
                limit if isinstance(limit, int) and 0 < limit < PAGE else PAGE,
            )
        if head.status != 200 or not isinstance(items, list):
            raise failures.from_response(
                head.status, head.headers, account.hidden_in(told)
            )
        return [
            item
            for item in items
            if isinstance(item, dict) and isinstance(item.get("id"), str)
        ], size

    def read(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> dict[str, Any]:
        """One conversation, just as the backend shows it. Raises NoConversation where no account in reach has it."""
        path = f"conversation/{body.conversation_path(conversation_id)}"
        for candidate in self._accounts(caller, account):
            head, told = self._fetch(caller, candidate, "GET", path)
            if (
                head.status != 404
                or account
                or caller.token
                or not words_of(json_of(told))[0]
            ):
                return parsed_tree(head, told)
        raise NoConversation()

    def change(
        self,
        caller: Caller,
        conversation_id: str,
        account: str | None,
        what: dict[str, Any],
    ) -> None:
        """Rename (`title`) or delete (`is_visible`: false). Raises NoConversation where no account in reach has it."""
        path = f"conversation/{body.conversation_path(conversation_id)}"
        for candidate in self._accounts(caller, account):
            head, told = self._fetch(
                caller, candidate, "PATCH", path, orjson.dumps(what)
            )
            done = json_of(told)
            if (
                head.status == 200
                and isinstance(done, dict)
                and done.get("success", True)
            ):
                return
            if head.status == 200:
                raise UpstreamFailed(
                    "The upstream did not say that it changed the conversation."
                )
            if head.status != 404:
                raise failures.from_response(head.status, head.headers, told)
            if not words_of(done)[0]:
                message = "The upstream changes no conversations: a reverse proxy may pass on the asking alone."
                raise UpstreamRefused(message, status=404)
        raise NoConversation()

    def entitle(self, caller: Caller, conversation_id: str, account: str | None) -> str:
        """Have ChatGPT find a title for the newest answer, as its page does after the first one."""
        tree = self.read(caller, conversation_id, account)
        asked = orjson.dumps({"message_id": tree.get("current_node")})
        path = f"conversation/gen_title/{body.conversation_path(conversation_id)}"
        for candidate in self._accounts(caller, account):
            head, told = self._fetch(caller, candidate, "POST", path, asked)
            found = json_of(told)
            if (
                head.status == 200
                and isinstance(found, dict)
                and isinstance(found.get("title"), str)
            ):
                return str(found["title"])
            if head.status == 200 and isinstance(found, dict):  # it has one already
                return str(tree.get("title") or "")
            if head.status != 404:
                raise failures.from_response(head.status, head.headers, told)
        raise NoConversation()

    def _accounts(self, caller: Caller, account: str | None) -> tuple[Account, ...]:
        if caller.token:
            return (self._backend.account_of(caller.token),)
        if not caller.may_spend:
            raise Unauthorized(
                "That conversation is at ChatGPT; send your access token, or a client key."
            )
        return (
            self._backend.pool.only(account)
            if account
            else self._backend.pool.in_turn()
        )

    def _fetch(
        self,
        caller: Caller,
        account: Account,
        method: str,
        path: str,
        told: bytes = b"",
    ) -> tuple[Head, bytes]:
        headers = body.headers(
            account.token, self._backend.extras, "", own=bool(caller.token)
        )
        if told:
            headers["Content-Type"] = "application/json"
        exchange = self._backend.transport.send(
            Call(method, f"{self._backend.place_for(None).base}/{path}", headers, told)
        )
        until, answer = time.monotonic() + self._seconds, b""
        try:
            head = exchange.head(self._seconds)
            while head and (piece := exchange.read(max(0.0, until - time.monotonic()))):
                answer += piece
                if len(answer) > LONGEST_TREE:
                    raise UpstreamFailed(
                        "The upstream's answer is larger than anything that was asked for."
                    )
            if head is None or piece is None:
                raise UpstreamFailed(
                    f"The upstream did not answer within {self._seconds:g} s."
                )
            return head, answer if head.status == 200 else account.hidden_in(answer)
        finally:
            exchange.close()
