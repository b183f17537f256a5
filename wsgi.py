"""The service under gevent: `python3 wsgi.py` serves by itself, `gunicorn -k gevent -b 127.0.0.1:8080 wsgi:app`
with gunicorn.

The one place that knows of gevent. It hands in what must: native threads, and how to see that a caller left.
"""

from relay.commands import check_python
from relay.containers import SIGNALS, end_at_signals

check_python()
end_at_signals()  # until `serve` lets running answers end

from gevent import monkey

monkey.patch_all()  # before anything is imported that it has to patch

import atexit
import contextlib
import errno
import faulthandler
import gc
import ipaddress
import logging
import os
import resource
import select
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import gevent
from gevent import threadpool
from gevent.event import Event
from gevent.hub import Hub
from gevent.pool import Pool
from gevent.server import StreamServer

from chatgpt_webapi import create_app
from relay import logs, startup, systemd, workers
from relay.connection import BodyGuard, Connection
from relay.deadline import Deadline
from relay.errors import Overloaded, RelayError, StoreFailed
from relay.http_server import HttpServer
from relay.server import Run, Server
from relay.service import Service
from relay.setting_warnings import find_warnings
from relay.settings import Settings, SettingsError
from relay.stream_pump import NEVER, StreamPump
from relay.values import frozen
from relay.waiting_callers import MOST_WAITING, WaitingCallers

#: gunicorn's: the master ends, where it would start workers for ever; ours does the same
WORKER_BOOT_ERROR = workers.REFUSED

READABLE = 1  # libev's EV_READ
SOON = 0.2  # seconds between two looks for connections that are to be polled: most requests are answered by then
#: after an ask's own time, until its connection is ended: a database that cannot be written to fails by itself by then,
#: with an error that its caller is told
SECONDS_TO_STORE = 30.0
LOOK_SECONDS = 2.0  # between two looks whether a worker's supervisor is there
MOST_DESCRIPTORS = 65536  # a stream has two; shells give 1024
ROOM = 16  # connections that end at once where there are no descriptors left
STANDSTILL_SECONDS = 30.0  # of an event loop; gunicorn waits for its workers as long
#: objects before a collection, and collections before the next older ones: of 9,000 objects it stops all for 9 ms, of
#: what 5,000 streams have for 0.2 s
GARBAGE = 3000, 2, 2500

log = logging.getLogger("chatgpt_webapi")
unpatched_epoll = monkey.get_original("select", "epoll")
start_native_thread = monkey.get_original("_thread", "start_new_thread")

# An error of ours that leaves a native thread goes to its caller; gevent would also print it.
Hub.NOT_ERROR += (RelayError,)


def log_failure(hub: Hub, context: object, *failure: Any) -> None:
    """Log what gevent would print to standard error: a greenlet's exception. The context may hold a key."""
    logs.log_uncaught(*failure)


Hub.print_exception = log_failure  # type: ignore[assignment, method-assign]


def native() -> Run:
    """A native thread of its own: what blocks in it stops no greenlet."""
    pool = threadpool.ThreadPool(1)
    return lambda work: pool.apply(work)


def start_thread(work: Callable[[], None]) -> None:
    """Runs work in a native thread; it touches nothing of gevent's."""
    start_native_thread(work, ())


def connection_of(environ: Mapping[str, Any]) -> Any:
    """The socket of a request, under either server."""
    return environ.get("relay.socket") or environ.get("gunicorn.socket")


def spare_collections() -> None:
    """Have the garbage collector look at what came after the start alone, and less often.

    With Python's own settings it took a fifth of a request's CPU. Neither an answered ask nor a broken one leaves
    it anything to find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


@frozen
class Watched:
    """A caller's connection. `left`: called when its other side ends it; `until`: when it is ended here."""

    departures: "Departures"
    connection: socket.socket
    descriptor: int
    left: Callable[[], None]
    until: Deadline

    def forget(self) -> None:
        """Watch it no more."""
        self.departures.forget(self)


