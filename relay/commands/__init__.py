"""The command line. Python 3.7 can read this module, so that an old Python gets a sentence and no traceback.

Before `serve` runs, nothing is imported that gevent has to patch.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from relay import __version__

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = "chatgpt_webapi.py"
OLDEST_PYTHON = (3, 10)
PACKAGES = ("gevent", "flask", "sqlalchemy", "orjson", "dotenv", "httptools")
OTHER_DATABASE = (
    2  # exit status of backup and restore where PostgreSQL's programs do it
)

INTERRUPTED = 130  # exit status after Ctrl-C, as a shell has it


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status. `serve` is the default."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    host = getattr(options, "host", None)
    port = getattr(options, "port", None)
    if options.command != "serve" and (host, port) != (None, None):
        parser.error("--host and --port belong to serve")
    check_python()
    if options.command == "serve":
        return serve(host, port)
    try:
        return administer(options)
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{options.command}: interrupted\n")
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The syntax of the command line. Each command sets `command`, and what it takes."""
    address = argparse.ArgumentParser(
        add_help=False, argument_default=argparse.SUPPRESS
    )
    address.add_argument("--host", help="address to listen on (HOST)")
    address.add_argument("--port", type=_port, help="port to listen on (PORT)")
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="One form POST in, the reply and its conversation ids out.",
        epilog="Settings come from the environment and .env: README.md lists them.",
        parents=[address],
        allow_abbrev=False,
    )
    version = "chatgpt-webapi " + __version__
    parser.add_argument("--version", action="version", version=version)
    parser.set_defaults(command="serve")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add(commands, "serve", "answer requests (the default)", parents=[address])
    backup = _add(commands, "backup", "copy the database to a new file")
    backup.add_argument("file", metavar="FILE", help="the file to make")
    restore = _add(commands, "restore", "put a backup in the database's place")
    restore.add_argument("file", metavar="FILE", help="a file that backup made")
    _add(commands, "check", "say whether settings, database and upstream can be used")
    keys = _add(commands, "keys", "list the client keys, and when each last asked")
    _add_key_commands(keys)
    _add_sign_in_commands(commands)
    return parser


def _add_key_commands(keys: argparse.ArgumentParser) -> None:
    commands = keys.add_subparsers(title="commands", metavar="COMMAND")
    make = _add(commands, "make", "print a new client key")
    make.set_defaults(command="keys make")
    make.add_argument("name", metavar="NAME", nargs="?", help="the key's name")
    give = _add(commands, "give", "give all conversations of one name to another")
    give.set_defaults(command="keys give")
    give.add_argument("former_owner", metavar="FROM", help="the name they are under")
    give.add_argument("owner", metavar="TO", help="the name that gets them")


def _add_sign_in_commands(commands: Any) -> None:
    login = _add(commands, "login", "sign in to ChatGPT, and keep the refresh token")
    login.set_defaults(way="device")
    ways = login.add_mutually_exclusive_group()
    for way, text in (
        ("browser", "by an address that you paste back, without a device code"),
        ("token", "by a refresh token that you have, typed or on standard input"),
    ):
        ways.add_argument(
            f"--{way}", dest="way", action="store_const", const=way, help=text
        )
    logout = _add(commands, "logout", "remove a sign-in, and revoke its token")
    logout.add_argument(
        "name", metavar="NAME", nargs="?", help="its account's name or e-mail address"
    )


def _add(
    commands: Any, name: str, text: str, **options: Any
) -> argparse.ArgumentParser:
    """Add a command; its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, allow_abbrev=False, **options
    )
    parser.set_defaults(command=name)
    return parser


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("it must be a port number, 0 to 65535")
    return number


def check_python() -> None:
    """End the process with one sentence where no command can run with this Python."""
    problem = find_problem()
    if problem:
        sys.exit(problem)


def find_problem(version: tuple[int, ...] = sys.version_info[:3]) -> str:
    """Why no command can run with this Python; "" where all can."""
    if version < OLDEST_PYTHON:
        number = ".".join(str(part) for part in version)
        return "chatgpt-webapi needs Python 3.10 or newer: {} is {}.".format(  # noqa: UP032
            sys.executable, number
        )
    missing = [name for name in PACKAGES if PathFinder.find_spec(name) is None]
    if not missing:
        return ""
    environment = os.path.join(ROOT, ".venv")
    python = os.path.join(environment, "bin", "python")
    start = shlex.join([python, os.path.join(ROOT, PROGRAM)])
    sentence = f"{sys.executable} lacks what chatgpt-webapi needs ({missing[0]})."
    if os.path.exists(python) and python != sys.executable:
        return f"{sentence} Start it with its virtual environment: {start}"
    requirements = os.path.join(ROOT, "requirements.txt")
    make = shlex.join(["python3", "-m", "venv", environment])
    install = [python, "-m", "pip", "install", "-q", "-r", requirements]
    return f"{sentence} This installs it: {make} && {shlex.join(install)} && {start}"


def serve(host: str | None, port: int | None) -> int:
    """Serve until a signal ends it. What the command line gives counts before the environment and `.env`."""
    if host is not None:
        os.environ["HOST"] = host
    if port is not None:
        os.environ["PORT"] = str(port)
    runpy.run_module("wsgi", run_name="__main__")
    return 0


def administer(options: argparse.Namespace) -> int:
    """Run any other command; its exit status. Whatever it cannot do is one sentence on standard error."""
    from relay.commands import check
    from relay.errors import RelayError
    from relay.settings import Settings, SettingsError

    try:
        if options.command == "check":
            return check.check()
        return _administer(options, Settings.load())
    except (SettingsError, RelayError, OSError) as error:
        sys.stderr.write(f"{options.command}: {error}\n")
        return 1


def _administer(options: argparse.Namespace, settings: Any) -> int:
    from relay.commands import keys

    if options.command == "keys make":
        return keys.make_key(settings, options.name)
    if options.command == "keys give":
        return keys.give(settings, options.former_owner, options.owner)
    if options.command == "keys":
        return keys.list_keys(settings)
    if options.command in ("login", "logout"):
        return _sign(options, settings)
    if options.command == "backup":
        return _back_up(settings, options.file)
    return _restore(settings, options.file)


def _sign(options: argparse.Namespace, settings: Any) -> int:
    from relay.commands import login, logout

    if options.command == "login":
        return login.login(settings, options.way)
    return logout.logout(settings, options.name)


def _back_up(settings: Any, name: str) -> int:
    from relay.commands import backup

    line = backup.postgresql_line(settings.database(), "pg_dump", Path(name))
    if line is not None:
        return _point_to(line)
    count = backup.back_up(settings.database(), Path(name))
    sys.stdout.write(f"{name} has {_count(count)}.\n")
    return 0


def _restore(settings: Any, name: str) -> int:
    from relay.commands import backup

    line = backup.postgresql_line(settings.database(), "pg_restore", Path(name))
    if line is not None:
        return _point_to(line)
    restored = backup.restore(settings.database(), Path(name))
    sys.stdout.write(
        f"{restored.database} has the {_count(restored.conversations)} of {name}.\n"
    )
    if restored.former is not None:
        sys.stdout.write(f"What was there before is kept in {restored.former}.\n")
    return 0


def _point_to(line: str) -> int:
    sys.stderr.write("The database is PostgreSQL's; its own program does this:\n")
    sys.stdout.write(f"{line}\n")
    return OTHER_DATABASE


def _count(count: int) -> str:
    return "{} conversation{}".format(count, "s" * (count != 1))
