"""gunicorn as the service wants it: gunicorn -c deploy/gunicorn.conf.py wsgi:app"""

import os
import sys
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.systemd import sd_notify

from relay import logs
from relay.settings import Settings, SettingsError

WORKER_BOOT_ERROR = 3  # as gunicorn has it: the master ends, and says so to systemd

try:
    settings = Settings.load()
except SettingsError as error:
    sys.stderr.write(f"chatgpt-webapi cannot start: {error}\n")
    sys.exit(WORKER_BOOT_ERROR)


# gunicorn's master would report READY before a worker has loaded the service
NOTIFY_SOCKET = os.environ.pop("NOTIFY_SOCKET", "")


class Log(Logger):
    """gunicorn's own log, in the form of the service's."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(logs.formatter(settings.log_format))


def worker_abort(worker: Any) -> None:
    """End a worker at once whose event loop stood still for `timeout`: gunicorn's own way waits for its requests."""
    os._exit(1 if worker.booted else WORKER_BOOT_ERROR)


def post_worker_init(worker: Any) -> None:
    """Report to systemd that the service answers: the app is loaded and the worker accepts next."""
    if NOTIFY_SOCKET:
        os.environ["NOTIFY_SOCKET"] = NOTIFY_SOCKET
        sd_notify("READY=1", worker.log, unset_environment=True)


bind = (
    f"[{settings.host}]:{settings.port}"
    if ":" in settings.host
    else f"{settings.host}:{settings.port}"
)
logger_class = Log
worker_class = "gevent"
workers = settings.workers  # they share one SQLite file as well
worker_connections = 2000
keepalive = 5  # also for a request's head; a stop waits for idle connections too
graceful_timeout = int(settings.total_timeout) + 5  # running answers may end
control_socket_disable = True
