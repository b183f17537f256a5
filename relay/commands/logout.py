"""The command `logout`: a sign-in is kept no longer, and is ended at its issuer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from relay.commands.sign_ins import (
    find_sign_ins,
    open_issuer,
    opened_transport,
    revoke,
)
from relay.commands.terminal import Terminal
from relay.settings import Settings
from relay.signin.keeping import KeptSignIn
from relay.startup import describe_database


def logout(settings: Settings, name: str | None) -> int:
    """Remove one sign-in, the only one or that of an account's name or e-mail address; the exit status."""
    terminal = Terminal(sys.stdin, sys.stdout)
    sign_ins = find_sign_ins(settings)
    if sign_ins is None:
        return explain(terminal, (), name)
    with closing(sign_ins), opened_transport(settings) as transport:
        kept = sign_ins.list()
        found = choose(kept, name)
        if found is None:
            return explain(terminal, kept, name)
        last = sign_ins.remove(found)
        terminal.say(f"Signed out {found.person.label}, here {found.account}.")
        where = describe_database(settings)
        terminal.say(f"Its refresh token was removed from {where}.")
        revoke(open_issuer(settings, transport), terminal, last)
    terminal.say("A service that runs asks with it no more, within seconds.")
    return 0


def choose(kept: Sequence[KeptSignIn], name: str | None) -> KeptSignIn | None:
    """The sign-in that is meant; None where none or several could be."""
    meant = [each for each in kept if name is None or is_named(each, name)]
    return meant[0] if len(meant) == 1 else None


def is_named(sign_in: KeptSignIn, name: str) -> bool:
    email = sign_in.person.email
    return name == sign_in.account or bool(email) and name.lower() == email.lower()


def explain(terminal: Terminal, kept: Sequence[KeptSignIn], name: str | None) -> int:
    """Say why nothing was removed, and what there is; the exit status."""
    if not kept:
        sys.stderr.write("logout: no sign-in is kept: there is nothing to remove.\n")
        return 1
    for each in kept:
        terminal.say(f"{each.account}  {each.person.label}")
    wrong = "several sign-ins are kept"
    if name is not None:
        wrong = "that name is none of them, or stands for several"
    sys.stderr.write(f"logout: {wrong}: say logout NAME, as account-... above.\n")
    return 1
