from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.domain import ROOT, Message, Reply, Status
from relay.errors import BadRequest, NoConversation
from relay.serving import in_place
from relay.store import Begun, Claimed, Opening, Store

ON_BOTH = True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, database: str, clock: Clock) -> Iterator[Store]:
    store = Store(database or f"sqlite:///{tmp_path}/data/test.db", in_place, clock)
    yield store
    store.close()


def new(prompt: str = "Hi", owner: str = "owner", **more: Any) -> Opening:
    ids = {
        name: str(uuid.uuid4())
        for name in ("conversation_id", "question_id", "answer_id")
    }
    if "system" in more:
        more["before"] = (Message("system", more.pop("system")),)
    return Opening(
        **{
            **ids,
            "owner": owner,
            "upstream": "offline",
            "prompt": prompt,
            "title": prompt,
            **more,
        }
    )


def following(first: Opening, prompt: str = "More", **more: Any) -> Opening:
    given = {
        "owner": first.owner,
        "conversation_id": first.conversation_id,
        "new": False,
        **more,
    }
    return new(prompt, **given)


def said(store: Store, opening: Opening, answer: str | None = "Hello") -> Opening:
    """One whole turn; a broken one where the answer is None."""
    assert store.begin(opening, 15) is not None
    end(store, opening, answer or "Hal", "whole" if answer else "broken")
    return opening


def end(
    store: Store,
    opening: Opening,
    text: str = "x",
    status: Status = "whole",
    outcome: Claimed | None = None,
) -> None:
    reason = "stop" if status == "whole" else "upstream_cut"
    store.finish(
        opening,
        Reply(text, opening.conversation_id, opening.answer_id, "m", reason),
        status,
        outcome,
    )


def texts(begun: Begun | None) -> list[str]:
    assert begun is not None
    return [message.text for message in begun.messages]


def test_a_conversation_goes_on_by_its_id_alone(store: Store) -> None:
    first = said(store, new("one", system="Be kind.", upstream="web"))
    second = said(store, following(first, "two"), "Hello again")
    begun = store.begin(following(first, "three"), 15)
    assert texts(begun) == ["Be kind.", "one", "Hello", "two", "Hello again", "three"]
    assert (
        begun
        and begun.upstream == "web"
        and begun.messages[0] == Message("system", "Be kind.")
    )
    assert store.get("owner", first.conversation_id).newest == second.answer_id


def test_it_branches_at_an_earlier_answer_and_at_the_root(store: Store) -> None:
    first = said(store, new("one", system="Be kind."))
    said(store, following(first, "two"))
    branch = following(first, "other", parent=first.answer_id)
    assert texts(store.begin(branch, 15)) == ["Be kind.", "one", "Hello", "other"]
    end(store, branch, "x")
    assert texts(store.begin(following(first, "anew", parent=ROOT), 15)) == [
        "Be kind.",
        "anew",
    ]


def test_a_broken_answer_is_kept_but_nothing_follows_it(store: Store) -> None:
    first = said(store, new("one"))
    broken = said(store, following(first, "two"), None)
    again = following(first, "three")
    assert texts(store.begin(again, 15)) == ["one", "Hello", "three"]
    end(store, again, "Hi")
    nodes = {node.id: node for node in store.get("owner", first.conversation_id).nodes}
    assert (nodes[broken.answer_id].status, nodes[broken.answer_id].text) == (
        "broken",
        "Hal",
    )
    assert nodes[broken.answer_id].finish_reason == "upstream_cut"
    assert texts(
        store.begin(following(first, "four", parent=broken.answer_id), 15)
    ) == ["one", "Hello", "four"]


def test_a_first_answer_that_broke_leaves_a_conversation_that_goes_on(
    store: Store,
) -> None:
    first = said(store, new("one", system="Be kind."), None)
    assert texts(store.begin(following(first, "two"), 15)) == ["Be kind.", "two"]


