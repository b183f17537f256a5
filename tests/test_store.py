from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relay.domain import ROOT, Conversation, Message
from relay.errors import BadRequest, NoConversation
from relay.server import in_place
from relay.store import OpenedTurn, Store
from relay.tables.conversations import EXPIRE_BATCH
from tests.turns import Clock, answered, end, following, new_turn, texts

ON_BOTH = True
ALSO_POOLED = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, database: str, clock: Clock) -> Iterator[Store]:
    store = Store(database or f"sqlite:///{tmp_path}/data/test.db", in_place, clock)
    yield store
    store.close()


def test_a_conversation_goes_on_by_its_id_alone(store: Store) -> None:
    first = answered(store, new_turn("one", system="Be kind.", upstream="web"))
    second = answered(store, following(first, "two"), "Hello again")
    opened = store.open_turn(following(first, "three"), 15)
    assert opened == OpenedTurn(
        "web",
        (
            Message("system", "Be kind."),
            Message("user", "one"),
            Message("assistant", "Hello"),
            Message("user", "two"),
            Message("assistant", "Hello again"),
        ),
    )
    assert store.get("owner", first.conversation_id).nodes[-2].text == "three"
    assert store.get("owner", first.conversation_id).newest == second.answer_id


def test_it_branches_at_an_earlier_answer_and_at_the_root(store: Store) -> None:
    first = answered(store, new_turn("one", system="Be kind."))
    answered(store, following(first, "two"))
    branch = following(first, "other", parent_id=first.answer_id)
    assert texts(store.open_turn(branch, 15)) == ["Be kind.", "one", "Hello"]
    end(store, branch, "x")
    assert texts(store.open_turn(following(first, "anew", parent_id=ROOT), 15)) == [
        "Be kind."
    ]


def test_a_broken_answer_is_kept_but_nothing_follows_it(store: Store) -> None:
    first = answered(store, new_turn("one"))
    broken = answered(store, following(first, "two"), None)
    again = following(first, "three")
    assert texts(store.open_turn(again, 15)) == ["one", "Hello"]
    end(store, again, "Hi")
    nodes = {node.id: node for node in store.get("owner", first.conversation_id).nodes}
    node = nodes[broken.answer_id]
    assert (node.status, node.text, node.model) == ("broken", "Hal", "m")
    assert node.finish_reason == "upstream_cut"
    assert texts(
        store.open_turn(following(first, "four", parent_id=broken.answer_id), 15)
    ) == ["one", "Hello"]


def test_a_first_answer_that_broke_leaves_a_conversation_that_goes_on(
    store: Store,
) -> None:
    first = answered(store, new_turn("one", system="Be kind."), None)
    assert texts(store.open_turn(following(first, "two"), 15)) == ["Be kind."]


def test_another_owner_sees_nothing(store: Store) -> None:
    first = answered(store, new_turn("one", owner="alice"))
    for attempt in (
        lambda: store.get("bob", first.conversation_id),
        lambda: store.rename("bob", first.conversation_id, "x"),
        lambda: store.delete("bob", first.conversation_id),
        lambda: store.open_turn(following(first, owner="bob"), 15),
    ):
        with pytest.raises(NoConversation):
            attempt()
    assert store.list("bob", 0, 10) == []
    assert [row.title for row in store.list("alice", 0, 10)] == ["one"]


def test_an_unknown_parent_and_a_question_as_parent(store: Store) -> None:
    first = answered(store, new_turn())
    other = answered(store, new_turn())
    for parent in ("no-such-id", other.answer_id):
        with pytest.raises(NoConversation, match="parent id"):
            store.open_turn(following(first, parent_id=parent), 15)
    with pytest.raises(BadRequest, match="question"):
        store.open_turn(following(first, parent_id=first.question_id), 15)
    assert store.open_turn(following(first), 15), "a refused turn holds no lease"


def test_one_turn_at_a_time(store: Store, clock: Clock) -> None:
    first = answered(store, new_turn())
    held = following(first, "two")
    assert store.open_turn(held, 15)
    assert store.open_turn(following(first, "three"), 15) is None
    assert store.get("owner", first.conversation_id).nodes[-1].status == "open"
    end(store, held, "x")
    assert store.open_turn(following(first, "three"), 15)