class Departures:
    """Sees callers leave, and ends connections whose time is over: one poll for all of them, and two timers.

    What arrives on a connection is not for here to read: a body may be awaited, or the next request.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Watched] = {}
        self._unpolled: dict[int, Watched] = {}
        self._poll: Any = None
        self._io: Any = None
        self._timer: Any = None
        self._poll_timer: Any = None

    def watch(
        self, environ: Mapping[str, Any], left: Callable[[], None], seconds: float
    ) -> Callable[[], None]:
        """Calls `left` when the request's connection ends, and ends it after `seconds`: nobody may read for ever."""
        connection = connection_of(environ)
        # through TLS of our own, an end cannot be seen
        if connection is None or isinstance(connection, ssl.SSLSocket):
            return lambda: None
        if self._poll is None:  # gunicorn forks after the import
            self._begin()
        until = Deadline.after(seconds + SECONDS_TO_STORE)
        descriptor = connection.fileno()
        watched = Watched(self, connection, descriptor, left, until)
        self._watched[descriptor] = self._unpolled[descriptor] = watched
        if not self._timer.active:
            self._timer.start(self._look_at_clocks)
        if not self._poll_timer.active:
            self._poll_timer.again(self._poll_new)
        return watched.forget

    def _begin(self) -> None:
        loop = gevent.get_hub().loop
        self._poll = unpatched_epoll()
        self._io = loop.io(self._poll.fileno(), READABLE)
        self._timer = loop.timer(1, 1)
        self._poll_timer = loop.timer(SOON, SOON)
        self._io.start(self._notice)

    def _poll_new(self) -> None:
        if not self._unpolled:
            self._poll_timer.stop()
        unpolled, self._unpolled = self._unpolled, {}
        for descriptor in unpolled:
            with contextlib.suppress(OSError, ValueError):  # it is closed by now
                self._poll.register(descriptor, select.EPOLLRDHUP)

    def _notice(self) -> None:
        """What the loop calls must not block."""
        for descriptor, _ in self._poll.poll(0):
            watched = self._watched.get(descriptor)
            if watched is not None:
                self.forget(watched)
                gevent.spawn(watched.left)

    def _look_at_clocks(self) -> None:
        if not self._watched:
            self._timer.stop()
        for watched in tuple(self._watched.values()):
            if watched.until.passed:
                with contextlib.suppress(OSError):  # it may be gone by now
                    watched.connection.shutdown(socket.SHUT_RDWR)

    def forget(self, watched: Watched) -> None:
        """Watch a connection no more, if nobody else has its descriptor by now."""
        if self._watched.get(watched.descriptor) is watched:
            del self._watched[watched.descriptor]
            if self._unpolled.pop(watched.descriptor, None) is not None:
                return
            try:
                self._poll.unregister(watched.descriptor)
            except (OSError, ValueError):
                pass  # it is closed by now


def wait_readable(connection: Any, seconds: float) -> bool:
    """Whether there is something to read within `seconds`. Half the cost of gevent's own wait, which every chunk has.

    Raises OSError where another greenlet ends the connection.
    """
    watcher = connection._read_event
    if watcher is None:
        raise OSError(errno.EBADF, "the connection was closed")
    hub = gevent.get_hub()
    timer = hub.loop.timer(seconds)
    switch = gevent.getcurrent().switch
    watcher.start(switch, True)
    timer.start(switch, False)
    try:
        return bool(hub.switch())
    finally:
        watcher.stop()
        timer.stop()
        timer.close()


class Readiness:
    """See `relay.stream_pump.Readiness`: one poll, which the loop watches, tells of all descriptors."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._poll: Any = unpatched_epoll()
        self._io = self._hub.loop.io(self._poll.fileno(), READABLE)
        self._io.start(self._end_wait)
        self._timer: Any = None
        self._rings_at = NEVER
        self._switch: Callable[[], object] | None = None

    def add(self, descriptor: int) -> None:
        self._poll.register(descriptor, select.EPOLLIN)

    def remove(self, descriptor: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # it may be closed by now
            self._poll.unregister(descriptor)

    def wait(self, deadline: Deadline, most: int) -> list[int]:
        if deadline < self._rings_at:
            self._ring_at(deadline)
        self._switch = gevent.getcurrent().switch
        self._hub.switch()
        return [descriptor for descriptor, _ in self._poll.poll(0, most)]

    def wake(self) -> None:
        self._hub.loop.run_callback(self._end_wait)

    def _end_wait(self) -> None:
        switch, self._switch = self._switch, None
        if switch is not None:
            switch()

    def _ring_at(self, deadline: Deadline) -> None:
        """Set the timer; one that rings earlier does no harm."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
        self._rings_at = deadline
        self._timer = self._hub.loop.timer(deadline.left)
        self._timer.start(self._ring)

    def _ring(self) -> None:
        self._rings_at = NEVER
        self._end_wait()


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


