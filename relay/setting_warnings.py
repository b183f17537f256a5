"""What an operator may have meant otherwise: misspelt names, lines that cannot be read, values without effect.

No warning holds a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from relay.settings import ENV_FILE, Settings, names_of, read_env_file
from relay.values import frozen

#: how similar an unknown name must be to a known one, 0 to 1; the environment has many names of other programs
FILE_SIMILARITY = 0.66
ENVIRONMENT_SIMILARITY = 0.9
SHORTEST_IN_ENVIRONMENT = 8
#: what older services read and this one does not -> why
FORMER_NAMES = {
    "CF_FILE_URL": "a challenge of Cloudflare's is never solved here",
    "EXPORT_PROXY_URL": "files go by PROXY_URL, as everything that is ChatGPT's",
}
KNOWN_NAMES = tuple(name for known in fields(Settings) for name in names_of(known))


def find_warnings(
    settings: Settings, environ: Mapping[str, str], path: Path = ENV_FILE
) -> list[str]:
    """A sentence for each thing in the environment and the file that may be meant otherwise.

    `settings`: what was read from both. Raises SettingsError or OSError for a file that cannot be read.
    """
    return [
        *_unreadable_lines(path),
        *_former_names(environ, path),
        *_misspelt_in_file(path),
        *_misspelt_in_environment(environ),
        *_overridden(environ, path),
        *_without_effect(settings),
    ]


def _unreadable_lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        bindings = list(parse_stream(file))
    for binding in bindings:
        # a line without "=" may be a secret that was pasted, so nothing of it is quoted
        if binding.error:
            yield f"{path}, line {_line_of(binding)}: it is no NAME=value, and is ignored."
        elif binding.key is not None and binding.value is None:
            yield f"{path}, line {_line_of(binding)}: it is no NAME=value, and is ignored."


def _line_of(binding: Binding) -> int:
    """The number of a binding's line; the parser counts from the empty lines before it."""
    original = binding.original
    content = original.string.lstrip()
    return original.line + original.string.removesuffix(content).count("\n")


def _former_names(environ: Mapping[str, str], path: Path) -> Iterator[str]:
    given = {**read_env_file(path), **environ}
    for name, reason in FORMER_NAMES.items():
        if given.get(name):
            yield f"{name} has no effect: {reason}."


def _misspelt_in_file(path: Path) -> Iterator[str]:
    for name, value in read_env_file(path).items():
        nearest = _nearest(name, FILE_SIMILARITY)
        if nearest is not None and value is not None:
            yield f"{name} in {path} is no setting: is {nearest} meant?"


def _misspelt_in_environment(environ: Mapping[str, str]) -> Iterator[str]:
    for name in environ:
        if len(name) < SHORTEST_IN_ENVIRONMENT:
            continue
        nearest = _nearest(name, ENVIRONMENT_SIMILARITY)
        if nearest is not None:
            yield f"{name} in the environment is no setting: is {nearest} meant?"


def _nearest(name: str, similarity: float) -> str | None:
    """The known name that an unknown one is similar to; None for a known one, and where none is similar."""
    if name in KNOWN_NAMES or name in FORMER_NAMES:
        return None
    matches = get_close_matches(name.upper(), KNOWN_NAMES, n=1, cutoff=similarity)
    return matches[0] if matches else None


@frozen
class _Given:
    """A name under which a setting is given, its value, and where it stands."""

    name: str
    value: str
    place: str


def _overridden(environ: Mapping[str, str], path: Path) -> Iterator[str]:
    """Values that another value of the same setting overrides."""
    in_file = read_env_file(path)
    for known in fields(Settings):
        names = names_of(known)
        given = [
            _Given(name, environ.get(name, ""), "the environment") for name in names
        ]
        given += [
            _Given(name, value or "", str(path))
            for name, value in in_file.items()
            if name in names
        ]
        given = [each for each in given if each.value]
        for other in given[1:]:
            if other.value != given[0].value:
                yield _override_warning(given[0], other)


