"""Files for nginx: as Debian ships it, as deploy/ has it, and as users of seed 2 have it."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.processes import ROOT, Service, free_port, need

Nginx = Callable[[str], None]


def certificate(folder: Path) -> tuple[Path, Path]:
    key, chain = folder / "privkey.pem", folder / "fullchain.pem"
    subject = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]
    command = [
        need("openssl"),
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *subject,
    ]
    subprocess.run(
        [*command, "-keyout", key, "-out", chain], check=True, capture_output=True
    )
    return key, chain


def stock(service: Service, folder: Path) -> tuple[str, str]:
    port = free_port()
    return (
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {service.url}; }} }}",
        f"http://127.0.0.1:{port}",
    )


@dataclass(frozen=True)
class Deployment:
    """deploy/nginx.conf with ports, names and paths of this machine, and where it answers."""

    text: str
    url: str
    url_by_ipv6: str
    plain_url: str
    acme_folder: Path


def deployment(service_url: str, folder: Path) -> Deployment:
    key, chain = certificate(folder)
    port = free_port()
    plain_port = free_port()
    acme_folder = folder / "acme"
    changes = {
        "ssl_certificate_key /etc/letsencrypt/live/chat.example.org/privkey.pem": f"ssl_certificate_key {key}",
        "ssl_certificate /etc/letsencrypt/live/chat.example.org/fullchain.pem": f"ssl_certificate {chain}",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "listen [::]:443 ssl": f"listen [::1]:{port} ssl",
        "listen 80": f"listen 127.0.0.1:{plain_port}",
        "listen [::]:80": f"listen [::1]:{plain_port}",
        "/var/www/html": str(acme_folder),
        "http://127.0.0.1:8080": service_url,
    }
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for known, changed in changes.items():
        assert known in text
        text = text.replace(known, changed)
    if not has_ipv6():
        text = re.sub(r"listen \[::1\]:[^;]+;", "", text)
    return Deployment(
        text=text,
        url=f"https://localhost:{port}",
        url_by_ipv6=f"https://[::1]:{port}",
        plain_url=f"http://127.0.0.1:{plain_port}",
        acme_folder=acme_folder,
    )


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def deployed(service: Service, folder: Path) -> tuple[str, str]:
    known = deployment(service.url, folder)
    return known.text, known.url


def of_seed_2(service: Service, folder: Path) -> tuple[str, str]:
    port, key, chain = free_port(), *certificate(folder)
    return (
        f"""server {{
            server_name localhost;
            listen 127.0.0.1:{port} ssl;
            ssl_certificate {chain};
            ssl_certificate_key {key};
            error_page 497 https://$host$request_uri;
            location / {{
                proxy_pass {service.url};
                proxy_redirect off;
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection "upgrade";
                proxy_set_header Host $http_host;
            }}
        }}""",
        f"https://localhost:{port}",
    )