class GracefulServer(StreamServer):
    """Accepts connections, each for a greenlet of its own, and lets running answers end."""

    def __init__(
        self,
        listener: socket.socket,
        address: tuple[str, int],
        send_seconds: float,
        waiting: WaitingCallers,
    ) -> None:
        connections = Pool()
        self._waiting = waiting
        self._pump = StreamPump(Readiness())
        self._server = HttpServer(
            app,
            address,
            send_seconds,
            wait_readable,
            self._pump,
            connections.spawn,
            waiting,
        )
        super().__init__(listener, self._server.serve, spawn=connections)
        gevent.spawn(self._pump.run)

    def do_read(self) -> Any:
        """Accept a connection; where there is no descriptor for it, those end that have sent nothing for longest."""
        try:
            return super().do_read()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._waiting.make_room("All descriptors are used", ROOM)
            raise Overloaded() from None  # tried again after a pause

    def finish(self, seconds: float) -> None:
        """Take no more requests, and wait for the running ones."""
        deadline = Deadline.after(seconds)
        self._server.let_idle_go()
        self.close()  # who comes now is refused at once, and goes to another server
        while len(self._pump) and not deadline.passed:
            gevent.sleep(0.05)
        self.stop(timeout=deadline.left)


def listen(settings: Settings) -> socket.socket:
    """Listen, or end the process with a sentence."""
    try:
        return listen_at(settings.host, settings.port)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        log.critical("chatgpt-webapi cannot listen on %s: %s", address, error.strerror)
        sys.exit(1)