def test_another_owner_sees_nothing(store: Store) -> None:
    first = said(store, new("one", owner="alice"))
    for act in (
        lambda: store.get("bob", first.conversation_id),
        lambda: store.rename("bob", first.conversation_id, "x"),
        lambda: store.delete("bob", first.conversation_id),
        lambda: store.begin(following(first, owner="bob"), 15),
    ):
        with pytest.raises(NoConversation):
            act()
    assert store.list("bob", 0, 10) == []
    assert [kept.title for kept in store.list("alice", 0, 10)] == ["one"]


def test_an_unknown_parent_and_a_question_as_parent(store: Store) -> None:
    first, other = said(store, new()), said(store, new())
    for parent in ("no-such-id", other.answer_id):
        with pytest.raises(NoConversation, match="parent id"):
            store.begin(following(first, parent=parent), 15)
    with pytest.raises(BadRequest, match="question"):
        store.begin(following(first, parent=first.question_id), 15)
    assert store.begin(following(first), 15), "a refused turn holds no lease"


def test_one_turn_at_a_time(store: Store, clock: Clock) -> None:
    first = said(store, new())
    held = following(first, "two")
    assert store.begin(held, 15)
    assert store.begin(following(first, "three"), 15) is None
    assert [node.status for node in store.get("owner", first.conversation_id).nodes][
        -1
    ] == "open"
    end(store, held, "x")
    assert store.begin(following(first, "three"), 15)


def test_a_lease_frees_itself_when_its_holder_dies_and_lives_while_it_is_renewed(
    store: Store, clock: Clock
) -> None:
    first = said(store, new())
    dead = following(first, "two")
    assert store.begin(dead, 15)
    clock.now += 10
    store.renew([dead.holder], 15)
    clock.now += 10
    assert store.begin(following(first, "three"), 15) is None
    clock.now += 6
    assert [node.status for node in store.get("owner", first.conversation_id).nodes][
        -1
    ] == "broken"
    living = following(first, "three")
    assert texts(store.begin(living, 15)) == ["Hi", "Hello", "three"]
    end(store, dead, "late")
    assert store.begin(following(first, "four"), 15) is None, (
        "a late end frees no one else's lease"
    )


def test_a_turn_that_no_upstream_took_leaves_nothing(store: Store) -> None:
    refused = new()
    assert store.begin(refused, 15)
    store.forget(refused)
    assert store.list("owner", 0, 10) == []
    first = said(store, new())
    again = following(first)
    assert store.begin(again, 15)
    store.forget(again)
    assert len(store.get("owner", first.conversation_id).nodes) == 2
    assert store.begin(following(first), 15)


def test_the_list_is_newest_first_and_comes_in_pages(
    store: Store, clock: Clock
) -> None:
    made = []
    for number in range(5):
        clock.now += 1
        made.append(said(store, new(f"c{number}")))
    clock.now += 1
    said(store, following(made[0]))
    assert [kept.title for kept in store.list("owner", 0, 3)] == ["c0", "c4", "c3"]
    assert [kept.title for kept in store.list("owner", 3, 3)] == ["c2", "c1"]


def test_rename_and_delete(store: Store) -> None:
    first = said(store, new())
    store.rename("owner", first.conversation_id, "Other")
    assert store.get("owner", first.conversation_id).title == "Other"
    held = following(first)
    assert store.begin(held, 15)
    store.delete("owner", first.conversation_id)
    end(store, held, "late")
    with pytest.raises(NoConversation):
        store.get("owner", first.conversation_id)


def test_many_threads_write_at_once_and_nothing_is_lost(store: Store) -> None:
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            first = said(store, new(f"{number}-0"))
            for turn in range(1, 5):
                said(
                    store,
                    following(first, f"{number}-{turn}"),
                    f"answer {number}-{turn}",
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    for kept in store.list("owner", 0, 100):
        number = kept.title.split("-")[0]
        asked = [
            node.text
            for node in store.get("owner", kept.id).nodes
            if node.role == "user"
        ]
        assert asked == [f"{number}-{turn}" for turn in range(5)]
