"""The service with deadlines of a second or two, and with routes that block and fail: for tests of the servers."""

import wsgi  # noqa: I001  gevent patches first

import threading
import time
import warnings
from typing import Any

import gevent
from gevent import monkey

from relay import connection, http_server

wsgi.STANDSTILL_SECONDS = 2.0
http_server.HEAD_SECONDS = 1.5
http_server.IDLE_SECONDS = 2.0
connection.BODY_SECONDS = 2.0
connection.SEND_SILENCE = 2.0
connection.LINGER_SECONDS = 2.0
connection.LINGER_SILENCE = 0.5

app = wsgi.app


@app.get("/block")
def block(incoming: Any) -> str:
    """Stops the whole event loop, as a quadratic pattern would."""
    monkey.get_original("time", "sleep")(60)
    return "over"


@app.get("/fail")
def fail(incoming: Any) -> str:
    """Fails in all ways that print something of their own."""
    warnings.warn("a warning", stacklevel=1)
    thread = threading.Thread(target=divide, args=(1, 0))
    thread.start()
    gevent.spawn(divide, 2, 0)
    thread.join()
    time.sleep(0.01)
    divide(3, 0)
    return "over"


def divide(one: int, other: int) -> float:
    return one / other


if __name__ == "__main__":
    wsgi.serve(wsgi.settings)