def listen_at(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = gevent.socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # the pieces of a body are written apart; without this the next waits 40 ms for the client's delayed ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers end."""
    descriptors = raise_descriptor_limit()
    # an ask has two, so those that wait leave most of them to the others
    waiting = WaitingCallers(min(MOST_WAITING, descriptors // 4))
    listener = workers.inherited() or listen(settings)
    host, port = listener.getsockname()[:2]
    server = GracefulServer(listener, (host, port), settings.total_timeout, waiting)
    if workers.number() <= 1:
        warn_of_address(host)
    stop = Event()
    watchers = [gevent.signal_handler(number, stop.set) for number in SIGNALS]
    spare_collections()
    server.start()
    end_at_standstill()
    if workers.number() <= 1:  # one of those that start together says it for all
        log.info("Listening on http://%s:%d%s", host, port, settings.api_prefix)
        startup.log_start(service, (host, port))
    systemd.notify("READY=1")
    wait_for(stop)
    if not workers.number():  # of all of them that is their supervisor's to say
        systemd.notify("STOPPING=1")
    log.info("Stopping: running answers are finished first. A second signal cuts them.")
    for watcher in watchers:
        watcher.cancel()
    end_at_signals()
    server.finish(settings.total_timeout + 5)
    if service.background.is_running:
        log.info("Asks with a key that outlive their callers are finished.")
    service.wait(settings.total_timeout + 5)
    log.info("Stopped.")


def raise_descriptor_limit() -> int:
    """Have as many descriptors as this process may have by itself; how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox may refuse it
        return soft
    return wanted


def end_at_standstill() -> None:
    """End the process where its loop stands still, and say where, if somebody starts it anew then.

    A watch of C's own, for what stands still may have Python's lock.
    """
    if not workers.are_restarted():
        return
    rearm = partial(faulthandler.dump_traceback_later, STANDSTILL_SECONDS, exit=True)
    gevent.get_hub().loop.timer(0, STANDSTILL_SECONDS / 3, ref=False).start(rearm)


def wait_for(stop: Event) -> None:
    """Wait for the event; as a worker, also for the end of the process that would say it."""
    while not stop.wait(LOOK_SECONDS if workers.number() else None):
        if workers.are_alone():
            log.warning("The supervising process is gone: this worker ends too.")
            return


def warn_of_address(host: str) -> None:
    """Warn where strangers can reach what is served here."""
    address = ip_of(host)
    is_public = address.is_global or address.is_unspecified
    if is_public and not workers.are_contained():
        log.warning("Listening on %s without TLS: put nginx before it.", host)
    warn_if_open(host, service)


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.partition("%")[0])


def address_of(name: Any) -> startup.Address:
    """A listening socket's own name, as `log_start` takes it."""
    return name[:2] if isinstance(name, tuple) else str(name)


def warn_if_open(host: str, service: Service) -> None:
    """Warn where strangers may reach a service that asks nobody for a key."""
    if not ip_of(host).is_loopback and not service.access.needs_key:
        is_outside = workers.are_contained()
        log.warning(
            "Listening on %s without client keys: whoever reaches it may use it. Set "
            "AUTHORIZATION, or %s on 127.0.0.1.",
            host,
            "publish its port" if is_outside else "listen",
        )


def adapt_gunicorn(worker_class: Any, service: Service) -> None:
    """Give the connections of gunicorn's gevent worker our deadlines, and log what a start says."""
    handle = worker_class.handle
    run = worker_class.run

    def handle_connection(
        worker: Any, listener: Any, accepted: Any, address: Any
    ) -> None:
        # what gunicorn wraps in TLS of its own keeps gunicorn's rules
        if not hasattr(accepted, "getpeercert"):
            accepted = Connection.adopt(accepted, service.settings.total_timeout)
        handle(worker, listener, accepted, address)

    def run_worker(worker: Any) -> None:
        addresses = [listener.getsockname() for listener in worker.sockets]
        for address in addresses:
            if isinstance(address, tuple):  # a UNIX socket has a path
                warn_if_open(address[0], service)
        spare_collections()
        # one of the workers that start together says it for all
        if (worker.age - 1) % worker.cfg.workers == 0:
            startup.log_start(service, address_of(addresses[0]))
        run(worker)

    worker_class.handle = handle_connection
    worker_class.run = run_worker


def refuse_start(error: Exception) -> NoReturn:
    """End the process with one line that says why; under gunicorn, the master too."""
    reason = " ".join(f"chatgpt-webapi cannot start: {error}".split())
    if logging.getLogger().handlers:
        log.critical("%s", reason)
    else:  # LOG_FORMAT could not be read
        sys.stderr.write(f"{reason}\n")
    is_worker = "gunicorn.arbiter" in sys.modules or workers.number()
    sys.exit(WORKER_BOOT_ERROR if is_worker else 1)


try:
    settings = Settings.load()
    logs.configure(settings.log_level, settings.log_format)
    logging.getLogger("gunicorn.error").addFilter(redact_request)
    if workers.number() <= 1:
        for warning in find_warnings(settings, os.environ):
            log.warning("%s", warning)
    if __name__ == "__main__" and settings.workers > 1 and not workers.number():
        form = settings.log_level, settings.log_format
        workers.supervise(listen(settings), settings.workers, *form)
    app = create_app(
        settings,
        server=Server(
            native, start_thread, Departures().watch, broken_input(), wait_readable
        ),
    )
except (SettingsError, StoreFailed, OSError) as error:
    refuse_start(error)

service: Service = app.extensions["service"]
if "gunicorn.workers.ggevent" in sys.modules:
    app.wsgi_app = BodyGuard(app.wsgi_app, connection_of)  # type: ignore[method-assign]
    adapt_gunicorn(sys.modules["gunicorn.workers.ggevent"].GeventWorker, service)
atexit.register(service.close)  # the last one: what is registered later runs first
# asks that outlive their callers
atexit.register(service.wait, settings.total_timeout + 5)

if __name__ == "__main__":
    serve(settings)
