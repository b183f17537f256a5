"""A ChatGPT web backend of the tests' own: a server on a free port that keeps trees, and refuses what the real one refuses.

It speaks both encodings, and behaves as its `Mode` states: slow, silent, cut, garbled, limited, handing off ... It records
what it was asked and whether the asker left. Everything it says is invented; the shapes are those of the protocol notes.
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.sentinel import REFUSED, Sentinel

Message = dict[str, Any]
MODELS = {
    "models": [
        {"slug": "gpt-4", "max_tokens": 4095, "title": "GPT-4", "tags": ["gpt4"]},
        {"slug": "gpt-5-mini", "max_tokens": 8191, "title": "GPT-5 mini", "tags": []},
    ],
    "categories": [{"category": "gpt_4", "default_model": "gpt-4"}],
}


@dataclass
class Mode:
    """How the backend behaves from now on."""

    encoding: str = "asked"  # classic, delta, or what the request asks for
    refusals: list[tuple[int, dict[str, str], bytes]] = field(
        default_factory=list
    )  # one each, before any answer
    refuse_rest: tuple[int, dict[str, str], bytes] | None = (
        None  # of an answer that is to be continued
    )
    refuse_tokens: dict[str, tuple[int, dict[str, str], bytes]] = field(
        default_factory=dict
    )
    raw: bytes | None = None  # this instead of an answer's stream
    content_type: str = "text/event-stream; charset=utf-8"
    delay: float = 0.0  # before the head
    quiet: float = 0.0  # between the head and the first piece
    pace: float = 0.0  # between the pieces
    cut_after: int | None = (
        None  # pieces, then the connection is closed without its end
    )
    stall_after: int | None = None  # pieces, then silence
    pieces_of: int = 0  # bytes a packet; 0: an event each
    crlf: bool = False
    done: bool = True  # whether [DONE] comes
    length_stops: int = 0  # so many answers stop for their length
    hand_off: bool = False
    missed_polls: int = 0  # so many looks fail
    refuse_looks: tuple[int, dict[str, str], bytes] | None = None
    polls: int = (
        1  # how often a handed-off answer is still in progress when it is looked for
    )
    no_text: bool = False
    between: list[dict[str, Any]] = field(
        default_factory=list
    )  # messages that stand between a question and its answer
    answer: dict[str, Any] = field(default_factory=dict)  # fields of each answer
    says: str | None = None  # the text of each answer
    image_alone: bool = False  # the last of `between` is all of the answer
    async_status: str | None = None  # of every conversation that is looked at
    page: int = 100
    bare_list: bool = False
    one_at_a_time: bool = False
    ascii_only: bool = False  # JSON with escapes, as the real one prints it
    failing_uploads: dict[str, tuple[int, dict[str, str], bytes]] = field(
        default_factory=dict
    )  # announce, put, uploaded or look -> how it is refused
    cut_uploads: str = ""  # the one of them whose connection is cut
    slow_uploads: dict[str, float] = field(default_factory=dict)
    storage: str = ""  # the address that files are to be put to
    looks: int = 0  # so often a document is still being read when it is looked for
    only_asking: bool = (
        False  # as a reverse proxy that passes on the conversation path alone
    )


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    left: float | None = None  # when the asker left
    waiting: bool = False  # the answer pauses: before its head, or between its pieces


@dataclass
class Blob:
    """A file, and how its storage answers. `address`: where it is said to be; "": in the storage here."""

    content: bytes = b""
    content_type: str = "image/png"
    address: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    cut_after: int | None = None  # bytes
    states_length: bool = True


class Backend(ThreadingHTTPServer):
    """Trees by conversation id, accounts by token."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, prefix: str = "/backend-api") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prefix = prefix
        self.mode = Mode()
        self.asked: list[Asked] = []
        self.trees: dict[str, dict[str, Any]] = {}
        self.owners: dict[str, str] = {}
        self.running: set[str] = set()
        self.files: dict[str, dict[str, Any]] = {}
        self.file_ids = "file-{}"
        self.slugs: dict[str, list[str]] = {}  # of models, by token, where they differ
        self.cookies: list[str] = []  # that each answer sets
        self.account_of: Callable[[str], str] = str  # whose an access token is
        self.sentinel: Sentinel | None = None  # without one there is no pre-flight
        self.anonymous = False  # whether /backend-anon answers
        self.blobs: dict[str, Blob] = {}  # by id, or by path in the sandbox
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def models_of(self, token: str) -> dict[str, Any]:
        slugs = self.slugs.get(token)
        if slugs is None:
            return MODELS
        return {"models": [{"slug": slug, "title": slug} for slug in slugs]}

    @property
    def turns(self) -> list[Asked]:
        return [
            asked
            for asked in self.asked
            if asked.method == "POST" and asked.path.endswith("/conversation")
        ]

    @property
    def preflights(self) -> list[Asked]:
        return [asked for asked in self.asked if "/sentinel/" in asked.path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # askers that leave are what the tests are about

    def add_turn(
        self, token: str, body: dict[str, Any]
    ) -> tuple[str, Message, Message]:
        """Keep the question and its answer. Returns the conversation's id and both messages."""
        with self.lock:
            conversation = body.get("conversation_id") or str(uuid.uuid4())
            if conversation not in self.trees:
                root = {"id": "root", "message": None, "parent": None, "children": []}
                self.trees[conversation] = {
                    "title": "New chat", "create_time": time.time(), "update_time": time.time(),
                    "mapping": {"root": root}, "current_node": "root", "conversation_id": conversation,
                }  # fmt: skip
                self.owners[conversation] = token
                parent = "root"
            else:
                parent = body["parent_message_id"]
            tree = self.trees[conversation]
            stops = self.mode.length_stops > 0
            if body["action"] == "continue":
                text, question = (
                    " and the rest of it." if not stops else " and more",
                    {},
                )
            else:
                for sent in body["messages"]:
                    question = {
                        **sent,
                        "status": "finished_successfully",
                        "recipient": "all",
                    }
                    self.put(tree, parent, question)
                    parent = question["id"]
                turn = sum(
                    1
                    for node in tree["mapping"].values()
                    if node["message"] and role(node["message"]) == "user"
                )
                said = [
                    part
                    for part in question["content"]["parts"]
                    if isinstance(part, str)
                ]
                names = [
                    attached["name"]
                    for attached in (question.get("metadata") or {}).get(
                        "attachments", []
                    )
                ]
                seen = f" [sees {', '.join(names)}]" if names else ""
                text = f"Turn {turn}. You said: {''.join(said)}{seen} — 你好 🙂."
            details = (
                {"type": "max_tokens"}
                if stops
                else {"type": "stop", "stop_tokens": [200002]}
            )
            self.mode.length_stops -= stops
            answer = {
                "id": str(uuid.uuid4()), "author": {"role": "assistant", "name": None, "metadata": {}},
                "create_time": time.time(), "content": {"content_type": "text", "parts": [text]},
                "status": "finished_successfully", "end_turn": not stops, "weight": 1.0, "recipient": "all", "channel": "final",
                "metadata": {"model_slug": "gpt-test", "finish_details": details, "message_type": "next"},
            }  # fmt: skip
            if self.mode.no_text:
                answer["content"] = {
                    "content_type": "image",
                    "asset_pointer": "sediment://file_1",
                }
            if self.mode.says is not None:
                answer["content"]["parts"] = [self.mode.says]
            answer["metadata"].update(self.mode.answer.get("metadata", {}))
            between = [{**each, "id": str(uuid.uuid4())} for each in self.mode.between]
            for message in between:
                self.put(tree, parent, message)
                parent = message["id"]
            tree["async_status"] = self.mode.async_status
            if self.mode.image_alone:
                return conversation, question, between[-1]
            self.put(tree, parent, answer)
            tree["update_time"] = time.time()
            return conversation, question, answer

    def put(self, tree: dict[str, Any], parent: str, message: Message) -> None:
        tree["mapping"][message["id"]] = {
            "id": message["id"],
            "message": message,
            "parent": parent,
            "children": [],
        }
        tree["mapping"][parent]["children"].append(message["id"])
        tree["current_node"] = message["id"]


def device_of(headers: dict[str, str]) -> str:
    """The device that asks without an account; "" where it does not say so in both ways, or shows a token."""
    device = headers.get("oai-device-id", "")
    cookies = headers.get("cookie", "").split("; ")
    is_one = f"oai-did={device}" in cookies and "authorization" not in headers
    return device if is_one else ""


def role(message: Message) -> str:
    return str(message["author"]["role"])


def states(answer: Message, step: int = 7) -> list[Message]:
    """A message as it grows."""
    parts = answer["content"].get("parts")
    if parts is None or len(parts) != 1 or not isinstance(parts[0], str):
        return [answer]
    text = parts[0]
    growing = {
        **answer,
        "status": "in_progress",
        "end_turn": None,
        "metadata": {"model_slug": "gpt-test"},
    }
    texts = ["", *(text[:end] for end in range(step, len(text) + step, step))]
    return [
        {**growing, "content": {"content_type": "text", "parts": [part]}}
        for part in texts
    ] + [answer]


def data(value: Any, name: str = "") -> str:
    return (
        f"event: {name}\n" if name else ""
    ) + f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def escaped(event: str) -> str:
    """An event with what is not ASCII as escapes of JSON."""
    return "".join(sign if sign.isascii() else json.dumps(sign)[1:-1] for sign in event)


def classic(conversation: str, messages: list[Message], done: bool = True) -> list[str]:
    """Cumulative events, with the echoes, pings and comments that stand between them."""
    system = {
        "id": "s",
        "author": {"role": "system"},
        "content": {"content_type": "text", "parts": [""]},
        "metadata": {},
    }
    events = [data({"message": system, "conversation_id": conversation, "error": None})]
    for message in messages:
        grown = states(message) if role(message) == "assistant" else [message]
        events += [
            data({"message": state, "conversation_id": conversation, "error": None})
            for state in grown
        ]
        events += [
            "event: ping\r\ndata: 2023-08-01 10:20:30.123456\r\n\r\n",
            ": comment\n\n",
        ]
    moderation = {"flagged": False, "blocked": False, "moderation_id": "modr-1"}
    events.append(
        data(
            {
                "conversation_id": conversation,
                "moderation_response": moderation,
                "is_completion": True,
            }
        )
    )
    return [*events, "data: [DONE]\n\n"] if done else events


def delta(conversation: str, messages: list[Message], done: bool = True) -> list[str]:
    """The same as edits of documents."""
    token = {
        "type": "resume_conversation_token",
        "kind": "topic",
        "token": "eyJ.invented",
        "conversation_id": conversation,
    }
    events = ['event: delta_encoding\ndata: "v1"\n\n', data(token)]
    for channel, message in enumerate(messages):
        grown = states(message) if role(message) == "assistant" else [message]
        snapshot = {"message": grown[0], "conversation_id": conversation, "error": None}
        operation = {"p": "", "o": "add"} if channel == 0 else {}
        events.append(data({**operation, "v": snapshot, "c": channel}, "delta"))
        previous = (
            grown[0]["content"]["parts"][0] if "parts" in grown[0]["content"] else ""
        )
        for number, state in enumerate(grown[1:-1]):
            text = state["content"]["parts"][0]
            path = (
                {"p": "/message/content/parts/0", "o": "append"} if number == 0 else {}
            )
            events.append(data({**path, "v": text[len(previous) :]}, "delta"))
            previous = text
            if number == 1:
                events.append(
                    data(
                        {
                            "type": "title_generation",
                            "title": "A title",
                            "conversation_id": conversation,
                        }
                    )
                )
        if len(grown) > 1:
            final = grown[-1]
            edits = [
                {"p": "/message/status", "o": "replace", "v": final["status"]},
                {"p": "/message/end_turn", "o": "replace", "v": final["end_turn"]},
                {"p": "/message/metadata", "o": "append", "v": final["metadata"]},
            ]
            events.append(data({"p": "", "o": "patch", "v": edits}, "delta"))
    events.append(
        data({"type": "message_stream_complete", "conversation_id": conversation})
    )
    return [*events, "data: [DONE]\n\n"] if done else events


class Handler(BaseHTTPRequestHandler):
    server: Backend
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.route(self.record(None))

    def do_PUT(self) -> None:
        if self.path.startswith("/storage/"):
            return self.store()
        self.route(self.record(self.read_body()))
        return None

    def do_DELETE(self) -> None:
        self.route(self.record(None))

    def do_PATCH(self) -> None:
        self.route(self.record(self.read_body()))

    def do_POST(self) -> None:
        self.route(self.record(self.read_body()))

    def read_body(self) -> Any:
        return json.loads(
            self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null"
        )

    def record(self, body: Any) -> Asked:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body)
        self.server.asked.append(asked)
        return asked

    def route(self, asked: Asked) -> None:
        mode, path = self.server.mode, asked.path.split("?")[0]
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if path.startswith("/storage/"):
            return self.blob(asked, unquote(path.removeprefix("/storage/")))
        prefix = self.server.prefix
        if self.server.anonymous and path.startswith("/backend-anon/"):
            prefix, token = "/backend-anon", device_of(asked.headers)
        if not path.startswith(f"{prefix}/"):
            return self.respond(404, {"detail": "Not Found"})
        path = path.removeprefix(prefix)
        if mode.only_asking and path != "/conversation":
            return self.respond(
                404, b"404 page not found", {"Content-Type": "text/plain"}
            )
        if not token:
            return self.respond(401, {"detail": "Unauthorized"})
        if token in mode.refuse_tokens:
            status, headers, body = mode.refuse_tokens[token]
            return self.respond(status, body, headers)
        token = self.server.account_of(token)
        if path.startswith("/sentinel/"):
            return self.preflight(asked, token, path.removeprefix("/sentinel/"))
        if asked.method == "GET" and path == "/conversations":
            return self.list_conversations(token, asked.path)
        if asked.method == "PATCH" and path == "/conversations":
            return self.hide_all(token)
        if asked.method == "GET" and "download" in path.split("/"):
            return self.file_address(asked, token, path)
        if path == "/files" or path.startswith("/files/"):
            return self.file(asked, token, path.removeprefix("/files").strip("/"))
        if asked.method == "GET" and path == "/models":
            return self.respond(200, self.server.models_of(token))
        if asked.method == "POST" and path == "/conversation/message_feedback":
            return self.respond(200, {**asked.body, "user_id": "user-1"})
        if asked.method == "POST" and path == "/share/create":
            return self.respond(200, {"share_id": "s-1", "is_public": False})
        if asked.method == "GET" and path == "/me":
            cookies = {"Set-Cookie": "_puid=user-1; HttpOnly", "Server": "edge"}
            return self.respond(200, {"id": "user-1"}, cookies)
        if path.startswith("/conversation/gen_title/"):
            tree = self.server.trees.get(path.rsplit("/", 1)[1])
            if tree is None or asked.body["message_id"] not in tree["mapping"]:
                return self.respond(404, {"detail": "Conversation not found"})
            if tree["title"] != "New chat":
                return self.respond(200, {"message": "Conversation has title already"})
            tree["title"] = "A generated title"
            return self.respond(200, {"title": tree["title"]})
        if path.startswith("/conversation/"):
            return self.one_conversation(
                asked, token, path.removeprefix("/conversation/")
            )
        if asked.method == "POST" and path in ("/conversation", "/f/conversation"):
            return self.turn(asked, token)
        return self.respond(405, {"detail": "Method Not Allowed"})

    def preflight(self, asked: Asked, token: str, path: str) -> None:
        sentinel = self.server.sentinel
        known = ["chat-requirements"]
        if sentinel is not None and sentinel.two_step:
            known = ["chat-requirements/prepare", "chat-requirements/finalize"]
        if sentinel is not None and sentinel.answer is not None:
            status, headers, payload = sentinel.answer
            return self.respond(status, payload, headers)
        if sentinel is None or asked.method != "POST" or path not in known:
            return self.respond(404, {"detail": "Not Found"})
        is_last = path.endswith("finalize")
        if sentinel.silent or (is_last and sentinel.silent_finalize):
            self.wait(asked, 60)
        time.sleep(sentinel.delay)
        if sentinel.cut:
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"tok')
            return self.connection.shutdown(socket.SHUT_RDWR)
        agent = asked.headers["user-agent"]
        try:
            if is_last:
                return self.respond(200, sentinel.finalize(asked.body, agent))
            return self.respond(200, sentinel.requirements(token, asked.body, agent))
        except (KeyError, ValueError, TypeError):
            return self.respond(500, {"detail": "Internal Server Error"})

    def file_address(self, asked: Asked, token: str, path: str) -> None:
        """As strict as the real one: a file of a conversation is that conversation's, and its account's."""
        parts = path.strip("/").split("/")
        query = dict(parse_qsl(urlsplit(asked.path).query))
        if parts[0] == "conversation" and self.server.owners.get(parts[1]) != token:
            return self.respond(404, {"detail": "Conversation not found"})
        if parts[2:3] == ["interpreter"]:
            known = self.server.trees[parts[1]]["mapping"]
            name = query.get("sandbox_path", "")
            name = name if query.get("message_id") in known else ""
        else:
            name = parts[-2]
        blob = self.server.blobs.get(name)
        if blob is None:
            error = {"status": "error", "error_code": "file_not_found"}
            return self.respond(200, error)
        address = f"{self.server.url}/storage/{quote(name, safe='')}?sig=invented"
        answer = {"status": "success", "download_url": blob.address or address}
        return self.respond(200, {**answer, "file_name": blob.name or None})

    def blob(self, asked: Asked, name: str) -> None:
        """The storage: a signed address, and no credential beside it."""
        if {"authorization", "cookie", "chatgpt-account-id"} & set(asked.headers):
            return self.respond(400, b"<Error>InvalidAuthenticationInfo</Error>")
        blob = self.server.blobs.get(name)
        if blob is None or not asked.path.endswith("?sig=invented"):
            return self.respond(404, b"<Error>BlobNotFound</Error>")
        headers = {"Content-Type": blob.content_type, **blob.headers}
        if not blob.states_length:
            return self.respond_until_close(blob.content)
        if blob.cut_after is None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
            if not found:
                return self.respond(blob.status, blob.content, headers)
            first, last = int(found[1]), int(found[2])
            headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.content)}"
            return self.respond(206, blob.content[first : last + 1], headers)
        self.send_response(200)
        self.send_header("Content-Type", blob.content_type)
        self.send_header("Content-Length", str(len(blob.content)))
        self.end_headers()
        self.wfile.write(blob.content[: blob.cut_after])
        self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def end_headers(self) -> None:
        for cookie in self.server.cookies:
            self.send_header("Set-Cookie", cookie)
        super().end_headers()

    def respond(
        self, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def respond_until_close(self, content: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def hide_all(self, token: str) -> None:
        for name in [
            name for name, owner in self.server.owners.items() if owner == token
        ]:
            self.server.trees.pop(name, None)
        self.respond(200, {"success": True})

    def list_conversations(self, token: str, path: str) -> None:
        owned = [
            tree
            for name, tree in self.server.trees.items()
            if self.server.owners[name] == token
        ]
        if "limit=" not in path:
            path = f"{path}{'&' if '?' in path else '?'}limit=20"
        if "offset=" not in path:
            path += "&offset=0"
        items = [
            {"id": tree["conversation_id"], "title": tree["title"], "mapping": None, "current_node": None,
             "create_time": "2026-01-01T00:00:00+00:00", "update_time": tree["update_time"]}
            for tree in sorted(owned, key=lambda tree: -tree["update_time"])
        ]  # fmt: skip
        query = {
            name: int(value)
            for name, _, value in (
                pair.partition("=") for pair in path.split("?")[1].split("&")
            )
            if value.isdigit()
        }
        if query["limit"] > 100:
            text = "ensure this value is less than or equal to 100"
            return self.respond(
                422, {"detail": [{"loc": ["query", "limit"], "msg": text}]}
            )
        limit = min(query["limit"], self.server.mode.page)
        page = items[query["offset"] : query["offset"] + limit]
        if self.server.mode.bare_list:
            return self.respond(200, page)
        self.respond(
            200,
            {
                "items": page,
                "total": len(items),
                "limit": limit,
                "offset": query["offset"],
            },
        )

    def one_conversation(self, asked: Asked, token: str, name: str) -> None:
        tree = self.server.trees.get(name)
        if tree is None or self.server.owners[name] != token:
            return self.respond(
                404,
                {
                    "detail": {
                        "message": "Conversation not found",
                        "code": "conversation_not_found",
                    }
                },
            )
        if self.server.mode.refuse_looks:
            status, headers, payload = self.server.mode.refuse_looks
            return self.respond(status, payload, headers)
        if self.server.mode.missed_polls > 0:
            self.server.mode.missed_polls -= 1
            return self.respond(
                502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}
            )
        if asked.method == "PATCH":
            if asked.body.get("is_visible") is False:
                del self.server.trees[name]
            tree["title"] = asked.body.get("title", tree["title"])
            return self.respond(200, {"success": True})
        with self.server.lock:
            snapshot = json.loads(json.dumps(tree))
        if self.server.mode.hand_off and self.server.mode.polls > 0:
            self.server.mode.polls -= 1
            last = snapshot["mapping"][snapshot["current_node"]]["message"]
            last["status"], last["end_turn"], last["content"]["parts"] = (
                "in_progress",
                None,
                ["Tur"],
            )
        return self.respond(200, snapshot)

    def fails(self, asked: Asked, step: str) -> bool:
        """Whether a step of an upload is to fail; then it was answered."""
        mode = self.server.mode
        if seconds := mode.slow_uploads.get(step):
            self.wait(asked, seconds)
        if mode.cut_uploads == step:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return True
        if step not in mode.failing_uploads:
            return False
        status, headers, body = mode.failing_uploads[step]
        self.respond(status, body, headers)
        return True

    def file(self, asked: Asked, token: str, path: str) -> None:
        """The steps of an upload that are the account's."""
        known = self.server.files
        if not path and asked.method == "POST":
            if self.fails(asked, "announce"):
                return None
            kinds = ("multimodal", "my_files", "ace_upload")
            is_image = asked.body.get("mime_type", "").startswith("image/")
            wrong = (
                not {"file_name", "file_size", "use_case"} <= set(asked.body)
                or asked.body["use_case"] not in kinds
                or is_image != (asked.body["use_case"] == "multimodal")
                or is_image != ("width" in asked.body and "height" in asked.body)
                or "event-stream" in asked.headers.get("accept", "")
            )
            if wrong:
                return self.respond(422, {"detail": "file"})
            name = self.server.file_ids.format(uuid.uuid4().hex)
            known[name] = {**asked.body, "token": token, "content": None, "done": False}
            place = (
                self.server.mode.storage or f"{self.server.url}/storage/{name}?sig=s"
            )
            said = {"status": "success", "file_id": name, "upload_url": place}
            return self.respond(200, said)
        name, _, step = path.partition("/")
        if name not in known or known[name]["token"] != token:
            return self.respond(404, {"detail": "File not found"})
        if step == "uploaded" and asked.method == "POST":
            if self.fails(asked, "uploaded"):
                return None
            if known[name]["content"] is None:
                return self.respond(400, {"detail": "Nothing was put"})
            known[name]["done"] = True
            return self.respond(200, {"status": "success", "download_url": "https://x"})
        if self.fails(asked, "look"):
            return None
        self.server.mode.looks -= 1
        is_read = self.server.mode.looks < 0
        status = "success" if is_read else "parsing"
        return self.respond(200, {"id": name, "retrieval_index_status": status})

    def store(self) -> None:
        """A file is put into its storage, which knows no account."""
        asked = self.record(None)
        name = self.path.split("/")[2].split("?")[0]
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size)
        if self.fails(asked, "put"):
            return None
        known = self.server.files[name]
        sent = set(asked.headers)
        allowed = {"host", "content-length", "content-type"}
        wrong = (
            sent - allowed != {"x-ms-blob-type", "x-ms-version"}
            or asked.headers["x-ms-blob-type"] != "BlockBlob"
            or asked.headers["content-type"] != known["mime_type"]
            or size != known["file_size"]
        )
        if wrong:
            return self.respond(400, {"detail": f"wrong: {sorted(sent)}"})
        known["content"] = content
        return self.respond(201, b"")

    def wrong_content(self, message: Message) -> bool:
        """Whether a message's parts and attachments are not files that were uploaded."""
        content = message.get("content", {})
        token = self.headers.get("Authorization", "")
        attached = {
            each["id"]: each
            for each in (message.get("metadata") or {}).get("attachments", [])
        }
        for name, each in attached.items():
            known = self.server.files.get(name)
            if known is None or not known["done"] or known["token"] not in token:
                return True
            told = (each["name"], each["size"], each["mime_type"])
            if told != (known["file_name"], known["file_size"], known["mime_type"]):
                return True
        parts = content.get("parts", [])
        pointers = [part for part in parts if isinstance(part, dict)]
        kind = "multimodal_text" if pointers else "text"
        if content.get("content_type") != kind or not parts:
            return True
        for pointer in pointers:
            scheme, _, name = pointer["asset_pointer"].partition("://")
            expected = "sediment" if name.startswith("file_") else "file-service"
            if name not in attached or scheme != expected:
                return True
            known = self.server.files[name]
            told = (pointer["size_bytes"], pointer["width"], pointer["height"])
            if told != (known["file_size"], known["width"], known["height"]):
                return True
        return False

    def refusal(self, body: dict[str, Any]) -> str | None:
        """What is wrong with a turn's body, as strictly as the real one sees it."""
        required = {"action", "parent_message_id", "model"} | (
            {"messages"} if body.get("action") == "next" else set()
        )
        if missing := required - set(body):
            return f"missing: {missing}"
        if (
            body["action"] not in ("next", "continue", "variant")
            or body.get("conversation_id") == ""
        ):
            return "action or conversation_id"
        if not body["parent_message_id"] or not isinstance(body["model"], str):
            return "parent_message_id or model"
        for message in body.get("messages", []):
            if not message.get("id") or role(message) not in (
                "user",
                "system",
                "assistant",
            ):
                return "message"
            if self.wrong_content(message):
                return "content"
        return None

    def turn(self, asked: Asked, token: str) -> None:
        mode, body = self.server.mode, asked.body
        if asked.headers.get(
            "content-type"
        ) != "application/json" or "event-stream" not in asked.headers.get(
            "accept", ""
        ):
            return self.respond(415, {"detail": "Unsupported"})
        if problem := self.refusal(body):
            return self.respond(
                422,
                {
                    "detail": [
                        {
                            "loc": ["body", problem],
                            "msg": "field required",
                            "type": "value_error",
                        }
                    ]
                },
            )
        sentinel = self.server.sentinel
        if sentinel is not None and sentinel.refuses(token, asked.headers):
            return self.respond(403, REFUSED)
        if mode.refusals:
            status, headers, payload = mode.refusals.pop(0)
            return self.respond(status, payload, headers)
        if mode.refuse_rest and body["action"] == "continue":
            status, headers, payload = mode.refuse_rest
            return self.respond(status, payload, headers)
        conversation = body.get("conversation_id")
        if conversation and (
            self.server.trees.get(conversation) is None
            or self.server.owners[conversation] != token
        ):
            return self.respond(
                404, {"detail": f"Can't load conversation {conversation}"}
            )
        if (
            conversation
            and body["parent_message_id"]
            not in self.server.trees[conversation]["mapping"]
        ):
            return self.respond(400, {"detail": "Invalid parent"})
        with self.server.lock:
            busy = mode.one_at_a_time and token in self.server.running
            self.server.running.add(token)
        if busy:
            text = "Only one message at a time. Please allow any other responses to complete before sending another message."
            return self.respond(429, {"detail": text})
        try:
            time.sleep(mode.delay) if mode.delay < 1 else self.wait(asked, mode.delay)
            conversation, question, answer = self.server.add_turn(token, body)
            self.stream(asked, self.events(body, conversation, question, answer))
        finally:
            self.server.running.discard(token)
        return None

    def events(
        self,
        body: dict[str, Any],
        conversation: str,
        question: Message,
        answer: Message,
    ) -> list[str]:
        mode = self.server.mode
        if mode.hand_off:
            hand_off = {
                "type": "stream_handoff",
                "conversation_id": conversation,
                "options": [{"type": "resume_sse_endpoint"}],
            }
            return [
                'event: delta_encoding\ndata: "v1"\n\n',
                data(hand_off),
                "data: [DONE]\n\n",
            ]
        asked = "delta" if body.get("supported_encodings") == ["v1"] else "classic"
        encode = {"classic": classic, "delta": delta}[
            asked if mode.encoding == "asked" else mode.encoding
        ]
        between = []
        if mode.between:
            mapping = self.server.trees[conversation]["mapping"]
            ids = list(mapping)
            last = ids.index(answer["id"]) + mode.image_alone
            names = ids[last - len(mode.between) : last]
            between = [mapping[name]["message"] for name in names]
        messages = [*([question] if question else []), *between]
        if not mode.image_alone:
            messages.append(answer)
        return encode(conversation, messages, mode.done)

    def stream(self, asked: Asked, events: list[str]) -> None:
        mode = self.server.mode
        self.send_response(200)
        self.send_header("Content-Type", mode.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if mode.quiet:
            self.wait(asked, mode.quiet)
        for number, piece in enumerate(self.packets(events)):
            if number == mode.cut_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if number == mode.stall_after:
                self.wait(asked, 60)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if mode.pace:
                self.wait(asked, mode.pace)
        self.wfile.write(b"0\r\n\r\n")

    def packets(self, events: list[str]) -> Iterator[bytes]:
        mode = self.server.mode
        wire = [
            event.replace("\r\n", "\n").replace("\n", "\r\n") if mode.crlf else event
            for event in events
        ]
        if mode.ascii_only:
            wire = [escaped(event) for event in wire]
        pieces = (
            [mode.raw] if mode.raw is not None else [event.encode() for event in wire]
        )
        if not mode.pieces_of:
            yield from filter(None, pieces)
            return
        whole = b"".join(pieces)
        yield from (
            whole[at : at + mode.pieces_of]
            for at in range(0, len(whole), mode.pieces_of)
        )

    def wait(self, asked: Asked, seconds: float) -> None:
        """Be silent, and note when the asker leaves."""
        readable = select.poll()  # select itself takes no descriptor over 1023
        readable.register(self.connection, select.POLLIN)
        asked.waiting = True
        if readable.poll(seconds * 1000) and not self.connection.recv(
            1, socket.MSG_PEEK
        ):
            asked.left = time.monotonic()
            raise ConnectionResetError


__all__ = ["Asked", "Backend", "Mode", "classic", "delta"]
