"""The service as a process: real sockets, real curl, real servers; callers that leave, stops and kills."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.processes import (
    ROOT,
    SERVERS,
    Service,
    curl,
    need,
    outcomes,
    refuses_connections,
)
from tests.waiting import wait_for

Serve = Callable[..., Service]


def ask(
    service: Service, prompt: str, timeout: float = 30, **fields: Any
) -> dict[str, Any]:
    answer = requests.post(
        f"{service.url}/send_message",
        data={"prompt": prompt, **fields},
        timeout=timeout,
    )
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


@pytest.mark.parametrize("server", ["pywsgi", "wsgi", "gunicorn", "gunicorn-bare"])
def test_every_way_to_serve_serves(serve: Serve, server: str) -> None:
    service = serve(server)
    first = ask(service, "hello")
    assert "Turn 2." in ask(service, "again", **first)["text"]
    service.terminate()
    assert service.process.wait(10) == 0
    assert "Traceback" not in service.logged()


TEXT = 'line one\nline "two" & 100% a+b 你好\n'
GOOD_FORMS = [
    pytest.param(["--data-urlencode", f"prompt={TEXT}"], id="data-urlencode"),
    pytest.param(["--data-urlencode", "prompt@f"], id="data-urlencode-file"),
    pytest.param(["--data-urlencode", "prompt@-"], id="data-urlencode-stdin"),
    pytest.param(["-F", "prompt=<f"], id="multipart-content"),
    pytest.param(["-F", "prompt=@f"], id="multipart-file"),
    pytest.param(["--form-string", f"prompt={TEXT}"], id="form-string"),
    pytest.param(
        ["-H", "Content-Type: text/plain", "--data-binary", "@f"], id="text-body"
    ),
    pytest.param(
        ["-H", "Content-Type: text/plain", "-T", "-", "-X", "POST"],
        id="chunked-text-body",
    ),
    pytest.param(["-H", "Content-Type:", "--data-binary", "@f"], id="no-type"),
    pytest.param(["--json", json.dumps({"prompt": TEXT})], id="json"),
    pytest.param(["-d", json.dumps({"msg": TEXT})], id="json-as-form"),
]
LOSSY_FORMS = [
    pytest.param(["-d", f"prompt={TEXT}"], id="bare-d"),
    pytest.param(["-d", "prompt=1+1 = 2"], id="bare-plus"),
    pytest.param(["-d", "prompt=fish & chips"], id="bare-ampersand"),
    pytest.param(["--data-binary", "@f"], id="data-binary-file"),
    pytest.param(["-d", "@f"], id="d-file"),
]


@pytest.fixture(scope="module")
def one_service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    need("pgrep")
    service = Service(tmp_path_factory.mktemp("one"), "pywsgi", {})
    yield service
    service.stop()


@pytest.mark.parametrize("arguments", GOOD_FORMS)
def test_what_curl_sends_arrives_exactly(
    one_service: Service, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "f").write_text(TEXT)
    answer = curl(
        *arguments, f"{one_service.url}/send_message", cwd=tmp_path, input=TEXT
    )
    reply = json.loads(answer.stdout)
    tree = requests.get(
        f"{one_service.url}/conversation/{reply['conversation_id']}", timeout=5
    ).json()["mapping"]
    parts = [
        node["message"]["content"]["parts"][0]
        for node in tree.values()
        if node["message"]
    ]
    assert parts[0] == TEXT


@pytest.mark.parametrize("arguments", LOSSY_FORMS)
def test_what_curl_loses_is_never_asked(
    one_service: Service, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "f").write_text(TEXT)
    answer = curl(
        "-w", " %{http_code}", *arguments, f"{one_service.url}/ask", cwd=tmp_path
    )
    assert "--data-urlencode" in answer.stdout and answer.stdout.endswith(" 400")


def test_a_form_beyond_100_continue_and_one_that_is_too_large(
    serve: Serve, tmp_path: Path
) -> None:
    service = serve(MAX_BODY="3MB")
    for size, code in ((2_000_000, 200), (4_000_000, 413), (40_000_000, 413)):
        (tmp_path / "f").write_text("x" * size)
        forms = [
            ["--data-urlencode", "msg@f"],
            ["-F", "msg=<f"],
            ["-H", "Expect:", "-F", "msg=@f"],
        ]
        for arguments in (
            forms if size < 3_000_000 else forms[1:]
        ):  # --data-urlencode itself takes little more
            answer = curl(
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                *arguments,
                f"{service.url}/ask",
                cwd=tmp_path,
            )
            assert (answer.stdout, answer.returncode) == (str(code), 0), answer.stderr
    assert ask(service, "still here")


def raw(service: Service, request: bytes, wait: float = 5) -> bytes:
    """What the service answers to these bytes, until it closes or falls silent."""
    with socket.create_connection(
        ("127.0.0.1", service.port), timeout=wait
    ) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except TimeoutError:
            pass
        return answer


CHUNKED = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
FORM_HEAD = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("server", SERVERS)
def test_a_body_that_is_cut_short_is_never_asked(serve: Serve, server: str) -> None:
    service = serve(server)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(FORM_HEAD % 30 + b"msg=what+should+I+not")
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        answer = connection.recv(65536)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert requests.get(f"{service.url}/conversations", timeout=5).json() == []


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n",
        b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        CHUNKED + b"Content-Length: 5\r\n\r\n5\r\nmsg=a\r\n0\r\n\r\n",
        CHUNKED + b"\r\nZZ\r\nmsg=a\r\n0\r\n\r\n",
        b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nmsg=a",
        b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nmsg=abcde",
        CHUNKED.replace(b"chunked", b"xchunked") + b"\r\n5\r\nmsg=a\r\n0\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=[
        "length-ten",
        "length-negative",
        "both-lengths",
        "bad-chunk",
        "space",
        "two-lengths",
        "xchunked",
        "nonsense",
        "nul",
    ],
)
def test_broken_framing_is_refused(
    serve: Serve, server: str, request_bytes: bytes
) -> None:
    service = serve(server)
    answer = raw(service, request_bytes, wait=2)
    assert (
        answer[9:12] in (b"400", b"404", b"501", b"") and b"Traceback" not in answer
    ), answer
    assert requests.get(f"{service.url}/conversations", timeout=5).json() == []


@pytest.mark.parametrize("server", SERVERS)
def test_a_chunked_body_over_the_limit_is_never_cut_and_asked(
    serve: Serve, server: str, tmp_path: Path
) -> None:
    service = serve(server, MAX_BODY="1MB")
    for size, code in ((900_000, "200"), (1_100_000, "413"), (5_000_000, "413")):
        (tmp_path / "f").write_text("x" * size)
        options = [
            "-H",
            "Transfer-Encoding: chunked",
            "-H",
            "Content-Type: text/plain",
            "--data-binary",
            "@f",
        ]
        answer = curl(
            *options,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"{service.url}/ask",
            cwd=tmp_path,
        )
        assert answer.stdout == code
    assert len(requests.get(f"{service.url}/conversations", timeout=5).json()) == 1


@pytest.mark.parametrize("server", SERVERS)
def test_what_cannot_be_read_is_not_logged(serve: Serve, server: str) -> None:
    service = serve(server)
    for request_bytes in (
        CHUNKED.replace(b"chunked", b"gzip, chunked")
        + b"\r\n5\r\nsecret-prompt\r\n0\r\n\r\n",
        b"secret-prompt with words\r\n\r\n",
        b"GET / HTTP/1.1\r\nsecret-header\r\n\r\n",
        CHUNKED + b"\r\nsecret-chunk\r\n",
    ):
        assert raw(service, request_bytes, wait=1)[9:12] in (
            b"400",
            b"404",
            b"501",
            b"",
        )
    assert "secret" not in service.logged() and "Traceback" not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
def test_the_answer_comes_in_pieces_as_they_arrive(serve: Serve, server: str) -> None:
    service = serve(server)
    fields = {"prompt": "hi offline:pace=0.15", "stream": "true", "format": "text"}
    with requests.post(
        f"{service.url}/send_message", data=fields, stream=True, timeout=20
    ) as answer:
        times = [time.monotonic() for _ in answer.iter_content(None)]
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(times) >= 8 and all(gap > 0.05 for gap in gaps)


@pytest.mark.parametrize("server", SERVERS)
def test_no_answer_waits_for_a_delayed_ack(serve: Serve, server: str) -> None:
    service = serve(server)
    with requests.Session() as session:
        took = []
        for _ in range(30):
            began = time.perf_counter()
            session.post(
                f"{service.url}/send_message", data={"prompt": "hi"}, timeout=5
            )
            took.append(time.perf_counter() - began)
    assert min(took) < 0.03, "40 ms would be the stall, each time"


def test_a_raw_stream_over_http_1_0_is_whole_or_an_error(one_service: Service) -> None:
    fields = ["-d", "stream=true", "-d", "format=text"]
    whole = curl("-0", "-i", "-d", "msg=hi", *fields, f"{one_service.url}/ask")
    assert "Content-Length" in whole.stdout and whole.stdout.endswith("You said: hi\n")
    cut = curl(
        "-0",
        "-w",
        " %{http_code}",
        "-d",
        "msg=offline:cut",
        *fields,
        f"{one_service.url}/ask",
    )
    assert cut.stdout.endswith(" 502") and "offline responder" not in cut.stdout


@pytest.mark.parametrize("server", SERVERS)
def test_a_raw_stream_that_breaks_looks_broken_to_curl(
    serve: Serve, server: str
) -> None:
    service = serve(server)
    fields = ["-d", "msg=hi offline:cut", "-d", "stream=true", "-d", "format=text"]
    answer = curl(*fields, f"{service.url}/ask")
    assert answer.returncode == 18 and "offline responder" in answer.stdout
    assert wait_for(lambda: outcomes(service))[-1]["outcome"] == "upstream_cut"
    assert (
        "Traceback" not in service.logged() and "Error handling" not in service.logged()
    )


PHASES = {
    "before the first byte": "offline:delay=60",
    "in mid-answer": "offline:silence",
    "between pieces": "offline:pace=5",
}


def leave(service: Service, prompt: str, **fields: str) -> float:
    """Ask, leave after a while, and return the seconds until the service logs that the caller left."""
    before = len(outcomes(service))
    body = "&".join(
        f"{name}={value}" for name, value in {"msg": prompt, **fields}.items()
    ).encode()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(FORM_HEAD % len(body) + body)
        time.sleep(0.4)  # while the caller waits, nothing ends
        assert len(outcomes(service)) == before
    left = time.monotonic()
    wait_for(lambda: len(outcomes(service)) > before, 3)
    assert outcomes(service)[-1]["outcome"] == "caller_left"
    return time.monotonic() - left


@pytest.mark.parametrize("server", SERVERS)
def test_a_caller_that_leaves_ends_the_work_within_a_second(
    serve: Serve, server: str
) -> None:
    service = serve(server)
    kinds: dict[str, dict[str, str]] = {
        "plain": {},
        "events": {"stream": "1"},
        "raw": {"stream": "1", "format": "text"},
    }
    for prompt in PHASES.values():
        for fields in kinds.values():
            assert leave(service, prompt, **fields) < 1
    assert requests.get(f"{service.url}/healthz", timeout=2).ok and ask(
        service, "still here"
    )
    listed = requests.get(f"{service.url}/conversations", timeout=2).json()[1:]
    trees = [
        requests.get(f"{service.url}/conversation/{item['id']}", timeout=2).json()
        for item in listed
    ]
    ends = [
        list(tree["mapping"].values())[-1]["message"]["metadata"]["error"]
        for tree in trees
    ]
    assert ends == ["caller_left"] * 9
    assert "Traceback" not in service.logged()


@pytest.mark.parametrize("server", SERVERS)
def test_a_pipelining_caller_is_still_there(serve: Serve, server: str) -> None:
    service = serve(server)
    body = b"msg=hi offline:delay=0.5"
    answer = raw(service, (FORM_HEAD % len(body) + body) * 2, wait=2)
    assert answer.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("kind", [b"&stream=1", b""], ids=["stream", "plain"])
def test_a_caller_that_does_not_read_is_hung_up_on(
    serve: Serve, server: str, kind: bytes
) -> None:
    service = serve(server, TOTAL_TIMEOUT="4")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        body = b"msg=offline:long=5000000" + kind
        connection.sendall(FORM_HEAD % len(body) + body)
        wait_for(lambda: outcomes(service), 12)
    assert outcomes(service)[-1]["outcome"] in (
        ("caller_left", "upstream_timeout") if kind else ("whole",)
    )


@pytest.mark.parametrize("stream", ["0", "1"], ids=["plain", "stream"])
def test_a_caller_is_told_that_nothing_can_be_stored_however_little_time_it_gave(
    serve: Serve, tmp_path: Path, stream: str
) -> None:
    service = serve()
    ask(service, "hello")
    file = tmp_path / "data" / "conversations.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        fields = {"msg": "hi", "timeout": "2", "stream": stream}
        answer = requests.post(f"{service.url}/ask", fields, timeout=30)
    assert answer.status_code == 503
    assert answer.json()["error"] == "store_failed"


def conversations(service: Service) -> list[dict[str, Any]]:
    answer = requests.get(f"{service.url}/conversations", timeout=5)
    listed: list[dict[str, Any]] = answer.json()
    return listed


@pytest.mark.parametrize("server", SERVERS)
def test_a_stop_lets_running_answers_end_and_takes_no_new_ones(
    serve: Serve, server: str
) -> None:
    service = serve(server)
    idle = requests.Session()
    idle.get(f"{service.url}/healthz", timeout=5)
    with ThreadPoolExecutor(3) as pool:
        running = [
            pool.submit(ask, service, f"hi {n} offline:delay=2") for n in range(3)
        ]
        wait_for(lambda: len(conversations(service)) == 3)
        service.terminate()
        wait_for(lambda: refuses_connections(service))
        assert not any(future.done() for future in running)
        assert all(
            f"hi {n}" in future.result()["text"] for n, future in enumerate(running)
        )
    assert service.process.wait(10) == 0
    idle.close()


@pytest.mark.parametrize("server", SERVERS)
def test_a_kill_at_any_moment_leaves_conversations_that_go_on(
    serve: Serve, server: str
) -> None:
    service = serve(server)
    first = ask(service, "first question")
    conversation = first["conversation_id"]

    def cut_off() -> None:
        with pytest.raises(requests.ConnectionError):
            ask(service, "offline:pace=0.1", **first)

    for moment in (0.0, 0.15, 0.4):
        caller = threading.Thread(target=cut_off)
        caller.start()
        time.sleep(moment)
        service.kill()
        caller.join(10)
        service.start()
    began = time.monotonic()
    again = ask(service, "after the kill", conversation_id=conversation)
    assert time.monotonic() - began < 17, "a dead turn's lease ends by itself"
    assert (
        "Turn 2." in again["text"]
        and "Before that you said: first question" in again["text"]
    )


def test_the_event_loop_never_waits_for_the_disk(serve: Serve, tmp_path: Path) -> None:
    service = serve()
    ids = ask(service, "hi")
    writer = sqlite3.connect(
        tmp_path / "data" / "conversations.db", isolation_level=None
    )
    writer.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, service, "again", **ids)
        time.sleep(0.3)  # nothing outside the process shows that it waits
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            assert requests.get(f"{service.url}/healthz", timeout=5).ok
            assert requests.get(f"{service.url}/conversations", timeout=5).ok
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        assert not waiting.done()
        writer.execute("COMMIT")
        writer.close()
        assert "Turn 2." in waiting.result()["text"]
    assert slowest < 1, "both at once; the write alone waited"


def test_two_processes_share_one_file(serve: Serve) -> None:
    one, two = serve(), serve()
    first = ask(one, "hi")
    conversation = first["conversation_id"]
    with ThreadPoolExecutor(8) as pool:
        turns = [
            pool.submit(
                ask, (one, two)[n % 2], f"turn {n}", conversation_id=conversation
            )
            for n in range(8)
        ]
        texts = sorted(
            turn.result()["text"].split("Turn ")[1].split(".")[0] for turn in turns
        )
    assert texts == [str(n) for n in range(2, 10)], "each saw the ones before it"


def test_processes_that_start_at_once_on_one_empty_folder(tmp_path: Path) -> None:
    need("pgrep")
    with ThreadPoolExecutor(4) as pool:
        services = list(pool.map(lambda _: Service(tmp_path, "pywsgi", {}), range(4)))
    for service in services:
        assert ask(service, "hi")
        service.stop()
        assert "Traceback" not in service.logged()


def test_a_busy_conversation_is_waited_for_or_refused(one_service: Service) -> None:
    first = ask(one_service, "hi")
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(ask, one_service, "slow offline:delay=1", **first)
        conversation_id = first["conversation_id"]
        url = f"{one_service.url}/conversation/{conversation_id}"
        wait_for(lambda: "slow offline" in requests.get(url, timeout=5).text)
        fields = {"msg": "x", "conversation_id": conversation_id, "timeout": "200"}
        busy = requests.post(f"{one_service.url}/ask", data=fields, timeout=5)
        assert (busy.status_code, busy.json()["error"]) == (409, "conversation_busy")
        after = ask(one_service, "after", conversation_id=conversation_id)
        assert "slow" in slow.result()["text"] and "Turn 3." in after["text"]


def test_fifty_conversations_of_four_turns_at_once(one_service: Service) -> None:
    def talk(number: int) -> list[str]:
        texts, ids = [], {}
        with requests.Session() as session:
            for turn in range(1, 5):
                fields = {
                    "prompt": f"secret of {number} in turn {turn}",
                    "stream": "true" if turn % 2 else "",
                    **ids,
                }
                answer = session.post(
                    f"{one_service.url}/send_message", data=fields, timeout=30
                )
                payload = (
                    answer.text.partition("event: done\ndata: ")[2]
                    if turn % 2
                    else answer.text
                )
                reply = json.loads(payload)
                ids = {
                    name: reply[name]
                    for name in ("conversation_id", "parent_message_id")
                }
                texts.append(reply["text"])
        return texts

    with ThreadPoolExecutor(50) as pool:
        for number, texts in enumerate(pool.map(talk, range(50))):
            for turn, text in enumerate(texts, 1):
                assert f"Turn {turn}.\n" in text and text.count("secret of") == min(
                    turn, 2
                )
                assert text.count(f"secret of {number} in turn") == min(turn, 2)


def test_memory_after_a_thousand_asks(serve: Serve) -> None:
    service = serve()

    def talk(_: int) -> None:
        with requests.Session() as session:
            for _ in range(125):
                session.post(
                    f"{service.url}/send_message", data={"prompt": "hello"}, timeout=30
                )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    assert service.resident() <= 80
    ticks = [
        int(field)
        for field in Path(f"/proc/{service.process.pid}/stat")
        .read_text()
        .split(") ")[1]
        .split()[11:13]
    ]
    time.sleep(2)
    later = [
        int(field)
        for field in Path(f"/proc/{service.process.pid}/stat")
        .read_text()
        .split(") ")[1]
        .split()[11:13]
    ]
    assert sum(later) - sum(ticks) <= 2, "idle, it does nothing"


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("READ_TIMEOUT", "soon", "READ_TIMEOUT cannot be read"),
        ("DATA_DIR", "/dev/null/data", "/dev/null"),
        ("DATABASE_URL", "sqlite:////proc/self/no.db", "database cannot be used"),
    ],
)
def test_what_cannot_be_used_refuses_the_start(
    tmp_path: Path, setting: str, value: str, message: str
) -> None:
    need("pgrep")
    with pytest.raises(
        RuntimeError, match=f"chatgpt-webapi cannot start: .*{message}"
    ) as refused:
        Service(tmp_path, "pywsgi", {setting: value})
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("server", SERVERS)
def test_keep_alives_fill_the_silence(serve: Serve, server: str) -> None:
    """The one test that waits for the real 15 seconds."""
    service = serve(server)
    fields = {"prompt": "hi offline:delay=16", "stream": "true"}
    began = time.monotonic()
    with requests.post(
        f"{service.url}/send_message", data=fields, stream=True, timeout=30
    ) as answer:
        assert answer.status_code == 200 and 14 < time.monotonic() - began < 16
        wire = b"".join(answer.iter_content(None))
    assert wire.startswith(b": keep-alive\n\n") and b"event: done" in wire


def test_a_port_in_use_is_an_error_message(serve: Serve) -> None:
    service = serve()
    other = subprocess.run(
        service._command,
        env=service._environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (
        other.returncode == 1
        and "in use" in other.stderr
        and "Traceback" not in other.stderr
    )


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
def test_a_caller_that_sent_more_and_left_is_noticed(
    serve: Callable[..., Service], server: str
) -> None:
    service = serve(server)
    body = b"prompt=hello offline:silence"
    head = (
        b"POST /send_message HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    with socket.create_connection(("127.0.0.1", service.port)) as caller:
        caller.sendall(
            head + body + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        wait_for(lambda: conversations(service))
    wait_for(lambda: '"outcome":"caller_left"' in service.logged())
