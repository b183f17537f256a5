"""Files for nginx: as Debian ships it, as deploy/ has it, and as users of seed 2 have it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
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


def deployed(service: Service, folder: Path) -> tuple[str, str]:
    """deploy/nginx.conf with ports, names and paths of this machine."""
    port, key, chain = free_port(), *certificate(folder)
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    text = re.sub(r"ssl_certificate_key [^;]+", f"ssl_certificate_key {key}", text)
    text = re.sub(r"ssl_certificate [^;]+", f"ssl_certificate {chain}", text)
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl").replace(
        "listen 80", f"listen 127.0.0.1:{free_port()}"
    )
    assert "http://127.0.0.1:8080" in text
    return text.replace(
        "http://127.0.0.1:8080", service.url
    ), f"https://localhost:{port}"


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
