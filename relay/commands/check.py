"""The command `check`: whether a service with these settings would work. It changes no data."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy import Connection, insert

from relay import schema
from relay.accounts import Account, expiry, is_refresh_token
from relay.commands.keys import keys_in_force
from relay.database import Database, check_private, open_database, sqlite_path
from relay.database_errors import refused_start
from relay.domain import Caller
from relay.errors import RelayError, StoreFailed, Unauthorized
from relay.ids import new_id
from relay.server import in_place
from relay.service import default_upstream, open_upstreams
from relay.setting_warnings import find_warnings
from relay.settings import Settings, SettingsError
from relay.startup import describe_database, describe_keys, upstream_address
from relay.tables import leases
from relay.transports.selection import open_transports

SOON = 3 * 86400.0  # seconds before its end that a token is warned of


class Finding(NamedTuple):
    """One line of the report."""

    level: Literal["ok", "warning", "error"]
    text: str


def check() -> int:
    """Print what is found, a line each; the exit status: 1 if any of them is an error."""
    status = 0
    for finding in _findings():
        sys.stdout.write(f"{finding.level}: {finding.text}\n")
        sys.stdout.flush()
        if finding.level == "error":
            status = 1
    return status


def _findings() -> Iterator[Finding]:
    try:
        settings = Settings.load()
        warnings = find_warnings(settings, os.environ)
    except (SettingsError, OSError) as error:
        yield Finding("error", f"settings: {error}")
        return
    for warning in warnings:
        yield Finding("warning", f"settings: {warning}")
    yield Finding("ok", "settings: all were read")
    yield _check_keys(settings)
    yield _check_database(settings)
    yield _check_upstream(settings)
    yield from _check_tokens(settings)


def _check_keys(settings: Settings) -> Finding:
    try:
        owners = [key.owner for key in keys_in_force(settings)]
    except (SettingsError, OSError) as error:
        return Finding("error", f"client keys: {error}")
    if not owners and not settings.authorization:
        return Finding("ok", "client keys: none was made yet")
    return Finding("ok", f"client keys: {describe_keys(settings, owners)}")


def _check_database(settings: Settings) -> Finding:
    name = f"database: {describe_database(settings)}"
    path = sqlite_path(settings.database())
    try:
        check_private(Path(settings.data_dir))
        if path is not None and not path.exists():
            return _check_new_database(name, path)
        version = _use_database(settings.database())
    except StoreFailed as error:
        return Finding("error", f"{name}: {error}")
    if version is None:
        return Finding("ok", f"{name} is empty")
    if version > schema.NEWEST_VERSION:
        return Finding("error", f"{name} is of a newer version ({version})")
    if version < schema.NEWEST_VERSION:
        return Finding("ok", f"{name} can be used; the next start changes its tables")
    return Finding("ok", f"{name} can be read and written")


def _check_new_database(name: str, path: Path) -> Finding:
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("error", f"{name} cannot be made: {folder} cannot be written")
    return Finding("ok", f"{name} is made at the first start")


def _use_database(url: str) -> int | None:
    """The version of the tables, after a row was written and deleted. Raises StoreFailed."""
    database = open_database(url, in_place)
    name = f"check/{new_id()}"
    lease = {"name": name, "holder": "check", "expires": 0.0}

    def write(connection: Connection) -> None:
        connection.execute(insert(schema.leases), lease)

    try:
        version = database.read(schema.stored_version)
        if version == schema.NEWEST_VERSION:
            database.write(write)
            database.write(lambda connection: leases.delete_any_lease(connection, name))
        elif version is None or version < schema.NEWEST_VERSION:
            _rehearse_start(database)
        return version
    except StoreFailed as error:
        raise refused_start(error, url) from error
    finally:
        database.close()


class _Rehearsed(StoreFailed):
    """Undoes what was tried."""


def _rehearse_start(database: Database) -> None:
    """Do what a start does to the tables, and undo it. Raises StoreFailed where it cannot be done."""

    def work(connection: Connection) -> None:
        schema.bring_up_to_date(connection)
        raise _Rehearsed()

    with suppress(_Rehearsed):
        database.write(work)


def _check_upstream(settings: Settings) -> Finding:
    try:
        transports = open_transports(settings)
    except SettingsError as error:
        return Finding("error", f"upstream: {error}")
    try:
        upstreams = open_upstreams(settings, transports, in_place())
        name = default_upstream(settings, upstreams)
        if name == "chatgpt-web" and any(map(is_refresh_token, settings.access_token)):
            return _unasked(settings, name)
        models = upstreams[name].models(Caller("owner", may_spend=True))
    except SettingsError as error:
        return Finding("error", f"upstream: {error}")
    except Unauthorized:
        return Finding("ok", f"upstream: {name} asks with its callers' own tokens")
    except RelayError as error:
        address = upstream_address(settings, name)
        return Finding("error", f"upstream: {name} at {address}: {error}")
    finally:
        transports.close()
    if name == "offline":
        level: Literal["ok", "warning"] = "warning"
        if settings.upstream == "offline":
            level = "ok"
        return Finding(level, "upstream: the offline responder, which is no model")
    return _check_models(settings, name, [model.id for model in models])


def _unasked(settings: Settings, name: str) -> Finding:
    """A refresh token changes when it is used, and nothing is changed here."""
    address = upstream_address(settings, name)
    return Finding(
        "ok", f"upstream: {name} at {address} is not asked here, for a refresh token"
    )


def _check_models(settings: Settings, name: str, models: list[str]) -> Finding:
    text = f"upstream: {name} at {upstream_address(settings, name)} lists {len(models)} model"
    if len(models) != 1:
        text += "s"
    wanted = settings.openai_model if name == "openai" else ""
    if wanted and wanted not in models:
        return Finding(
            "warning", f"{text}, and {wanted} (OPENAI_MODEL) is none of them"
        )
    return Finding("ok", text)


def _check_tokens(settings: Settings) -> Iterator[Finding]:
    now = time.time()
    for account in Account.of_setting("ACCESS_TOKEN", settings.access_token):
        if is_refresh_token(account.token):
            text = f"{account.log_name}: a refresh token, which gets access tokens"
            yield Finding("ok", text)
        else:
            yield _check_token(account.log_name, expiry(account.token), now)


def _check_token(name: str, expiry: float | None, now: float) -> Finding:
    if expiry is None:
        return Finding("ok", f"{name}: it does not say when it expires")
    at = f"{datetime.fromtimestamp(expiry, timezone.utc):%Y-%m-%d %H:%M} UTC"
    if expiry <= now:
        return Finding("error", f"{name}: it expired at {at}")
    level: Literal["ok", "warning"] = "ok"
    if expiry <= now + SOON:
        level = "warning"
    return Finding(level, f"{name}: it expires at {at}")
