#!/usr/bin/env python3
"""A chat bot for a platform that waits five seconds for an answer and then delivers the same message again.

    bot.py [PORT]

It takes POST /message with {"id", "user", "text"} as JSON and answers with the text to show, or with 503: deliver it
again. Each user has a conversation of its own, and the bot keeps nothing: the service knows the conversation by the
user's name, and the message by its id. CHATGPT_URL is where the service is, CHATGPT_KEY_FILE the file that holds a
client key.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

URL = os.environ.get("CHATGPT_URL", "http://127.0.0.1:8080")
KEY_FILE = Path(os.environ.get("CHATGPT_KEY_FILE", "data/client_key"))
PATIENCE = 4.5  # seconds: the platform hangs up after five
LARGEST_MESSAGE = 1_000_000  # bytes
COME_BACK = ("still_answering", "conversation_busy", "rate_limited", "overloaded")


def ask(user: str, message_id: str, text: str) -> str | None:
    """The answer to one message; None while it is being made: the same message then asks for it again."""
    fields = {
        "prompt": text,
        "conversation": f"user {user}",
        "request_id": message_id,
        "timeout": str(int(PATIENCE * 1000)),
    }
    request = urllib.request.Request(
        f"{URL}/ask", urllib.parse.urlencode(fields).encode(), headers()
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE + 5) as answer:
            return str(json.load(answer)["data"]["message"])
    except urllib.error.HTTPError as error:
        if error.headers["X-Error-Code"] in COME_BACK:
            return None
        return f"Sorry, that failed: {json.load(error)['msg']}"


def headers() -> dict[str, str]:
    """The client key, where there is one."""
    if not KEY_FILE.exists():
        return {}
    return {"Authorization": f"Bearer {KEY_FILE.read_text().strip()}"}


class Bot(BaseHTTPRequestHandler):
    """The platform's side."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/message" or length > LARGEST_MESSAGE:
            return self.reply(404, "")
        message = json.loads(self.rfile.read(length))
        answer = ask(str(message["user"]), str(message["id"]), str(message["text"]))
        return self.reply(200 if answer is not None else 503, answer or "")

    def reply(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8090
    ThreadingHTTPServer(("127.0.0.1", port), Bot).serve_forever()