def _override_warning(counts: _Given, other: _Given) -> str:
    return (
        f"{other.name} in {other.place} has no effect: {counts.name} in {counts.place} "
        "overrides it."
    )


@frozen
class _Rule:
    """When settings have no effect. `names`: fields of Settings; `reason`: the end of the sentence."""

    names: tuple[str, ...]
    applies: Callable[[Settings], bool]
    reason: str


_RULES = (
    _Rule(
        ("chatgpt_base_url",),
        lambda settings: bool(settings.reverse_proxy),
        "has no effect: REVERSE_PROXY is asked instead",
    ),
    _Rule(
        ("conversation_only", "pow_difficulty", "arkose_token_url"),
        lambda settings: bool(settings.reverse_proxy),
        "has no effect: REVERSE_PROXY takes care of what ChatGPT wants before a question",
    ),
    _Rule(
        ("pow_difficulty", "arkose_token_url"),
        lambda settings: settings.conversation_only and not settings.reverse_proxy,
        "has no effect: CONVERSATION_ONLY=true leaves out what it is for",
    ),
    _Rule(
        ("openai_model", "openai_headers", "openai_body"),
        lambda settings: not _describes_openai(settings),
        "has no effect: neither OPENAI_API_KEY nor OPENAI_BASE_URL is set",
    ),
    _Rule(
        ("access_token", "reverse_proxy"),
        lambda settings: settings.upstream in ("offline", "openai"),
        "has no effect on new conversations: UPSTREAM names another upstream",
    ),
    _Rule(
        ("openai_api_key", "openai_base_url"),
        lambda settings: settings.upstream in ("offline", "chatgpt-web"),
        "has no effect on new conversations: UPSTREAM names another upstream",
    ),
    _Rule(
        ("openai_api_key", "openai_base_url"),
        lambda settings: settings.upstream == "auto" and _describes_chatgpt(settings),
        "has no effect on new conversations: ACCESS_TOKEN or REVERSE_PROXY is set, so "
        "ChatGPT answers them. UPSTREAM=openai changes that",
    ),
    _Rule(
        ("tls_client",),
        lambda settings: not _asks_by_https(settings),
        "has no effect: ChatGPT's address is no https one, so there is no TLS to shape",
    ),
    _Rule(
        ("proxy_url", "tls_client"),
        lambda settings: (
            bool(settings.openai_base_url)
            and settings.upstream in ("auto", "openai")
            and not (settings.upstream == "auto" and _describes_chatgpt(settings))
        ),
        "has no effect on new conversations: the server of OPENAI_BASE_URL is asked "
        "directly",
    ),
    _Rule(
        ("allowed_hosts",),
        lambda settings: settings.authorization not in ((), ("none",)),
        "has no effect: it is for a service that asks for no client key",
    ),
)


def _describes_openai(settings: Settings) -> bool:
    return bool(settings.openai_api_key or settings.openai_base_url)


def _describes_chatgpt(settings: Settings) -> bool:
    return bool(settings.access_token or settings.reverse_proxy)


def _asks_by_https(settings: Settings) -> bool:
    addresses = (*settings.chatgpt_addresses, *settings.reverse_proxy_allow)
    return any(address.startswith("https://") for address in addresses)


def _without_effect(settings: Settings) -> Iterator[str]:
    for rule in _RULES:
        if not rule.applies(settings):
            continue
        for known in fields(Settings):
            if known.name in rule.names and _is_given(settings, known.name):
                yield f"{known.metadata['env']} {rule.reason}."


def _is_given(settings: Settings, name: str) -> bool:
    """Whether a setting has another value than its default."""
    [known] = [known for known in fields(Settings) if known.name == name]
    default = known.default
    if default is MISSING:
        return bool(getattr(settings, name))
    return bool(getattr(settings, name) != default)
