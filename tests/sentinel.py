"""The strict pre-flight of the tests' own ChatGPT backend, and an Arkose service. Shapes: protocol notes, section 9."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSED = {
    "detail": "Unusual activity has been detected from your device. Try again later."
}
#: what no search meets in a test's time; a service takes it up with POW_DIFFICULTY=00000000
ENDLESS = "000000000001"
#: what a demand of this name changes in the answer
DEMANDS: dict[str, dict[str, Any]] = {
    "none": {},
    "proof": {"proofofwork": {"required": True, "difficulty": "0fff"}},
    "too hard": {"proofofwork": {"required": True, "difficulty": "000031"}},
    "endless": {"proofofwork": {"required": True, "difficulty": ENDLESS}},
    "unreadable": {"proofofwork": {"required": True, "difficulty": "easy"}},
    "arkose": {"arkose": {"required": True, "dx": "secret-blob-of-arkose"}},
    "turnstile": {"turnstile": {"required": True, "dx": "dx"}},
    "so": {"so": {"required": True, "collector_dx": "dx"}},
    "force_login": {"force_login": True},
    "other": {"hologram": {"required": True}},
}


@dataclass
class Issued:
    """What a token was given for."""

    account: str
    until: float
    seed: str
    demand: dict[str, Any]


@dataclass
class Sentinel:
    """`answer`: instead of requirements; `silent`: None at all; `cut`: half of one. `two_step`: the form of 2026.

    `is_lax`: turns need nothing of it.
    """

    demand: str = "none"
    two_step: bool = False
    answer: tuple[int, dict[str, str], bytes] | None = None
    silent: bool = False
    silent_finalize: bool = False
    is_lax: bool = False
    cut: bool = False
    delay: float = 0.0
    lifetime: float = 540.0
    persona: str = "chatgpt-paid"
    arkose_tokens: set[str] = field(default_factory=set)
    issued: dict[str, Issued] = field(default_factory=dict)
    prepared: dict[str, Issued] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def requirements(self, account: str, body: Any, agent: str) -> dict[str, Any]:
        """The answer to a request for them. Raises ValueError for one that has no such form."""
        check_array(body["p"], "gAAAAAC", agent)
        demand = DEMANDS[self.demand]
        payload: dict[str, Any] = {
            "persona": self.persona,
            "arkose": {"required": False, "dx": None},
            "turnstile": {"required": False, "dx": "..."},
            "proofofwork": {"required": False, "seed": str(secrets.randbelow(10**6))},
            "so": {"required": False},
            "force_login": False,
        }
        for name, value in demand.items():
            payload[name] = (
                {**payload.get(name, {}), **value} if isinstance(value, dict) else value
            )
        token = f"gAAAAAB{secrets.token_hex(8)}"
        issued = Issued(
            account,
            time.monotonic() + self.lifetime,
            payload["proofofwork"]["seed"],
            demand,
        )
        with self.lock:
            (self.prepared if self.two_step else self.issued)[token] = issued
        if self.two_step:
            return {**payload, "prepare_token": token}
        return {**payload, "token": token, "expire_after": 540}

    def finalize(self, body: Any, agent: str) -> dict[str, Any]:
        """Raises ValueError or KeyError for what is malformed."""
        with self.lock:
            issued = self.prepared.pop(body["prepare_token"])
        if "proofofwork" in issued.demand:
            check_proof(body["proofofwork"], issued, agent)
        token = f"gAAAAAB{secrets.token_hex(8)}"
        with self.lock:
            self.issued[token] = issued
        return {"persona": self.persona, "token": token, "expire_after": 540}

    def refuses(self, account: str, headers: dict[str, str]) -> bool:
        """Whether a turn lacks what was demanded; its token is used up."""
        if self.is_lax:
            return False
        name = "openai-sentinel-chat-requirements-token"
        with self.lock:
            issued = self.issued.pop(headers.get(name, ""), None)
        if issued is None or issued.account != account:
            return True
        if issued.until < time.monotonic():
            return True
        if "arkose" in issued.demand:
            given = headers.get("openai-sentinel-arkose-token", "")
            if given not in self.arkose_tokens:
                return True
            self.arkose_tokens.discard(given)
        if "proofofwork" in issued.demand:
            try:
                proof = headers["openai-sentinel-proof-token"]
                check_proof(proof, issued, headers["user-agent"])
            except (ValueError, KeyError):
                return True
        return False


def check_array(text: str, prefix: str, agent: str) -> str:
    """The text behind the prefix. Raises ValueError for one that is no array of the known form."""
    if not text.startswith(prefix):
        raise ValueError("prefix")
    answer = text.removeprefix(prefix)
    array = json.loads(base64.b64decode(answer, validate=True))
    if not isinstance(array, list) or len(array) != 18:
        raise ValueError("length")
    if type(array[3]) is not int or array[9] != array[3] // 2:
        raise ValueError("counters")
    if array[4] != agent:
        raise ValueError("user agent")
    return answer


def check_proof(text: str, issued: Issued, agent: str) -> None:
    """Raises ValueError."""
    answer = check_array(text, "gAAAAAB", agent)
    difficulty = issued.demand["proofofwork"]["difficulty"]
    digest = hashlib.sha3_512((issued.seed + answer).encode()).hexdigest()
    if digest[: len(difficulty)] > difficulty:
        raise ValueError("too easy")


class ArkoseService(ThreadingHTTPServer):
    """Gives Arkose tokens, which the backend's `Sentinel` then takes. `answer`: something else instead."""

    daemon_threads = True

    def __init__(self, sentinel: Sentinel) -> None:
        super().__init__(("127.0.0.1", 0), ArkoseHandler)
        self.sentinel = sentinel
        self.asked: list[tuple[dict[str, str], Any]] = []
        self.answer: tuple[int, bytes] | None = None
        self.silent = threading.Event()  # set: it answers only once it is stopped
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def server_close(self) -> None:
        self.stopped.set()
        super().server_close()


class ArkoseHandler(BaseHTTPRequestHandler):
    server: ArkoseService
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((headers, body))
        if self.server.silent.is_set():
            self.server.stopped.wait(60)
            return
        status, payload = self.server.answer or (200, self.token())
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def token(self) -> bytes:
        token = f"{secrets.token_hex(8)}|r=ap-southeast-1|meta=3|secret-arkose"
        self.server.sentinel.arkose_tokens.add(token)
        return json.dumps({"token": token, "solved": True}).encode()
