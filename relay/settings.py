"""Settings, read once from the environment: strict, frozen, each with its name, default and meaning.

A variable that is set but empty counts as unset. A value that cannot be read refuses the start with a sentence that
names the variable. Secrets may be given as NAME_FILE, the path of a file that holds the value.
"""

from __future__ import annotations

import logging
import os
import re
from ast import literal_eval
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
from dotenv import dotenv_values
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from relay.values import frozen

T = TypeVar("T")

ENV_FILE = Path(".env")
# what it says of a line is one of the warnings of `relay.setting_warnings`
logging.getLogger("dotenv.main").setLevel(logging.ERROR)


class SettingsError(ValueError):
    """A setting cannot be read; the sentence names it and says what would do."""


def text(value: str) -> str:
    return value


def flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError("it must be true or false")
    return value.lower() in ("true", "1", "yes", "on")


def port(value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) > 65535:
        raise ValueError("it must be a port number, 0 to 65535")
    return int(value)


def workers(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 64:
        raise ValueError("it must be a number of processes, 1 to 64")
    return int(value)


def seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) or not 0 < float(value) <= 86400:
        raise ValueError(
            "it must be a number of seconds, more than 0 and at most 86400"
        )
    return float(value)


def size(value: str) -> int:
    found = re.fullmatch(r"([0-9]+) ?(|[KMG]B?)", value.upper())
    if not found or not int(found[1]):
        raise ValueError("it must be a size such as 500KB, 25MB or 1000000")
    return (
        int(found[1])
        * {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}[found[2].removesuffix("B")]
    )


def prefix(value: str) -> str:
    inner = value.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9._~/-]+", inner) or {"", ".", ".."} & set(
        inner.split("/")
    ):
        raise ValueError("it must be a path such as secret or my/api")
    return "/" + inner


def words(value: str) -> tuple[str, ...]:
    found = tuple(word for word in (part.strip() for part in value.split(",")) if word)
    if not found:
        raise ValueError("it holds commas and no value")
    return found


def credentials(value: str) -> tuple[str, ...]:
    found = words(value)
    if not all(re.fullmatch("[!#-~]+", credential) for credential in found):
        raise ValueError(
            "each must be as it was issued: ASCII, without spaces and quotes"
        )
    return found


def origins(value: str) -> tuple[str, ...]:
    found = words(value)
    for origin in found:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s@?#]+", origin):
            raise ValueError(
                "each must be * or an origin such as https://example.org, without a path"
            )
    return tuple(origin.lower() for origin in found)


def long_secret(value: str) -> str:
    if len(value) < 16:
        raise ValueError("it must have 16 characters or more")
    return value


def caller_tokens(value: str) -> bool | Literal["any"]:
    if value.lower() == "any":
        return "any"
    try:
        return flag(value)
    except ValueError:
        raise ValueError("it must be true or false, or any") from None


def hosts(value: str) -> tuple[str, ...]:
    found = words(value.lower())
    for name in found:
        if not re.fullmatch(r"[a-z0-9._-]+", name):
            raise ValueError("each must be a host name such as chat.example.org")
    return found


def networks(value: str) -> tuple[str, ...]:
    found = words(value)
    for network in found:
        try:
            if network != "*":
                ip_network(network)
        except ValueError:
            raise ValueError(
                "each must be an address, a network such as 10.0.0.0/8, or *"
            ) from None
    return found


def one_of(*choices: str) -> Callable[[str], str]:
    def choose(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"it must be one of: {', '.join(choices)}")
        return value.lower()

    return choose


