"""What a browser may do for a page: nothing for another origin, unless that is listed."""

from __future__ import annotations

from collections.abc import Mapping

from relay.errors import Forbidden

READABLE_HEADERS = (
    "X-Conversation-Id",
    "X-Parent-Message-Id",
    "X-Request-Id",
    "X-Error-Source",
    "X-Error-Code",
    "X-Incomplete",
    "X-Finish-Reason",
    "X-History-Dropped",
    "X-Ignored-Parameters",
    "Idempotent-Replayed",
    "Retry-After",
)


def comes_from_page(headers: Mapping[str, str]) -> bool:
    """Whether a browser says which page asks. Other programs say nothing, and browsers of one that is opened itself."""
    return "Origin" in headers or "Sec-Fetch-Site" in headers


class BrowserRules:
    """`origins`: pages that may call, with credentials; "*" is any page, without. `needs_key`: a key is asked for."""

    def __init__(self, origins: tuple[str, ...], needs_key: bool) -> None:
        self._origins = origins
        self._needs_key = needs_key

    def check(self, headers: Mapping[str, str], host: str) -> None:
        """Raise Forbidden for a page of another origin, told by Sec-Fetch-Site, or else by Origin."""
        origin = headers.get("Origin", "").lower()
        if not self._is_foreign(headers, host):
            return
        allowed = origin in self._origins
        if "*" in self._origins and not _has_ambient_credential(headers):
            allowed = True
        if not origin or not allowed:
            raise Forbidden(
                "A page of another origin may not ask here. Its origin must stand in "
                "CORS_ORIGINS."
            )

    def _is_foreign(self, headers: Mapping[str, str], host: str) -> bool:
        site = headers.get("Sec-Fetch-Site", "").lower()
        if site:
            return site not in ("none", "same-origin")
        # browsers say it to https and to this machine alone
        origin = headers.get("Origin", "").lower()
        shows_key = headers.get("Authorization") or headers.get("X-Api-Key")
        needs_nothing = not self._needs_key and not shows_key
        if not origin or not (needs_nothing or _has_ambient_credential(headers)):
            return False
        return origin.partition("://")[2] != host.lower()

    def cors(self, origin: str) -> dict[str, str]:
        """The headers by which a browser lets a page of `origin` read the answer; none for other origins."""
        if not self._origins:
            return {}
        headers = {"Vary": "Origin"}
        if origin.lower() in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
        elif origin and "*" in self._origins:
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            return headers
        headers["Access-Control-Expose-Headers"] = ", ".join(READABLE_HEADERS)
        return headers

    def preflight(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What answers a browser's question before it asks, beside `cors`.

        Raises Forbidden for an origin that is not listed.
        """
        if "Access-Control-Allow-Origin" not in self.cors(headers.get("Origin", "")):
            raise Forbidden(
                "This origin may not ask here. It must stand in CORS_ORIGINS."
            )
        asked = headers.get("Access-Control-Request-Headers", "Authorization")
        return {
            "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
            "Access-Control-Allow-Headers": asked,
            "Access-Control-Max-Age": "600",
        }


def _has_ambient_credential(headers: Mapping[str, str]) -> bool:
    """Whether the browser may have sent a credential by itself, unasked by the page."""
    authorization = headers.get("Authorization", "").lower()
    return "Cookie" in headers or authorization.startswith("basic ")
