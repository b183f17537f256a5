"""The proof of work that ChatGPT may demand before a question. Pure. Source: protocol notes, proof of work.

The text of a proof is base64 of a JSON array with a counter in it. It is one where SHA3-512 of the seed and that text,
in hexadecimal digits, begins with a number that is at most the difficulty, digit for digit.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
from dataclasses import field

import orjson

from relay.ids import new_id
from relay.values import frozen

MOST_ATTEMPTS = 500_000
ATTEMPTS_PER_SLICE = (
    100  # under 1 ms: hashing texts this short holds the interpreter's lock
)
PROOF_PREFIX = "gAAAAAB"
REQUEST_PREFIX = "gAAAAAC"
REQUEST_DIFFICULTY = "0fffff"  # one attempt in 16 succeeds
LENGTH = 18  # of the array; what only a browser could say is null
COUNTER = 3
USER_AGENT = 4
HALF_COUNTER = 9
RANDOM_ID = 14
LONGEST_SEED = 1000
_DIFFICULTY = re.compile(r"[0-9a-f]{1,128}")


@frozen
class Demand:
    """A proof that the backend asks for. Raises ValueError for a demand that nobody can meet."""

    seed: str = field(repr=False)
    difficulty: str

    def __post_init__(self) -> None:
        if not _DIFFICULTY.fullmatch(self.difficulty):
            raise ValueError("the difficulty is no hexadecimal number")
        if len(self.seed) > LONGEST_SEED:
            raise ValueError("the seed is too long")

    def is_harder_than(self, hardest: str) -> bool:
        """Whether it is refused: less is harder, and the hardest that is allowed is refused too."""
        return self.difficulty <= hardest


class ProofSearch:
    """Looks for the text of a proof, slice by slice. `text`: it, once it is found."""

    def __init__(self, demand: Demand, user_agent: str) -> None:
        self._seed = demand.seed.encode("utf-8", "replace")
        self._difficulty = demand.difficulty
        self._pieces = _pieces(user_agent)
        self._attempts = 0
        self.text: str | None = None

    def advance(self, attempts: int = ATTEMPTS_PER_SLICE) -> bool:
        """Make so many attempts; whether the search is over, by a proof or by MOST_ATTEMPTS."""
        first, second, third = self._pieces
        digits = len(self._difficulty)
        end = min(self._attempts + attempts, MOST_ATTEMPTS)
        for number in range(self._attempts, end):
            array = b"%b%d%b%d%b" % (first, number, second, number >> 1, third)
            text = base64.b64encode(array)
            digest = hashlib.sha3_512(self._seed + text).hexdigest()
            if digest[:digits] <= self._difficulty:
                self.text = text.decode()
                return True
        self._attempts = end
        return end == MOST_ATTEMPTS


def _pieces(user_agent: str) -> tuple[bytes, bytes, bytes]:
    """The array as JSON: what is before, between and behind its two counters."""
    array: list[str | None] = [None] * LENGTH
    array[USER_AGENT] = user_agent
    array[RANDOM_ID] = new_id()
    parts = (
        array[:COUNTER],
        array[COUNTER + 1 : HALF_COUNTER],
        array[HALF_COUNTER + 1 :],
    )
    first, second, third = (orjson.dumps(part)[1:-1] for part in parts)
    return b"[" + first + b",", b"," + second + b",", b"," + third + b"]"


def requirements_text(user_agent: str) -> str:
    """What asks for the requirements: a small proof for a seed of our own."""
    demand = Demand(str(random.random()), REQUEST_DIFFICULTY)
    search = ProofSearch(demand, user_agent)
    search.advance(MOST_ATTEMPTS)
    return REQUEST_PREFIX + str(search.text)
