"""The service behind real nginx: as Debian ships it, with the TLS file of deploy/, and as users of seed 2 have it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.nginx import Nginx, deployed, of_seed_2, stock
from tests.processes import Service, curl, need, outcomes
from tests.waiting import wait_for

Serve = Callable[..., Service]


FILES = [stock, deployed, of_seed_2]
FORM = ["--data-urlencode"]
STRICT = {"rate=50r/s": "rate=1r/s", "burst=500": "burst=20"}


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
    service = serve()
    text, url = deployed(service, tmp_path)
    nginx(text)
    (tmp_path / "f").write_text("x" * 20_000_000)
    large = curl(
        "-k",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-F",
        "msg=<f",
        f"{url}/ask",
        cwd=tmp_path,
    )
    assert large.stdout == "200"
    plain = re.search(r"listen (127\.0\.0\.1:\d+);", text)
    assert (
        plain
        and requests.post(
            f"http://{plain[1]}/ask", data={"msg": "x"}, timeout=5
        ).status_code
        == 403
    )


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
        session.close()
