"""What a start says: who answers, where the data and the client key are, how to ask; and what systemd is told."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from sqlalchemy import make_url

from relay.access import OPEN, key_file
from relay.accounts import Account
from relay.database import sqlite_path
from relay.errors import StoreFailed
from relay.service import Service
from relay.settings import Settings
from relay.systemd import ADDRESS
from relay.transports.selection import proxies_of
from relay.upstreams.chatgpt_web import may_ask_without_account, places_of
from relay.upstreams.openai.body import DEFAULT_BASE
from relay.upstreams.openai.body import base as openai_base

log = logging.getLogger("chatgpt_webapi")

OPERATORS_COMMAND = "chatgpt-webapi"  # of deploy/, as root runs it
#: of a listening socket: a host and a port, or the path of a UNIX socket
Address: TypeAlias = "tuple[str, int] | str"

NOTHING_CONFIGURED = (
    "No model is configured: new conversations are answered by the offline responder, "
    "which is no model. Set OPENAI_BASE_URL or OPENAI_API_KEY for an OpenAI-compatible "
    "API, or ACCESS_TOKEN for ChatGPT."
)
OFFLINE_CHOSEN = (
    "New conversations are answered by the offline responder, which is no model: "
    "UPSTREAM=offline."
)
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_OF_A_TOKEN = re.compile(r"(account|token)-[0-9a-f]+")


class Line(NamedTuple):
    """A line of the log. `level`: one of `logging`'s."""

    level: int
    text: str


def log_start(service: Service, address: Address) -> None:
    """Log what whoever started the service should know. `address`: where it listens."""
    for line in describe_start(service, address):
        log.log(line.level, "%s", line.text)


def describe_start(service: Service, address: Address) -> list[Line]:
    """The lines of `log_start`. None of them has a secret."""
    settings = service.settings
    upstream = service.routing.default_upstream
    return [
        describe_upstream(settings, upstream, service.tokens.stored),
        *describe_way(settings),
        Line(logging.INFO, f"Conversations are kept in {describe_database(settings)}."),
        Line(logging.INFO, describe_keys(settings, service.access.owners)),
        *_conversations_without_key(service),
        Line(logging.INFO, describe_example(service, address)),
    ]


def describe_upstream(
    settings: Settings, upstream: str, stored: Sequence[Account]
) -> Line:
    """Who answers new conversations, and where. `stored`: the accounts that the database has."""
    if upstream == "offline":
        if settings.upstream == "offline":
            return Line(logging.INFO, OFFLINE_CHOSEN)
        return Line(logging.WARNING, NOTHING_CONFIGURED)
    text = f"New conversations are answered by {upstream}"
    if upstream == "openai":
        model = "the first model that it lists"
        if settings.openai_model:
            model = f"the model {settings.openai_model}"
        text += f" at {upstream_address(settings, upstream)}, by {model}"
    if upstream == "chatgpt-web":
        text += f" at {upstream_address(settings, upstream)}, with "
        text += describe_accounts(settings, stored)
    return Line(logging.INFO, f"{text}.")


def describe_accounts(settings: Settings, stored: Sequence[Account]) -> str:
    """Whose accounts ChatGPT is asked with."""
    kinds = []
    signed_in = [a for a in stored if a.sign_in and a.sign_in.source == "login"]
    for name, noun, count in (
        ("ACCESS_TOKEN", "token", len(settings.access_token)),
        ("login", "account", len(signed_in)),
        ("the pool", "account", len(stored) - len(signed_in)),
    ):
        if count:
            kinds.append(f"{name} ({count} {noun}{'s' * (count > 1)})")
    if kinds:
        return " and ".join(kinds)
    callers = "the access tokens of its callers"
    return (
        f"no account, and {callers}" if may_ask_without_account(settings) else callers
    )


def describe_way(settings: Settings) -> list[Line]:
    """Through which proxies and with which TLS ChatGPT and OpenAI are asked; nothing where it is neither."""
    lines = []
    if settings.proxy_url:
        proxies = ", then ".join(map(str, proxies_of(settings)))
        text = f"ChatGPT and OpenAI are asked through {proxies}"
        if settings.openai_base_url:
            text += "; the server of OPENAI_BASE_URL directly"
        lines.append(Line(logging.INFO, f"{text}."))
    if settings.tls_client:
        text = f"ChatGPT is asked by tls-client, as {settings.tls_client} is."
        lines.append(Line(logging.INFO, text))
    return lines