def database(value: str) -> str:
    for scheme in (
        "postgres://",
        "postgresql://",
    ):  # as other programs' settings have it
        if value.startswith(scheme):
            value = "postgresql+psycopg://" + value.removeprefix(scheme)
    if not re.match(r"sqlite:///|postgresql\+psycopg://[^\s]+/[^\s/]", value):
        raise ValueError(
            "it must begin with sqlite:/// and a path, or be postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        )
    try:
        make_url(value)
    except (ArgumentError, ValueError):
        message = "it is no address of a database; in a password, : / @ and % must be written as %3A %2F %40 and %25"
        raise ValueError(message) from None
    return value


def address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
        raise ValueError(
            "it must be an address such as https://proxy.example/api, without user, query and fragment"
        )
    return value


def addresses(value: str) -> tuple[str, ...]:
    return tuple(address(word) for word in words(value))


def prefix_free(value: str) -> str:
    return prefix(value).removeprefix("/")


def count(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError("it must be a whole number, 0 or more")
    return int(value)


def days(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", value):
        raise ValueError("it must be a number of days, 0 to keep everything")
    return float(value)


PROXY_FORM = re.compile(
    r"(https?|socks5h?)://(?:[^\s:@/]*(?::[^\s@/]*)?@)?[^\s/@?#]+/?", re.IGNORECASE
)


def proxies(value: str) -> tuple[str, ...]:
    found = words(value)
    if not all(PROXY_FORM.fullmatch(word) for word in found):
        raise ValueError(
            "each must be http://, https:// or socks5h://, then HOST:PORT or USER:PASSWORD@HOST:PORT; "
            "in a password, : / @ and % must be written as %3A %2F %40 and %25"
        )
    return tuple(word.rstrip("/") for word in found)


def profile(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", value.lower()):
        raise ValueError("it must be a tls-client profile such as chrome_133")
    return value.lower()


def difficulty(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{1,32}", value.lower()):
        raise ValueError("it must be a hexadecimal number such as 000032")
    return value.lower()


def user_agents(value: str) -> tuple[str, ...]:
    try:
        found = literal_eval(value)  # JSON's quotes or Python's, as chat2api has them
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not found:
        raise ValueError('it must be a JSON array such as ["Mozilla/5.0 ..."]')
    for each in found:
        if not isinstance(each, str) or not re.fullmatch("[ -~]+", each):
            raise ValueError("each must be a text in ASCII, without line ends")
    return tuple(found)


def json_object(value: str) -> dict[str, Any]:
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError('it must be a JSON object such as {"name": "value"}')
    return found


def headers(value: str) -> dict[str, str]:
    found = json_object(value)
    for name, text in found.items():
        if (
            not re.fullmatch(r"[A-Za-z0-9-]+", name)
            or not isinstance(text, str)
            or not re.fullmatch(r"[ -~]*", text)
        ):
            raise ValueError(
                "it must be a JSON object of header names and values, in ASCII and without line ends"
            )
    return found


def aliases(value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words(value):
        name, _, model = (part.strip() for part in word.partition("="))
        is_name = re.fullmatch(r"[^\s=]+", name)
        if not is_name or not re.fullmatch(r"[^\s=]+", model):
            raise ValueError("each must be NAME=NAME, as gpt-3.5-turbo=qwen3")
        if name in found:
            raise ValueError("the same name stands in it twice")
        found[name] = model
    if found.keys() & set(found.values()):
        raise ValueError("the second of two names must not be an alias itself")
    return found


def setting(
    env: str,
    default: T,
    read: Callable[[str], T],
    meaning: str,
    *,
    also: tuple[str, ...] = (),
    secret: bool = False,
) -> T:
    known = {
        "env": env,
        "read": read,
        "meaning": meaning,
        "also": also,
        "secret": secret,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: default, repr=not secret, metadata=known)
    return field(default=default, repr=not secret, metadata=known)


@frozen
class Settings:
    """All that an operator can set."""

    host: str = setting("HOST", "127.0.0.1", text, "Address to listen on.")
    port: int = setting("PORT", 8080, port, "Port to listen on; 0 takes a free one.")
    workers: int = setting(
        "WORKERS",
        1,
        workers,
        "Processes that serve; several use several cores, and share one database.",
    )
    api_prefix: str = setting("API_PREFIX", "", prefix, "Path prefix for every route.")
    data_dir: str = setting(
        "DATA_DIR", "./data", text, "Folder for the database and the client key."
    )
    database_url: str = setting(
        "DATABASE_URL",
        "",
        database,
        "Database, SQLite or PostgreSQL; unset: a SQLite file in DATA_DIR.",
        secret=True,
    )
    authorization: tuple[str, ...] = setting(
        "AUTHORIZATION",
        (),
        words,
        "Client keys, comma-separated, each KEY or NAME:KEY; none: open to everyone.",
        also=("AUTHORIZATION_KEY",),
        secret=True,
    )
    allow_caller_tokens: bool | Literal["any"] = setting(
        "ALLOW_CALLER_TOKENS",
        True,
        caller_tokens,
        "Whether a caller may spend a credential of its own: by its form, any, or none.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        "ALLOWED_HOSTS",
        (),
        hosts,
        "Host names answered where no key is needed, beside localhost and addresses.",
    )
    forwarded_allow_ips: tuple[str, ...] = setting(
        "FORWARDED_ALLOW_IPS",
        ("127.0.0.1", "::1"),
        networks,
        "Proxies whose X-Forwarded-For counts, addresses or networks; *: any.",
    )
    public_url: str = setting(
        "PUBLIC_URL",
        "",
        address,
        "Where callers reach this service, for links to files; unset: as they asked.",
    )
    link_key: str = setting(
        "LINK_KEY",
        "",
        long_secret,
        "Signs links to files, the same on all machines; unset: one in DATA_DIR.",
        secret=True,
    )
    cors_origins: tuple[str, ...] = setting(
        "CORS_ORIGINS",
        (),
        origins,
        "Origins that browsers may call from, with credentials; *: any, without.",
    )
    upstream: str = setting(
        "UPSTREAM",
        "auto",
        one_of("auto", "offline", "chatgpt-web", "openai"),
        "Upstream of new conversations.",
    )
    access_token: tuple[str, ...] = setting(
        "ACCESS_TOKEN",
        (),
        credentials,
        "The owner's ChatGPT access tokens.",
        also=("access_token",),
        secret=True,
    )
    reverse_proxy: str = setting(
        "REVERSE_PROXY", "", address, "Where ChatGPT's web backend is reached."
    )
    reverse_proxy_allow: tuple[str, ...] = setting(
        "REVERSE_PROXY_ALLOW", (), addresses, "Reverse proxies that callers may name."
    )
    chatgpt_base_url: tuple[str, ...] = setting(
        "CHATGPT_BASE_URL",
        ("https://chatgpt.com",),
        addresses,
        "Origins of ChatGPT, where REVERSE_PROXY is unset.",
    )
    conversation_path: str = setting(
        "CONVERSATION_PATH",
        "conversation",
        prefix_free,
        "Path of a turn below the base.",
    )
    chatgpt_headers: Mapping[str, str] = setting(
        "CHATGPT_HEADERS",
        {},
        headers,
        "Extra headers for ChatGPT's backend, as JSON.",
        secret=True,
    )
    chatgpt_body: Mapping[str, Any] = setting(
        "CHATGPT_BODY", {}, json_object, "Extra fields of a turn's body, as JSON."
    )
    conversation_only: bool = setting(
        "CONVERSATION_ONLY",
        False,
        flag,
        "Whether ChatGPT is sent the question alone, without the requests before it.",
    )
    pow_difficulty: str = setting(
        "POW_DIFFICULTY",
        "000032",
        difficulty,
        "Hardest proof of work done for ChatGPT; less is harder.",
    )
    arkose_token_url: str = setting(
        "ARKOSE_TOKEN_URL",
        "",
        address,
        "A service of yours that gives Arkose tokens.",
        also=("ARK0SE_TOKEN_URL",),
    )
    auth_key: str = setting(
        "AUTH_KEY", "", text, "Key of a private gateway to ChatGPT.", secret=True
    )
    user_agents: tuple[str, ...] = setting(
        "USER_AGENTS",
        (),
        user_agents,
        "What ChatGPT is told as user agent, as a JSON array: one for each account.",
    )
    proxy_url: tuple[str, ...] = setting(
        "PROXY_URL",
        (),
        proxies,
        "Proxies on the way to ChatGPT and OpenAI, comma-separated, in the order in which they are tried.",
        also=("GO_CHATGPT_API_PROXY", "PROXY"),
        secret=True,
    )
    tls_client: str = setting(
        "TLS_CLIENT", "", profile, "tls-client profile of calls to ChatGPT."
    )
    auth_base_url: str = setting(
        "AUTH_BASE_URL",
        "https://auth.openai.com",
        address,
        "Origin of the pages that sign in.",
    )
    auth_url: str = setting(
        "AUTH_URL", "", address, "A service of yours that signs in instead."
    )
    oauth_token_url: str = setting(
        "OAUTH_TOKEN_URL",
        "https://auth.openai.com/oauth/token",
        address,
        "Where refresh tokens are exchanged.",
    )
    openai_api_key: tuple[str, ...] = setting(
        "OPENAI_API_KEY",
        (),
        credentials,
        "The owner's keys of an OpenAI-compatible API.",
        secret=True,
    )
    openai_base_url: str = setting(
        "OPENAI_BASE_URL",
        "",
        address,
        "Where an OpenAI-compatible API is; unset: OpenAI.",
        also=("OPENAI_API_BASE",),
    )
    openai_model: str = setting(
        "OPENAI_MODEL",
        "",
        text,
        "Model for asks that name none; unset: the first listed.",
    )
    openai_headers: Mapping[str, str] = setting(
        "OPENAI_HEADERS",
        {},
        headers,
        "Extra headers for the OpenAI-compatible API, as JSON.",
        secret=True,
    )
    openai_body: Mapping[str, Any] = setting(
        "OPENAI_BODY",
        {},
        json_object,
        "Extra body fields for the OpenAI-compatible API, as JSON; null leaves one out.",
    )
    enable_gateway: bool = setting(
        "ENABLE_GATEWAY",
        True,
        flag,
        "Whether all of ChatGPT's web API passes through, not its conversations alone.",
    )
    platform_base_url: str = setting(
        "PLATFORM_BASE_URL",
        "https://api.openai.com",
        address,
        "Origin of OpenAI's platform, for callers with a key or session of their own.",
    )
    model_aliases: Mapping[str, str] = setting(
        "MODEL_ALIASES",
        {},
        aliases,
        "Other names of models, comma-separated, each NAME=NAME.",
    )
    check_model: bool = setting(
        "CHECK_MODEL",
        False,
        flag,
        "Whether a model that the upstream does not list is refused.",
    )
    openai_responses: str = setting(
        "OPENAI_RESPONSES",
        "auto",
        one_of("auto", "true", "false"),
        "Whether the OpenAI-compatible API has /v1/responses: auto, true or false.",
    )
    history_disabled: bool = setting(
        "HISTORY_DISABLED",
        True,
        flag,
        "Whether /v1/chat/completions keeps nothing, unless a request says otherwise.",
    )
    history_budget: int = setting(
        "HISTORY_BUDGET",
        32000,
        count,
        "Tokens of a conversation that go to an upstream with no memory; 0: all.",
    )
    retention_days: float = setting(
        "RETENTION_DAYS",
        0.0,
        days,
        "Days after which a conversation that rested is deleted; 0: never.",
    )
    account_concurrency: int = setting(
        "ACCOUNT_CONCURRENCY", 0, count, "Asks at once per account; 0: no bound."
    )
    retry_times: int = setting(
        "RETRY_TIMES", 3, count, "Other accounts tried after a refusal."
    )
    enable_limit: bool = setting(
        "ENABLE_LIMIT",
        True,
        flag,
        "Whether an account, or its model, rests until the end that ChatGPT's limit states.",
    )
    scheduled_refresh: bool = setting(
        "SCHEDULED_REFRESH",
        False,
        flag,
        "Whether refresh tokens are exchanged at the start and every fourth night, used or not.",
    )
    connect_timeout: float = setting(
        "CONNECT_TIMEOUT", 10.0, seconds, "Longest wait for a connection, s."
    )
    first_byte_timeout: float = setting(
        "FIRST_BYTE_TIMEOUT",
        120.0,
        seconds,
        "Longest wait for an answer's first byte, s.",
    )
    read_timeout: float = setting(
        "READ_TIMEOUT", 60.0, seconds, "Longest silence within an answer, s."
    )
    total_timeout: float = setting(
        "TOTAL_TIMEOUT", 600.0, seconds, "Longest time for one ask, in and out, s."
    )
    max_answer: int = setting(
        "MAX_ANSWER",
        32 * 1024**2,
        size,
        "Largest answer that an upstream may send, as 500KB, 32MB or bytes.",
    )
    max_body: int = setting(
        "MAX_BODY", 25 * 1024**2, size, "Largest request body, as 500KB, 25MB or bytes."
    )
    upload_by_url: bool = setting(
        "UPLOAD_BY_URL",
        False,
        flag,
        "Whether images are fetched from public addresses that callers name.",
    )
    log_level: str = setting(
        "LOG_LEVEL",
        "info",
        one_of("debug", "info", "warning", "error"),
        "What the log tells: from this level on.",
    )
    log_format: str = setting(
        "LOG_FORMAT",
        "text",
        one_of("text", "json"),
        "One line of text or of JSON per event.",
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read all settings from `env`; raises SettingsError at the first that cannot be read."""
        found: dict[str, Any] = {}
        for known in fields(cls):
            name, value = _given(
                env,
                known.metadata["env"],
                known.metadata["also"],
                known.metadata["secret"],
            )
            if not value:
                continue
            try:
                found[known.name] = known.metadata["read"](value)
            except ValueError as error:
                raise SettingsError(f"{name} cannot be read: {error}.") from None
        return cls(**found)

    @classmethod
    def load(cls) -> Settings:
        """Read all settings from the environment, and from `.env` in the working directory what that leaves unset."""
        given = {name: value for name, value in os.environ.items() if value}
        for name, value in read_env_file(ENV_FILE).items():
            if value and not given.keys() & _other_names(name):
                given.setdefault(name, value)
        return cls.from_env(given)

    @property
    def chatgpt_addresses(self) -> tuple[str, ...]:
        """Where ChatGPT is asked: at REVERSE_PROXY alone, where that is set."""
        return (self.reverse_proxy,) if self.reverse_proxy else self.chatgpt_base_url

    def database(self) -> str:
        """The database's URL, with its default filled in."""
        return (
            self.database_url or f"sqlite:///{Path(self.data_dir) / 'conversations.db'}"
        )


def _other_names(name: str) -> set[str]:
    """All names of the setting that this is a name of: the environment may have given it under another one."""
    for known in fields(Settings):
        names = set(names_of(known))
        if name in names:
            return names
    return set()


def names_of(known: Field[Any]) -> tuple[str, ...]:
    """All names of a setting, in the order in which they count."""
    names: list[str] = []
    for name in (known.metadata["env"], *known.metadata["also"]):
        names.append(name)
        if known.metadata["secret"]:
            names.append(f"{name}_FILE")
    return tuple(names)


def read_env_file(path: Path) -> dict[str, str | None]:
    """The names and values in a file as `.env` is; empty where there is none. Raises SettingsError."""
    try:
        return dotenv_values(path)
    except UnicodeDecodeError:
        raise SettingsError(f"{path} cannot be read: it is not in UTF-8.") from None


def _given(
    env: Mapping[str, str], name: str, also: tuple[str, ...], secret: bool
) -> tuple[str, str]:
    """The name and the value under which a setting was given; the first of its names that is set counts."""
    for candidate in (name, *also):
        path = env.get(f"{candidate}_FILE", "").strip() if secret else ""
        if value := env.get(candidate, "").strip():
            if path:
                raise SettingsError(
                    f"{candidate} and {candidate}_FILE are both set: leave one of them out."
                )
            return candidate, value
        if path:
            try:
                text = Path(path).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(
                    f"{candidate}_FILE names a file that cannot be read: {error}."
                ) from None
            if not text:
                raise SettingsError(f"{candidate}_FILE names a file that is empty.")
            return f"{candidate}_FILE", text
    return name, ""
