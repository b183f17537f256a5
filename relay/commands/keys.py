"""The commands `keys`, `keys make` and `keys give`: who may ask, who asked, and whose conversations these are."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path

from relay.access import (
    OPEN,
    Key,
    check_name,
    first_key,
    key_file,
    new_key,
    parse_keys,
)
from relay.database import check_private, sqlite_path
from relay.server import in_place
from relay.settings import Settings, SettingsError
from relay.startup import command_line, owners_without_key
from relay.store import Store
from relay.usage import UsageStore


def list_keys(settings: Settings) -> int:
    """Print the name of each client key, when it last asked and its conversations; the exit status."""
    names = [key.owner for key in keys_in_force(settings)]
    owners = list(dict.fromkeys(names))
    last_asks, counts = _read_owners(settings)
    rows = [_row(owner, last_asks, counts) for owner in owners]
    without_key = owners_without_key(counts, owners)
    rows += [
        (*_row(owner, last_asks, counts), "no client key") for owner in without_key
    ]
    if not owners:
        sys.stdout.write("There are no client keys yet.\n")
        rows = [_row(owner, last_asks, counts) for owner in counts]
    if not rows:
        return 0
    _print_table([("name", "last asked", "conversations"), *rows])
    if without_key:
        example = command_line("keys", "give", next(iter(without_key)), "NAME")
        sys.stdout.write(
            f"\nConversations without a client key can be given to another name:\n"
            f"    {example}\n"
        )
    return 0


def make_key(settings: Settings, name: str | None) -> int:
    """Print a new client key, and on standard error how it comes into force; the exit status."""
    keys = keys_in_force(settings)
    if name is not None:
        check_name(name)
        if any(key.owner == name for key in keys):
            raise SettingsError(f"There is a client key of the name {name} already.")
    key = new_key()
    sys.stdout.write(f"{key}\n")
    sys.stdout.flush()
    entry = f"{name or 'NAME'}:{key}"
    sys.stderr.write(_how_to_add(settings, keys, entry))
    return 0


def give(settings: Settings, former_owner: str, owner: str) -> int:
    """Make all conversations and usage of one owner another's, and print what there was; the exit status."""
    check_name(owner)
    store = open_store(settings)
    count = 0
    nameless = 0
    has_usage = False
    if store is not None:
        try:
            has_usage = UsageStore(store.database).give(former_owner, owner)
            count, nameless = store.give(former_owner, owner)
        finally:
            store.close()
    if not count and not has_usage:
        sys.stderr.write(f"{former_owner} has no conversations.\n")
        return 1
    if count:
        sys.stdout.write(f"{owner} has {_count(count)} of {former_owner} now.\n")
    else:
        sys.stdout.write(f"{owner} has the usage of {former_owner} now.\n")
    if nameless:
        sys.stdout.write(
            f"{_count(nameless)} lost the name that {owner} has given to another: the id "
            "leads there.\n"
        )
    if all(key.owner != owner for key in keys_in_force(settings)):
        sys.stderr.write(f"No client key has the name {owner} in these settings.\n")
    return 0


def keys_in_force(settings: Settings) -> tuple[Key, ...]:
    """The client keys of a service with these settings. Makes none. Raises SettingsError."""
    if settings.authorization == (OPEN,):
        return ()
    if settings.authorization:
        return parse_keys(settings.authorization)
    folder = Path(settings.data_dir)
    if not key_file(folder).exists():
        return ()
    key, _ = first_key(folder)
    return parse_keys((f"owner:{key}",))


def open_store(settings: Settings) -> Store | None:
    """The store, its tables brought up to date; None where there is no database yet. Raises StoreFailed."""
    check_private(Path(settings.data_dir))
    path = sqlite_path(settings.database())
    if path is not None and not path.exists():
        return None
    return Store(settings.database(), in_place)


def _read_owners(settings: Settings) -> tuple[dict[str, float], dict[str, int]]:
    """When each owner last asked, and how many conversations each has."""
    store = open_store(settings)
    if store is None:
        return {}, {}
    try:
        return store.last_asks(), store.owners_with_counts()
    finally:
        store.close()


def _row(
    owner: str, last_asks: dict[str, float], counts: dict[str, int]
) -> tuple[str, ...]:
    last_asked = last_asks.get(owner)
    return owner, _time(last_asked), str(counts.get(owner, 0))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    at = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    width = max(len(row[0]) for row in rows)
    for name, last_asked, count, *remark in rows:
        line = f"{name:{width}}  {last_asked:20}  {count:13}  {''.join(remark)}"
        sys.stdout.write(f"{line.rstrip()}\n")


def _how_to_add(settings: Settings, keys: tuple[Key, ...], entry: str) -> str:
    """How a new entry comes into AUTHORIZATION, and what must stand beside it."""
    if settings.authorization == (OPEN,) or not keys:
        return f"Set AUTHORIZATION={entry} and start the service again.\n"
    if not settings.authorization:
        path = key_file(Path(settings.data_dir))
        return (
            f"The key in {path} counts only while AUTHORIZATION is unset, so it goes "
            f"there as well:\n    AUTHORIZATION=owner:$(cat {path}),{entry}\n"
            "In a file of settings, write the key itself in place of $(cat ...). Then "
            "start the service again.\n"
        )
    unnamed = ""
    if len(keys) == 1 and ":" not in settings.authorization[0]:
        unnamed = (
            " The key that stands there has no name: write owner: before it, and it "
            "keeps its conversations."
        )
    return (
        f"Add it to AUTHORIZATION after a comma: {entry}\n"
        f"Then start the service again.{unnamed}\n"
    )


def _count(count: int) -> str:
    return f"{count} conversation{'s' * (count != 1)}"