def upstream_address(settings: Settings, upstream: str) -> str:
    """Where an upstream is, as the settings say; "" for one that is nowhere else."""
    if upstream == "openai":
        return openai_base(settings.openai_base_url or DEFAULT_BASE)
    if upstream == "chatgpt-web":
        return " and ".join(place.base for place in places_of(settings))
    return ""


def describe_database(settings: Settings) -> str:
    """The database's file, or its address without the password."""
    path = sqlite_path(settings.database())
    if path is not None:
        return str(path.absolute())
    address = make_url(settings.database()).difference_update_query(["password"])
    return address.render_as_string(hide_password=True)


def describe_keys(settings: Settings, owners: Iterable[str]) -> str:
    """Where the client keys are that this service asks for."""
    if settings.authorization == (OPEN,):
        return "No client key is asked for: AUTHORIZATION=none."
    if settings.authorization:
        names = ", ".join(owners)
        return f"Client keys are those of AUTHORIZATION: {names}."
    if any(owners):
        return f"The client key is in {key_file(Path(settings.data_dir)).absolute()}."
    return "No client key is asked for: there is nothing to protect."


def owners_without_key(counts: dict[str, int], owners: Sequence[str]) -> dict[str, int]:
    """The owners of stored conversations that no client key opens, with the number of their conversations.

    `counts`: of all owners; `owners`: those with a key. The account of a token needs none.
    """
    reachable = set(owners) or {"anonymous"}
    return {
        owner: count
        for owner, count in counts.items()
        if owner not in reachable and not _OF_A_TOKEN.fullmatch(owner)
    }


def _conversations_without_key(service: Service) -> list[Line]:
    owners = service.access.owners
    try:
        counts = service.store.owners_with_counts()
    except StoreFailed:
        return []  # the log says so already
    receiver = "NAME"
    if len(owners) <= 1:
        receiver = owners[0] if owners else "anonymous"
    return [
        Line(
            logging.WARNING,
            f"{count} conversation{'s' * (count > 1)} of {owner} cannot be reached: no "
            f"client key has this name. To give them to another: "
            f"{command_line('keys', 'give', owner, receiver)}",
        )
        for owner, count in owners_without_key(counts, owners).items()
    ]


def describe_example(service: Service, address: Address) -> str:
    """How to ask this service from a shell; what is printed works as it is, where the client key is in a file."""
    example = _example(service, address)
    if _needs_token(service):
        return f"Try it, with an access token of ChatGPT's in place of TOKEN: {example}"
    if service.settings.authorization and service.access.needs_key:
        return f"Try it, with a client key in place of KEY: {example}"
    return f"Try it: {example}"


def _needs_token(service: Service) -> bool:
    """Whether new conversations go where only callers' own credentials are used."""
    upstream = service.upstreams[service.routing.default_upstream]
    return upstream.accepts_caller_tokens and not upstream.needs_client_key


def _example(service: Service, address: Address) -> str:
    words = ["curl", *_credential(service)]
    words += ["--data-urlencode", "'prompt=hello'"]
    path = f"{service.settings.api_prefix}/send_message"
    if isinstance(address, str):
        words += ["--unix-socket", shlex.quote(address)]
        return " ".join([*words, shlex.quote(f"http://localhost{path}")])
    host = ANY_ADDRESS.get(address[0], address[0])
    if ":" in host:
        host = f"[{host}]"
    return " ".join([*words, shlex.quote(f"http://{host}:{address[1]}{path}")])


def _credential(service: Service) -> list[str]:
    """The words of a shell line that show the client key."""
    if _needs_token(service):
        return ["-H", "'Authorization: Bearer TOKEN'"]
    if not service.access.needs_key:
        return []
    if service.settings.authorization:
        return ["-u", ":KEY"]
    path = key_file(Path(service.settings.data_dir)).absolute()
    return ["-u", f'":$(cat {shlex.quote(str(path))})"']


def command_line(*arguments: str) -> str:
    """The shell line of a command of this service, with the Python that runs now; under the unit, with its command."""
    if ADDRESS in os.environ and shutil.which(OPERATORS_COMMAND):
        return shlex.join([OPERATORS_COMMAND, *arguments])
    script = Path(__file__).parent.parent / "chatgpt_webapi.py"
    paths = [_from_here(Path(sys.executable)), _from_here(script)]
    return shlex.join([*paths, *arguments])


def _from_here(path: Path) -> str:
    """A path as it is shortest from the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