def test_a_lease_ends_when_its_holder_dies_and_stays_while_it_is_renewed(
    store: Store, clock: Clock
) -> None:
    first = answered(store, new_turn())
    dead = following(first, "two")
    assert store.open_turn(dead, 15)
    clock.now += 10
    store.renew([dead.holder], 15)
    clock.now += 10
    assert store.open_turn(following(first, "three"), 15) is None
    clock.now += 6
    assert store.get("owner", first.conversation_id).nodes[-1].status == "broken"
    living = following(first, "three")
    assert texts(store.open_turn(living, 15)) == ["Hi", "Hello"]
    end(store, dead, "late")
    assert store.open_turn(following(first, "four"), 15) is None, (
        "a late end deletes no one else's lease"
    )


def test_a_turn_that_no_upstream_accepted_leaves_nothing(store: Store) -> None:
    refused = new_turn()
    assert store.open_turn(refused, 15)
    store.discard_turn(refused)
    assert store.list("owner", 0, 10) == []
    first = answered(store, new_turn())
    again = following(first)
    assert store.open_turn(again, 15)
    store.discard_turn(again)
    assert len(store.get("owner", first.conversation_id).nodes) == 2
    assert store.open_turn(following(first), 15)


def test_the_list_is_newest_first_and_comes_in_pages(
    store: Store, clock: Clock
) -> None:
    requests = []
    for number in range(5):
        clock.now += 1
        requests.append(answered(store, new_turn(f"c{number}")))
    clock.now += 1
    answered(store, following(requests[0]))
    assert [row.title for row in store.list("owner", 0, 3)] == ["c0", "c4", "c3"]
    assert [row.title for row in store.list("owner", 3, 3)] == ["c2", "c1"]


def test_a_remote_conversation_gives_its_place_and_no_history(store: Store) -> None:
    remote = new_turn(conversation_id="remote", upstream="web", is_new=False)
    with pytest.raises(NoConversation):
        store.open_turn(remote, 15)
    adopted = following(remote, upstream="web", adopt=True, parent_id="p")
    assert store.open_turn(adopted, 15) == OpenedTurn(
        "web", (), remote=True, parent_id="p"
    )
    store.release(adopted)
    row = Conversation("remote", "owner", "web", "account-1", "Title", "n1", 0, 0)
    store.index(row)
    opened = OpenedTurn(
        "web", (), remote=True, parent_id="n1", account="account-1", indexed=True
    )
    going_on = following(remote, upstream="other")
    assert store.open_turn(going_on, 15) == opened
    assert store.open_turn(following(remote), 15) is None
    store.release(going_on)
    assert store.get("owner", "remote").nodes == ()


def test_an_index_row_is_updated_by_its_owner_alone(store: Store, clock: Clock) -> None:
    row = Conversation("remote", "owner", "web", "account-1", "Title", "n1", 0, 0)
    store.index(row)
    clock.now += 1
    store.index(replace(row, owner="other", account="account-2", newest="n2"))
    added = replace(row, remote=True, created=1000.0, updated=1000.0)
    assert store.find("remote") == added
    store.index(replace(row, account="account-2", title="Ignored", newest=None))
    assert store.find("remote") == replace(added, account="account-2", updated=1001.0)
    assert store.find("none") is None


def test_rename_and_delete(store: Store) -> None:
    first = answered(store, new_turn())
    store.rename("owner", first.conversation_id, "Other")
    assert store.get("owner", first.conversation_id).title == "Other"
    held = following(first)
    assert store.open_turn(held, 15)
    store.delete("owner", first.conversation_id)
    end(store, held, "late")
    with pytest.raises(NoConversation):
        store.get("owner", first.conversation_id)


def test_all_of_an_owner_is_deleted_that_is_stored_here(store: Store) -> None:
    for number in range(EXPIRE_BATCH + 5):
        answered(store, new_turn(f"question {number}"))
    theirs = answered(store, new_turn(owner="other"))
    remote = Conversation("r", "owner", "web", None, "T", None, 0, 0, remote=True)
    store.index(remote)
    assert store.delete_stored_here("owner") == EXPIRE_BATCH + 5
    assert [row.id for row in store.list("owner", 0, 10)] == ["r"]
    assert store.get("other", theirs.conversation_id).nodes
    assert store.delete_stored_here("owner") == 0


def test_many_threads_write_at_once_and_nothing_is_lost(store: Store) -> None:
    failures: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            first = answered(store, new_turn(f"{number}-0"))
            for turn in range(1, 5):
                answered(
                    store,
                    following(first, f"{number}-{turn}"),
                    f"answer {number}-{turn}",
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    rows = store.list("owner", 0, 100)
    assert len(rows) == 20
    for row in rows:
        number = row.title.split("-")[0]
        nodes = store.get("owner", row.id).nodes
        prompts = [node.text for node in nodes if node.role == "user"]
        assert prompts == [f"{number}-{turn}" for turn in range(5)]
