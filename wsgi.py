"""The service under gevent: `python3 wsgi.py` serves with pywsgi, `gunicorn -k gevent wsgi:app` with gunicorn.

The one place that knows of gevent. It hands in what must: native threads, and how to see that a caller left.
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import atexit
import contextlib
import ipaddress
import logging
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any

import gevent
from gevent import pywsgi, threadpool
from gevent.event import Event
from gevent.hub import Hub
from gevent.pool import Pool
from gevent.socket import wait_read

from chatgpt_webapi import create_app
from relay import logs
from relay.deadline import Deadline
from relay.errors import RelayError, StoreFailed
from relay.server import Run, Server
from relay.settings import Settings, SettingsError

log = logging.getLogger("chatgpt_webapi")
unpatched_poll = monkey.get_original("select", "poll")

# An error of ours that leaves a native thread goes to its caller; gevent would also print it.
Hub.NOT_ERROR += (RelayError,)


def native() -> Run:
    """A native thread of its own: what blocks in it stops no greenlet."""
    pool = threadpool.ThreadPool(1)
    return lambda work: pool.apply(work)


def watch(
    environ: Mapping[str, Any], left: Callable[[], None], seconds: float
) -> Callable[[], None]:
    """Calls `left` when the request's connection ends, and ends it after `seconds`: nobody may read for ever."""
    connection = environ.get("relay.socket") or environ.get("gunicorn.socket")
    # through TLS of our own, an end cannot be peeked at
    if connection is None or hasattr(connection, "getpeercert"):
        return lambda: None
    greenlet = gevent.spawn(_watch, connection, left, seconds)
    return lambda: greenlet.kill(block=False)


def _watch(connection: socket.socket, left: Callable[[], None], seconds: float) -> None:
    try:
        ended = _wait_for_end(connection, seconds)
    except OSError:
        ended = True
    if ended:
        left()
        return
    gevent.sleep(1)  # the turn's own clock comes first, with an error of its own
    with contextlib.suppress(OSError):  # it may be gone by now
        connection.shutdown(socket.SHUT_RDWR)


def _wait_for_end(connection: socket.socket, seconds: float) -> bool:
    """Whether the connection's other side ended it within `seconds`."""
    deadline = Deadline.after(seconds)
    try:
        wait_read(connection.fileno(), timeout=seconds, timeout_exc=TimeoutError())
    except TimeoutError:
        return False
    if not connection.recv(1, socket.MSG_PEEK):
        return True
    # the next request is here already, and hides its caller's end from a peek
    poll = unpatched_poll()
    poll.register(connection, select.POLLRDHUP)
    while not deadline.passed:
        if poll.poll(0):
            return True
        gevent.sleep(0.5)
    return False


def broken_input() -> tuple[type[Exception], ...]:
    """What the server at hand raises while a body is read that is broken."""
    gunicorn = sys.modules.get("gunicorn.http.errors")
    return (OSError, gunicorn.ParseException) if gunicorn else (OSError,)


def redact_request(record: logging.LogRecord) -> bool:
    """Takes out of gunicorn's log what it quotes of a request that it could not read: that may be anything."""
    if str(record.msg).startswith("Invalid request from"):
        record.msg = "A request could not be read."
        record.args = ()
    return True


def _is_ambiguous(headers: Message) -> bool:
    """Whether the framing of a request can be read in more than one way."""
    if headers.defects:  # a line that is no header hides the ones after it
        return True
    names = headers.keys()
    if any(name != name.strip() or " " in name for name in names):
        return True
    lengths = headers.get_all("content-length") or []
    if len(lengths) > 1 or not all(text.strip().isdecimal() for text in lengths):
        return True
    encoding = headers.get("transfer-encoding", "")
    return bool(encoding) and (bool(lengths) or encoding.lower() != "chunked")


class Handler(pywsgi.WSGIHandler):
    """Shows the app its socket, and lets idle connections go when the server stops."""

    server: "GracefulServer"

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), "relay.socket": self.socket}

    def read_requestline(self) -> str:
        if self.server.stopping:
            return ""
        self.server.idle.add(self.socket)
        try:
            return str(super().read_requestline())
        finally:
            self.server.idle.discard(self.socket)

    def MessageClass(self, *args: Any) -> Any:
        headers = super().MessageClass(*args)
        if _is_ambiguous(headers):
            raise ValueError("two servers could read two different requests")
        return headers

    def log_error(self, msg: str, *args: object) -> None:
        # pywsgi's own words quote what was sent, and that may be anything
        address = self.client_address[0] if self.client_address else "-"
        log.warning("A request from %s could not be read", address)

    def handle_one_response(self) -> None:
        super().handle_one_response()
        if getattr(self.wsgi_input, "_chunked_input_error", False):
            self.close_connection = True  # what follows is of no known request

    def _connection_upgrade_requested(self) -> bool:
        # chatgpt-webapi's nginx file says "Connection: upgrade" on every request
        return False


class GracefulServer(pywsgi.WSGIServer):
    """pywsgi without delays, that lets running answers end."""

    def __init__(self, listener: socket.socket, app: Any) -> None:
        super().__init__(
            listener, app, handler_class=Handler, spawn=Pool(), log=None, error_log=log
        )
        self.idle: set[socket.socket] = set()
        self.stopping = False

    def finish(self, seconds: float) -> None:
        """Take no more requests, and wait for the running ones."""
        self.stopping = True
        for connection in tuple(self.idle):
            with contextlib.suppress(OSError):  # its other side may be gone already
                connection.shutdown(socket.SHUT_RD)
        self.stop(timeout=seconds)


def listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = gevent.socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # pywsgi writes head and body apart; without this the second waits 40 ms for the client's delayed ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers end."""
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        sys.exit(f"chatgpt-webapi cannot listen on {address}: {error.strerror}")
    server = GracefulServer(listener, app)
    host, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(host).is_loopback:
        log.warning(
            "Listening on %s: pywsgi is not made for strangers. Put nginx before it, or "
            "use gunicorn.",
            host,
        )
    stop = Event()
    watchers = [
        gevent.signal_handler(number, stop.set)
        for number in (signal.SIGTERM, signal.SIGINT)
    ]
    server.start()
    log.info("Listening on http://%s:%d%s", host, port, settings.api_prefix)
    stop.wait()
    log.info("Stopping: running answers may end. A second signal ends them.")
    for watcher in watchers:
        watcher.cancel()
    server.finish(settings.total_timeout + 5)
    log.info("Stopped.")


try:
    settings = Settings.load()
    logs.configure(settings.log_level, settings.log_format)
    logging.getLogger("gunicorn.error").addFilter(redact_request)
    app = create_app(settings, server=Server(native, watch, broken_input()))
    service = app.extensions["service"]
    atexit.register(service.close)  # the last one: what is registered later runs first
    # asks that outlive their callers
    atexit.register(service.wait, settings.total_timeout + 5)
except (SettingsError, StoreFailed, OSError) as error:
    sys.exit(f"chatgpt-webapi cannot start: {error}")

if __name__ == "__main__":
    serve(settings)
