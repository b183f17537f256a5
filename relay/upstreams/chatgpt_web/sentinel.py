"""The requests that ChatGPT's web backend wants before a question (sentinel). Pure. Source: protocol notes, section 9.

One request tells what is demanded and gives a token, which is good for one question. Where the backend does not know
it, the one that prepares is tried, and a second one gives the token. A proof of work is made; an Arkose token comes
from the operator's own service. What only a browser can give is never given: the question is not asked then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import field
from typing import Any, TypeAlias

import orjson

from relay.errors import Challenged, UpstreamError, UpstreamFailed
from relay.server import Run, in_place
from relay.shown import part_of
from relay.transports import Call
from relay.upstreams.chatgpt_web import failures
from relay.upstreams.chatgpt_web.gateways import GatewayCall, GatewayMemory
from relay.upstreams.chatgpt_web.proof import (
    PROOF_PREFIX,
    Demand,
    ProofSearch,
    requirements_text,
)
from relay.upstreams.http import Computation, Step, WholeResponse, Yielded
from relay.upstreams.wording import parse_json
from relay.values import frozen

CHALLENGED_SECONDS = 300  # an account is not asked for so long after a demand
PROOF_SECONDS = 30.0  # with the time that other proofs take
ARKOSE_SECONDS = 15.0
PATH = "sentinel/chat-requirements"
MISSING = (404, 405)  # what a backend without such a route answers
_TOKEN = re.compile(r"[!-~][ -~]{0,16383}")
_OTHER_CHECKS = {
    "turnstile": "an interactive browser check (Turnstile)",
    "so": "a record of what a person does in a browser (a session observer's token)",
}
_SOLVED_HERE = ("arkose", "proofofwork")

Flow: TypeAlias = Generator[Yielded, WholeResponse | None, dict[str, str]]


@frozen
class PreflightRules:
    """What the operator allows before a question.

    `hardest`: a proof of work of this difficulty or a harder one is not made. `arkose_url`: the
    operator's service that gives Arkose tokens; "" where there is none. `run`: runs slices of a
    proof where they stop nobody else.
    """

    hardest: str = "000032"
    arkose_url: str = ""
    run: Run = field(default_factory=in_place, repr=False)


@frozen
class Requirements:
    """What the backend demands. `token`: of the question, or of the request that finishes the preparation."""

    token: str = field(repr=False)
    proof: Demand | None = None
    wants_arkose: bool = False
    blob: str | None = field(default=None, repr=False)
    is_free: bool = False


def parse_requirements(response: WholeResponse, token_name: str) -> Requirements:
    """Raises what a refusal says, Challenged for what only a browser can give, UpstreamFailed for anything else."""
    payload = _object(response)
    _check_demands(payload)
    proof = part_of(payload, "proofofwork")
    arkose = part_of(payload, "arkose")
    blob = arkose.get("dx")
    return Requirements(
        token=_token(payload, token_name),
        proof=_demand(proof) if _is_required(proof) else None,
        wants_arkose=_is_required(arkose),
        blob=blob if isinstance(blob, str) else None,
        is_free=payload.get("persona") == "chatgpt-freeaccount",
    )


def _object(response: WholeResponse) -> dict[str, Any]:
    payload = parse_json(response.body)
    if response.status == 200 and isinstance(payload, dict):
        return payload
    raise failures.from_response(
        response.status, response.head.headers, response.redacted
    )


def _check_demands(payload: dict[str, Any]) -> None:
    if payload.get("force_login"):
        raise Challenged(
            "ChatGPT wants this session to sign in: set ACCESS_TOKEN, or send an access "
            "token of yours.",
            retry_after=CHALLENGED_SECONDS,
        )
    for name in payload:
        if name not in _SOLVED_HERE and _is_required(part_of(payload, name)):
            check = _OTHER_CHECKS.get(name, "a check that only a browser passes")
            raise Challenged(
                f"ChatGPT demands {check}, which this service never solves. Ask later, with "
                "another account, or by a REVERSE_PROXY that takes care of it.",
                retry_after=CHALLENGED_SECONDS,
            )


def _is_required(member: dict[str, Any]) -> bool:
    return bool(member.get("required"))


def _demand(member: dict[str, Any]) -> Demand:
    seed, difficulty = member.get("seed"), member.get("difficulty")
    if not isinstance(seed, str) or not isinstance(difficulty, str):
        raise UpstreamFailed("ChatGPT demands a proof of work that cannot be read.")
    try:
        return Demand(seed, difficulty.lower())
    except ValueError as error:
        raise UpstreamFailed(
            f"ChatGPT demands a proof of work that cannot be made: {error}."
        ) from None


def _token(payload: dict[str, Any], name: str) -> str:
    token = payload.get(name)
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise UpstreamFailed(
            "ChatGPT's answer to the request before a question cannot be read; "
            "CONVERSATION_ONLY=true leaves that request out."
        )
    return token


class Preflight:
    """The requests before one question.

    `call(path, content)`: a POST to the backend. `memory`: of its gateways. `may_spend`: whether Arkose
    tokens, which cost their operator something, may be had for this caller.
    """

    def __init__(
        self,
        rules: PreflightRules,
        call: Callable[[str, bytes], GatewayCall],
        user_agent: str,
        memory: GatewayMemory,
        *,
        may_spend: bool = True,
    ) -> None:
        self._rules = rules
        self._call = call
        self._user_agent = user_agent
        self._memory = memory
        self._may_spend = may_spend

    def steps(self) -> Flow:
        """The headers of the question; none where the backend has no such route. Raises what refuses it."""
        content = orjson.dumps({"p": requirements_text(self._user_agent)})
        response = yield from self._try(PATH, content)
        if response is not None:
            requirements = parse_requirements(response, "token")
            proofs = yield from self._meet(requirements)
            return _headers(requirements.token, proofs)
        response = yield from self._try(f"{PATH}/prepare", content)
        if response is None:
            return {}
        requirements = parse_requirements(response, "prepare_token")
        proofs = yield from self._meet(requirements)
        token = yield from self._finalize(requirements.token, proofs)
        return _headers(token, proofs)

    def _try(
        self, path: str, content: bytes
    ) -> Generator[Yielded, WholeResponse | None, WholeResponse | None]:
        """The answer; None where there is no such route, or was none a while ago."""
        call = self._call(path, content)
        if self._memory.is_missing(call):
            return None
        response = yield Step(call)
        assert response is not None
        if response.status not in MISSING:
            return response
        self._memory.note_missing(call)
        return None

    def _finalize(
        self, prepare_token: str, proofs: Proofs
    ) -> Generator[Yielded, WholeResponse | None, str]:
        fields = {"prepare_token": prepare_token}
        if proofs.work:
            fields["proofofwork"] = proofs.work
        response = yield Step(self._call(f"{PATH}/finalize", orjson.dumps(fields)))
        assert response is not None
        return _token(_object(response), "token")

    def _meet(
        self, requirements: Requirements
    ) -> Generator[Yielded, WholeResponse | None, Proofs]:
        work = arkose = ""
        if requirements.wants_arkose:
            arkose = yield from self._ask_arkose(requirements)
        if requirements.proof is not None:
            work = yield from self._prove(requirements.proof)
        return Proofs(work, arkose)

    def _prove(self, demand: Demand) -> Generator[Yielded, WholeResponse | None, str]:
        if demand.is_harder_than(self._rules.hardest):
            raise Challenged(
                f"ChatGPT demands a proof of work of the difficulty {demand.difficulty}, "
                f"harder than POW_DIFFICULTY ({self._rules.hardest}) allows. Ask again "
                "later, or set a lower one."
            )
        search = ProofSearch(demand, self._user_agent)
        yield Computation(search.advance, self._rules.run, PROOF_SECONDS)
        if search.text is None:
            raise Challenged(
                "ChatGPT demands a proof of work, and none was found in time. Ask again."
            )
        return PROOF_PREFIX + search.text

    def _ask_arkose(
        self, requirements: Requirements
    ) -> Generator[Yielded, WholeResponse | None, str]:
        if not self._rules.arkose_url:
            raise Challenged(
                "ChatGPT demands an Arkose token, and ARKOSE_TOKEN_URL names no service "
                "that gives one.",
                retry_after=CHALLENGED_SECONDS,
            )
        if not self._may_spend:
            raise Challenged(
                "ChatGPT demands an Arkose token, which this service gets for holders of "
                "a client key alone: send one as well."
            )
        call = arkose_call(self._rules.arkose_url, requirements)
        try:
            response = yield Step(call, seconds=ARKOSE_SECONDS)
        except UpstreamError:
            raise _no_arkose("did not answer") from None
        assert response is not None
        return parse_arkose(response)


@frozen
class Proofs:
    """What meets the demands; "" for what was not demanded."""

    work: str = field(repr=False)
    arkose: str = field(repr=False)


def _headers(token: str, proofs: Proofs) -> dict[str, str]:
    headers = {"Openai-Sentinel-Chat-Requirements-Token": token}
    if proofs.work:
        headers["Openai-Sentinel-Proof-Token"] = proofs.work
    if proofs.arkose:
        headers["Openai-Sentinel-Arkose-Token"] = proofs.arkose
    return headers


@frozen
class ArkoseCall(Call):
    """A request to a service of the operator's own, to which no proxy leads."""


def arkose_call(url: str, requirements: Requirements) -> ArkoseCall:
    """The request for an Arkose token; nothing of the account goes with it. Source: seed 4, ArkoseToken."""
    method = "chat35" if requirements.is_free else "chat4"
    content = orjson.dumps({"blob": requirements.blob, "method": method})
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    return ArkoseCall("POST", url, headers, content)


def parse_arkose(response: WholeResponse) -> str:
    """Raises Challenged for what is no token, or one that the service says is not solved."""
    payload = parse_json(response.body)
    if response.status != 200 or not isinstance(payload, dict):
        raise _no_arkose(f"answered {response.status}")
    token = payload.get("token")
    if payload.get("solved") is False:
        raise _no_arkose("answered that it solved nothing")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise _no_arkose("gave no token")
    return token


def _no_arkose(what: str) -> Challenged:
    return Challenged(
        f"ChatGPT demands an Arkose token, and the service at ARKOSE_TOKEN_URL {what}. "
        "See whether that service works."
    )
