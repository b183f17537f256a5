"""The service behind real nginx: as Debian ships it, with the TLS file of deploy/, and as users of seed 2 have it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.nginx import Nginx, deployed, deployment, has_ipv6, of_seed_2, stock
from tests.processes import Service, curl, need, outcomes
from tests.waiting import wait_for

Serve = Callable[..., Service]


FILES = [stock, deployed, of_seed_2]
FORM = ["--data-urlencode"]
STRICT = {"rate=50r/s": "rate=1r/s", "burst=500": "burst=20"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    payload: dict[str, Any]


def ask(
    url: str, prompt: str = "hello", *, size: int = 0, folder: Path = Path()
) -> Answer:
    """POST /ask with curl, as a script does; with `size`, a prompt of that many bytes from a file in `folder`."""
    question = ["--data-urlencode", f"msg={prompt}"]
    if size:
        (folder / "question").write_text("x" * size)
        question = ["-F", "msg=<question"]
    completed = curl("-k", "-D", "headers", *question, f"{url}/ask", cwd=folder)
    head = (folder / "headers").read_text()
    last = head.strip().split("\n\n")[-1].splitlines()  # after a 100 Continue
    fields = dict(line.split(": ", 1) for line in last[1:] if ": " in line)
    headers = {name.lower(): value for name, value in fields.items()}
    payload = json.loads(completed.stdout)
    return Answer(int(last[0].split()[1]), headers, payload)


@pytest.mark.parametrize("server", ["pywsgi", "gunicorn"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__)
def test_behind_nginx(
    serve: Serve,
    nginx: Nginx,
    tmp_path: Path,
    file: Callable[..., tuple[str, str]],
    server: str,
) -> None:
    """One start of both for all that is checked: answers, pieces, failures, and a caller that leaves."""
    service = serve(server)
    text, url = file(service, tmp_path)
    nginx(text)

    first = curl("-k", *FORM, "prompt=hello", f"{url}/send_message")
    assert '"conversation_id"' in first.stdout and first.returncode == 0

    session = requests.Session()
    session.trust_env = False  # or a bundle named there would count instead
    session.verify = str(tmp_path / "fullchain.pem")
    fields = {"msg": "hi offline:pace=0.1", "stream": "true"}
    with session.post(f"{url}/ask", data=fields, stream=True, timeout=20) as answer:
        times = [time.monotonic() for _ in answer.iter_content(None)]
    assert len(times) >= 8 and times[-1] - times[0] > 0.5, "nginx holds nothing back"
    assert (
        session.post(f"{url}/ask", data={"msg": "x" * 900_000}, timeout=20).status_code
        == 200
    )

    broken = curl(
        "-k",
        *FORM,
        "msg=offline:cut",
        "-d",
        "stream=1",
        "-d",
        "format=text",
        "-w",
        " %{http_code}",
        f"{url}/ask",
    )
    assert (broken.returncode == 18 and broken.stdout) or broken.stdout.endswith(
        " 502"
    ), "never whole"
    limited = curl("-k", "-i", *FORM, "msg=offline:limit=9", f"{url}/ask")
    assert " 429" in limited.stdout.splitlines()[0] and re.search(
        "(?im)^retry-after: 9", limited.stdout
    )

    # a line of the log follows its answer, so the last one has to be there before the next are counted
    wait_for(lambda: outcomes(service)[-1]["outcome"] == "rate_limited")
    for phase in ("offline:delay=60", "offline:silence"):
        for kind in ([], ["-d", "stream=1"]):
            seen = len(outcomes(service))
            subprocess.run(
                [
                    need("curl"),
                    "-sk",
                    "-m",
                    "0.6",
                    *FORM,
                    f"msg={phase}",
                    *kind,
                    f"{url}/ask",
                ],
                capture_output=True,
            )
            left = time.monotonic()
            wait_for(lambda seen=seen: len(outcomes(service)) > seen, 3)
            assert outcomes(service)[-1]["outcome"] == "caller_left"
            assert time.monotonic() - left < 1
    assert "Traceback" not in service.logged()
    session.close()


def test_the_deployed_file_takes_large_bodies_and_refuses_plain_http(
    serve: Serve, nginx: Nginx, tmp_path: Path
) -> None:
    known = deployment(serve().url, tmp_path)
    nginx(known.text)
    large = ask(known.url, size=20_000_000, folder=tmp_path)
    assert large.status == 200
    plain = ask(known.plain_url)
    assert plain.status == 403
    assert plain.payload["error"] == plain.headers["x-error-code"] == "forbidden"
    assert "https://" in plain.payload["msg"]
    # a person who types the name has sent no key yet
    page = requests.get(known.plain_url, timeout=5, allow_redirects=False)
    assert page.status_code == 301
    assert page.headers["Location"] == "https://127.0.0.1/"


def test_the_deployed_file_serves_certificate_challenges_on_both_address_families(
    serve: Serve, nginx: Nginx, tmp_path: Path
) -> None:
    known = deployment(serve().url, tmp_path)
    nginx(known.text)
    challenges = known.acme_folder / ".well-known" / "acme-challenge"
    challenges.mkdir(parents=True)
    (challenges / "token").write_text("token.thumbprint")
    path = "/.well-known/acme-challenge/token"
    found = requests.get(known.plain_url + path, timeout=5)
    assert (found.status_code, found.text) == (200, "token.thumbprint")
    assert requests.get(f"{known.plain_url}{path}-2", timeout=5).status_code == 404
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    assert curl("-k", "-g", f"{known.url_by_ipv6}/healthz").stdout.startswith("{")
    plain_url = known.plain_url.replace("127.0.0.1", "[::1]")
    assert curl("-g", plain_url + path).stdout == "token.thumbprint"


def test_nginxs_own_errors_have_the_shape_of_the_services(
    serve: Serve, nginx: Nginx, tmp_path: Path
) -> None:
    service = serve()
    known = deployment(service.url, tmp_path)
    assert known.text.count("630s") == 2
    nginx(known.text.replace("630s", "1s"))
    bodies = {
        413: ask(known.url, size=30_000_000, folder=tmp_path),
        504: ask(known.url, "offline:delay=5"),
    }
    service.stop()
    bodies[502] = ask(known.url)
    codes = {413: "too_large", 504: "service_timeout", 502: "service_unreachable"}
    for status, answer in bodies.items():
        source = "caller" if status == 413 else "service"
        assert answer.status == status
        assert list(answer.payload) == ["code", "msg", "error", "source"]
        assert answer.payload["code"] == 1
        assert answer.payload["error"] == codes[status]
        assert answer.payload["source"] == source
        assert answer.headers["x-error-code"] == codes[status]
        assert answer.headers["x-error-source"] == source
        assert answer.headers["content-type"] == "application/json"
    assert "MAX_BODY" in bodies[413].payload["msg"]
    assert "systemctl status" in bodies[502].payload["msg"]
    assert bodies[502].headers["retry-after"] == "5"
    assert "proxy_read_timeout" in bodies[504].payload["msg"]


def test_the_services_own_errors_pass_nginx_unchanged(
    serve: Serve, nginx: Nginx, tmp_path: Path
) -> None:
    service = serve(MAX_BODY="100KB")
    known = deployment(service.url, tmp_path)
    nginx(known.text)
    for status in (429, 502, 504):
        prompt = f"offline:status={status}"
        direct = ask(service.url, prompt)
        passed = ask(known.url, prompt)
        assert direct.status == passed.status == status
        assert direct.payload == passed.payload
        assert passed.headers["x-error-source"] == "upstream"
    direct = ask(service.url, size=200_000, folder=tmp_path)
    passed = ask(known.url, size=200_000, folder=tmp_path)
    assert direct.status == passed.status == 413
    assert direct.payload == passed.payload
    assert "nginx" not in passed.payload["msg"]
    assert "x-request-id" in passed.headers


def test_a_page_of_the_same_origin_is_distinguished_from_another_through_tls(
    serve: Serve, nginx: Nginx, tmp_path: Path
) -> None:
    service = serve(AUTHORIZATION="the-client-key-0")
    text, url = deployed(service, tmp_path)
    nginx(text)
    for origin, status in ((url, "200"), ("https://other.example", "403")):
        answer = curl(
            "-k",
            "-u",
            ":the-client-key-0",
            "-H",
            f"Origin: {origin}",
            "-d",
            "msg=hi",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"{url}/ask",
        )
        assert answer.stdout == status


def test_the_deployed_file_bounds_one_address_but_no_scripts(
    serve: Serve, nginx: Nginx, tmp_path: Path
) -> None:
    service = serve()
    for change, statuses in (({}, {200}), (STRICT, {200, 429})):
        text, url = deployed(service, tmp_path)
        for known, strict in change.items():
            assert known in text
            text = text.replace(known, strict)
        nginx(text)
        session = requests.Session()
        session.trust_env = False
        session.verify = str(tmp_path / "fullchain.pem")
        answers = [session.get(f"{url}/healthz", timeout=5) for _ in range(60)]
        assert {answer.status_code for answer in answers} == statuses
        refused = [answer for answer in answers if answer.status_code == 429]
        for answer in refused:
            assert answer.json()["error"] == "too_many_requests"
            assert answer.headers["X-Error-Code"] == "too_many_requests"
            assert answer.headers["Retry-After"] == "1"
        session.close()
