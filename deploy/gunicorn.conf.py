"""gunicorn as the service wants it: gunicorn -c deploy/gunicorn.conf.py wsgi:app"""

from relay.settings import Settings

settings = Settings.load()

bind = (
    f"[{settings.host}]:{settings.port}"
    if ":" in settings.host
    else f"{settings.host}:{settings.port}"
)
worker_class = "gevent"
workers = 1  # several share one SQLite file as well; one is enough for a small machine
worker_connections = 2000
keepalive = 5  # a stop waits for idle connections too
graceful_timeout = int(settings.total_timeout) + 5  # running answers may end
control_socket_disable = True
