"""Conversations that ChatGPT stores: listed, read, renamed and deleted at the account where they live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import orjson

from relay.accounts import Account
from relay.domain import Caller, RemoteFile
from relay.errors import (
    NoConversation,
    NoFile,
    Unauthorized,
    UpstreamFailed,
    UpstreamGone,
    UpstreamRefused,
)
from relay.upstreams import FoundFile
from relay.upstreams.chatgpt_web import body, failures, files
from relay.upstreams.chatgpt_web.backend import Backend
from relay.upstreams.chatgpt_web.lookups import Lookup, look_up
from relay.upstreams.chatgpt_web.procedure import parse_tree
from relay.upstreams.chatgpt_web.storage import Storage
from relay.upstreams.http import WholeResponse
from relay.upstreams.wording import error_text, parse_json

Items: TypeAlias = list[dict[str, Any]]

PAGE = 100
MOST_PAGES = 10


class WebHistory:
    """The history of the server's accounts, or of the one that a caller's own token opens.

    `seconds`: the longest wait for one answer.
    """

    def __init__(self, backend: Backend, seconds: float = 60.0) -> None:
        self._backend = backend
        self._seconds = seconds
        self._storage = Storage(tuple(place.base for place in backend.places))

    @property
    def has_accounts(self) -> bool:
        return len(self._backend.pool) > 0 and not self._backend.is_anonymous

    def recognizes(self, token: str) -> bool:
        return self._backend.recognizes(token)

    def list(self, caller: Caller, most: int) -> Items:
        found: Items = []
        for account in self._accounts(caller, None):
            found += self._list_account(caller, account, most)
        return found

    def _list_account(self, caller: Caller, account: Account, most: int) -> Items:
        """The pages of one account's list. Together they are one answer, and bounded as such."""
        found: Items = []
        offset = 0
        left = self._backend.limits.answer
        for _ in range(MOST_PAGES):
            path = f"conversations?offset={offset}&limit={PAGE}&order=updated"
            response = self._fetch(caller, account, "GET", path, largest=left)
            page = _parse_page(response)
            found += filter(_is_item, page.items)
            offset += len(page.items)
            left -= len(response.body)
            if len(page.items) < page.size or offset >= most:
                break
        return found

    def read(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> dict[str, Any]:
        path = f"conversation/{body.conversation_path(conversation_id)}"
        is_only_place = bool(account or caller.token)
        for response in self._answers(caller, account, "GET", path):
            is_unknown = response.status == 404 and _has_reason(response)
            if is_only_place or not is_unknown:
                return _printable(parse_tree(response))
        raise NoConversation()

    def change(
        self,
        caller: Caller,
        conversation_id: str,
        account: str | None,
        changes: dict[str, Any],
    ) -> None:
        path = f"conversation/{body.conversation_path(conversation_id)}"
        content = orjson.dumps(changes)
        for response in self._answers(caller, account, "PATCH", path, content):
            if response.status == 200:
                _check_changed(response)
                return
            if response.status != 404:
                raise _failure(response)
            if not _has_reason(response):
                raise UpstreamRefused(
                    "The upstream changes no conversations: a reverse proxy may pass on "
                    "the asking alone.",
                    status=404,
                )
        raise NoConversation()

    def make_title(
        self, caller: Caller, conversation_id: str, account: str | None
    ) -> str:
        """Have ChatGPT find a title for the newest answer, as its page does after the first one."""
        tree = self.read(caller, conversation_id, account)
        content = orjson.dumps({"message_id": tree.get("current_node")})
        path = f"conversation/gen_title/{body.conversation_path(conversation_id)}"
        for response in self._answers(caller, account, "POST", path, content):
            payload = parse_json(response.body)
            if response.status == 200 and isinstance(payload, dict):
                title = payload.get("title")
                has_one_already = not isinstance(title, str)
                return str(tree.get("title") or "") if has_one_already else str(title)
            if response.status != 404:
                raise _failure(response)
        raise NoConversation()

    def find_file(
        self,
        caller: Caller,
        conversation_id: str,
        account: str | None,
        file: RemoteFile,
    ) -> FoundFile:
        paths = files.paths_of(file, conversation_id)
        for candidate in self._accounts(caller, account):
            for path in paths:
                response = self._fetch(caller, candidate, "GET", path)
                address = files.address_in(response)
                if address is not None:
                    name = files.name_in(response, file)
                    call = self._storage.get(address)
                    return FoundFile(call, self._backend.transport, name)
                if not files.is_missing(response):
                    raise _failure(response)
        raise NoFile()

    def _accounts(self, caller: Caller, account: str | None) -> tuple[Account, ...]:
        if not caller.token and not caller.may_spend:
            raise Unauthorized(
                "That conversation is at ChatGPT; send your access token, or a client "
                "key."
            )
        if caller.token:
            return (self._backend.account_of(caller.token),)
        if account:
            return self._backend.pool.only(account)
        return self._backend.pool.in_turn()

    def _answers(
        self,
        caller: Caller,
        account: str | None,
        method: str,
        path: str,
        content: bytes = b"",
    ) -> Iterator[WholeResponse]:
        """What the accounts answer where the conversation may be, one after the other.

        One that turns out to be another than the named one is not asked. Raises UpstreamGone where all are.
        """
        gone: UpstreamGone | None = None
        asked = False
        for candidate in self._accounts(caller, account):
            try:
                response = self._fetch(caller, candidate, method, path, content)
            except UpstreamGone as error:
                gone = error
                continue
            asked = True
            yield response
        if gone is not None and not asked:
            raise gone

    def _fetch(
        self,
        caller: Caller,
        account: Account,
        method: str,
        path: str,
        content: bytes = b"",
        *,
        largest: int | None = None,
    ) -> WholeResponse:
        """One request. `largest`: bytes of its answer, where they are fewer than of any."""
        lookup = Lookup(method, path, bool(caller.token), content, largest)
        return look_up(self._backend, account, lookup, self._seconds)


class Page(NamedTuple):
    """A page of a list. `size`: of the backend's pages, which may be below ours."""

    items: list[Any]
    size: int


def _parse_page(response: WholeResponse) -> Page:
    payload = parse_json(response.body)
    size = PAGE
    if isinstance(payload, dict):
        limit = payload.get("limit")
        if isinstance(limit, int) and 0 < limit < PAGE:
            size = limit
        payload = payload.get("items")
    if response.status != 200 or not isinstance(payload, list):
        raise _failure(response)
    return Page(payload, size)


def _is_item(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return False
    return _is_printable(item)


def _is_printable(payload: Any) -> bool:
    """Whether JSON can be printed again: more can be read than can be printed."""
    try:
        orjson.dumps(payload)
    except orjson.JSONEncodeError:
        return False
    return True


def _printable(tree: dict[str, Any]) -> dict[str, Any]:
    """A conversation as it is. Raises UpstreamFailed for one that cannot be printed."""
    if not _is_printable(tree):
        raise UpstreamFailed("The upstream nests a conversation too deep.")
    return tree


def _has_reason(response: WholeResponse) -> bool:
    """Whether the backend itself says why; a proxy that knows no such path does not."""
    return bool(error_text(parse_json(response.body))[0])


def _check_changed(response: WholeResponse) -> None:
    payload = parse_json(response.body)
    if not isinstance(payload, dict) or not payload.get("success", True):
        raise UpstreamFailed(
            "The upstream did not say that it changed the conversation."
        )


def _failure(response: WholeResponse) -> Exception:
    return failures.from_response(
        response.status, response.head.headers, response.redacted
    )
