"""What a message of ChatGPT's shows: its text, images, files, code and sources. Pure.

Messages are those of its streams and of its trees. What is shown is Markdown; where an address of a file belongs there
stands a `FileLink`, and who prints it knows the address. Source: protocol notes, message content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from relay.citations import visible
from relay.domain import Delta, FileLink, RemoteFile

IMAGE = "\ufdd0"  # stands for an image within a text; a noncharacter, which no text has
LONGEST_PATH = 500
MOST_SOURCES = 50
MOST_REFERENCES = 1000
LONGEST_TITLE = 200
LONGEST_ADDRESS = 2000
_ASSET = re.compile(r"(?:file-service|sediment)://[A-Za-z0-9_.-]{1,200}")
MOST_LINKS = 1000  # of one text; what follows them stays as it is
#: an image, or a link to the sandbox, as far as it has come; other links are passed over without a step of Python's
_MARK = re.compile(
    rf"{IMAGE}|\](?:\Z|\((?:sandbox:/|(?:{'|'.join('sandbox:'[:n] for n in range(9))})\Z))"
)
_SANDBOX = re.compile(rf"\]\((sandbox:/[^()\s]{{1,{LONGEST_PATH}}})\)")
_OPEN_SANDBOX = re.compile(rf"\]\(sandbox:/[^()\s]{{0,{LONGEST_PATH}}}")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")
_FENCES = re.compile("`{3,}")
_LANGUAGE = re.compile(r"[A-Za-z0-9+#-]{1,20}")
#: of references that name no source of the text
_NO_SOURCES = ("hidden", "image_v2", "image_group", "video")


def part_of(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within a message; an empty one where there is none."""
    value = message.get(name)
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, as far as it is one."""
    if not isinstance(value, list):
        return []
    return [item for item in value[:MOST_REFERENCES] if isinstance(item, dict)]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message's parts, with IMAGE in the place of each image, a paragraph of its own."""
    parts = part_of(message, "content").get("parts")
    if not isinstance(parts, list):
        return ""
    text: list[str] = []
    for part in parts:
        is_image = _pointer_of(part) is not None
        piece = IMAGE if is_image else part
        if not isinstance(piece, str) or not piece:
            continue
        if text and (is_image or text[-1] == IMAGE):
            text.append("\n\n")
        text.append(piece)
    return "".join(text)


def _pointer_of(part: Any) -> str | None:
    """The name of the image that a part is."""
    if not isinstance(part, dict) or part.get("content_type") != "image_asset_pointer":
        return None
    return _asset(part.get("asset_pointer"))


def _asset(pointer: Any) -> str | None:
    """A pointer to an asset, as far as it can be asked for."""
    is_asset = isinstance(pointer, str) and _ASSET.fullmatch(pointer)
    return pointer if is_asset else None


def images_in_text(message: Mapping[str, Any]) -> tuple[RemoteFile, ...]:
    """The images among a message's parts, in their order."""
    content = part_of(message, "content")
    if content.get("content_type") != "multimodal_text":
        return ()
    parts = content.get("parts")
    pointers = map(_pointer_of, parts if isinstance(parts, list) else ())
    return _files(message, pointers)


def is_image_alone(message: Mapping[str, Any]) -> bool:
    """Whether a message's parts are images, and nothing else."""
    text = text_of(message)
    return IMAGE in text and not text.replace(IMAGE, "").strip()


def images_of(message: Mapping[str, Any]) -> tuple[RemoteFile, ...]:
    """All images of a message: its parts, and what a run of code has drawn."""
    return images_in_text(message) + _drawn(message)


def _drawn(message: Mapping[str, Any]) -> tuple[RemoteFile, ...]:
    result = part_of(part_of(message, "metadata"), "aggregate_result")
    found = _objects(result.get("messages"))
    images = [each for each in found if each.get("message_type") == "image"]
    return _files(message, (_asset(each.get("image_url")) for each in images))


def _files(
    message: Mapping[str, Any], pointers: Iterable[str | None]
) -> tuple[RemoteFile, ...]:
    identifier = str(message.get("id") or "")
    return tuple(RemoteFile(each, identifier) for each in pointers if each)


def awaits_image(message: Mapping[str, Any]) -> bool:
    """Whether a message announces an image that is made beside the stream, and comes later."""
    metadata = part_of(message, "metadata")
    is_task = metadata.get("async_task_type") == "image_gen"
    return is_task or bool(metadata.get("image_gen_task_id"))


def image(file: RemoteFile) -> list[Delta | FileLink]:
    """An image in Markdown."""
    return [Delta("![image]("), FileLink(file), Delta(")")]


class Rendering:
    """A text with marks in, piece by piece; out, the images that they stand for, and links to files of the sandbox.

    `images`: what the marks stand for. A link at the end that is not whole yet is held back.
    """

    __slots__ = ("_held", "_links", "_message_id", "_shown", "images")

    def __init__(self, message_id: str, images: tuple[RemoteFile, ...] = ()) -> None:
        self.images = images
        self._message_id = message_id
        self._shown = 0
        self._links = 0
        self._held = ""

    def feed(self, piece: str) -> list[Delta | FileLink]:
        """What is certain after this piece."""
        # most pieces have neither sign, which is seen much faster than by the pattern
        is_plain = "]" not in piece and IMAGE not in piece
        if not self._held and (is_plain or not _MARK.search(piece)):
            return [Delta(piece)] if piece else []
        return merged(self._scan(self._held + piece, is_end=False))

    def end(self) -> list[Delta | FileLink]:
        """What was held back."""
        if not self._held:
            return []
        return merged(self._scan(self._held, is_end=True))

    def _scan(self, text: str, is_end: bool) -> Iterator[Delta | FileLink]:
        position = start = 0
        self._held = ""
        if self._shown >= len(self.images):
            text = text.replace(IMAGE, "")
        while mark := _MARK.search(text, start):
            start = mark.start()
            link = _SANDBOX.match(text, start) if self._links < MOST_LINKS else None
            if mark[0] == IMAGE or link:
                yield Delta(text[position:start])
                yield from self._sandbox_link(link[1]) if link else self._next_image()
                start = position = link.end() if link else mark.end()
            elif not is_end and _may_be_link(text, start):
                self._held = text[start:]
                text = text[:start]
            else:
                start += 1
        yield Delta(text[position:])

    def _sandbox_link(self, pointer: str) -> list[Delta | FileLink]:
        self._links += 1
        file = RemoteFile(unquote(pointer), self._message_id)
        return [Delta("]("), FileLink(file), Delta(")")]

    def _next_image(self) -> list[Delta | FileLink]:
        self._shown += 1
        return [
            event
            for file in self.images[self._shown - 1 : self._shown]
            for event in image(file)
        ]


def _may_be_link(text: str, start: int) -> bool:
    """Whether what begins here may be a link to the sandbox that is not whole yet."""
    if len(text) - start > LONGEST_PATH + len("](sandbox:/"):
        return False
    rest = text[start:]
    return "](sandbox:/".startswith(rest) or bool(_OPEN_SANDBOX.fullmatch(rest))


def merged(events: Iterable[Delta | FileLink]) -> list[Delta | FileLink]:
    """The same with what is text in a row as one piece."""
    found: list[Delta | FileLink] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Delta) and isinstance(last, Delta):
            found[-1] = Delta(last.text + event.text)
        elif event != Delta(""):
            found.append(event)
    return [event for event in found if event != Delta("")]


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What a finished message shows beside the answer: code, what it printed, or thoughts; "" for others."""
    content = part_of(message, "content")
    if content.get("content_type") != "thoughts":
        return code_of(message)
    texts = [
        "\n\n".join(filter(None, (_bold(each.get("summary")), each.get("content"))))
        for each in _objects(content.get("thoughts"))
        if isinstance(each.get("content", ""), str)
    ]
    return "".join(f"{text}\n\n" for text in texts if text)


def _bold(text: Any) -> str:
    return f"**{text}**" if isinstance(text, str) and text else ""


def code_of(message: Mapping[str, Any]) -> str:
    """Code that goes to a tool, or what running it printed, as a fenced block; "" for other messages."""
    content = part_of(message, "content")
    kind, text = content.get("content_type"), content.get("text")
    if kind not in ("code", "execution_output"):
        return ""
    if not isinstance(text, str) or not text.strip():
        return ""
    language = content.get("language") if kind == "code" else ""
    if kind == "code" and message.get("recipient") == "python":
        language = "python"
    is_known = isinstance(language, str) and _LANGUAGE.fullmatch(language)
    return fenced(text, str(language) if is_known and language != "unknown" else "")


def fence_for(text: str) -> str:
    """A fence for a text: longer than those in it."""
    longest = max(map(len, _FENCES.findall(text)), default=2)
    return "`" * (longest + 1)


def fenced(text: str, language: str = "") -> str:
    """A fenced block with a line end."""
    fence = fence_for(text)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


class Source(NamedTuple):
    """A page that a text refers to."""

    title: str
    url: str


def sources_text(metadatas: Iterable[Mapping[str, Any]]) -> str:
    """The pages that messages with these metadata refer to, as a list; "" where there are none.

    In the order in which they are mentioned, each once, MOST_SOURCES at most.
    """
    sources: dict[str, str] = {}
    for metadata in metadatas:
        for source in _sources(metadata):
            if len(sources) < MOST_SOURCES and source.url:
                sources.setdefault(source.url, source.title)
    if not sources:
        return ""
    lines = [f"\n- [{title}]({url})" for url, title in sources.items()]
    return f"Sources:{''.join(lines)}"


def _sources(metadata: Mapping[str, Any]) -> Iterator[Source]:
    references = _objects(metadata.get("content_references"))
    for reference in sorted(references, key=_position):
        if reference.get("type") not in _NO_SOURCES:
            yield from _referenced(reference)
    for citation in _objects(metadata.get("citations")):
        yield _source(part_of(citation, "metadata"))


def _position(reference: Mapping[str, Any]) -> float:
    """Where a reference stands in the text; the footnote stands below it."""
    at = reference.get("start_idx")
    is_footnote = reference.get("type") == "sources_footnote"
    return float("inf") if is_footnote or not isinstance(at, int) else at


def _referenced(reference: Mapping[str, Any]) -> Iterator[Source]:
    yield _source(reference)
    for name in ("items", "sources", "fallback_items"):
        for item in _objects(reference.get(name)):
            yield _source(item)
            yield from map(_source, _objects(item.get("supporting_websites")))


def _source(item: Mapping[str, Any]) -> Source:
    """A page; one without an address for what is none."""
    url = _address(item.get("url"))
    texts = (item.get(name) for name in ("title", "attribution"))
    words = [" ".join(text.split()) for text in texts if isinstance(text, str)]
    title = next(filter(None, words), "") or (urlsplit(url).hostname or "")
    plain = visible(title[:LONGEST_TITLE], is_complete=True).replace(IMAGE, "")
    return Source(_SPECIAL.sub(r"\\\1", plain), url)


def _address(url: Any) -> str:
    """A page's address as Markdown can hold it, without where its visitors come from; "" for what is none."""
    if not isinstance(url, str) or len(url) > LONGEST_ADDRESS:
        return ""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not host:
        return ""
    query = [
        pair for pair in parts.query.split("&") if not pair.startswith("utm_source=")
    ]
    url = parts._replace(query="&".join(query)).geturl()
    return quote(url, safe="%/:=&?~#+!$,;'@[]*-._", errors="replace")


def markdown(message: Mapping[str, Any], address: Callable[[RemoteFile], str]) -> str:
    """All that a stored message shows. `address`: where a file can be had."""
    is_own = part_of(message, "author").get("role") in ("assistant", "tool")
    text = text_of(message)
    if is_own:
        text = visible(text, is_complete=True)
    rendering = Rendering(str(message.get("id") or ""), images_in_text(message))
    events = [*rendering.feed(text), *rendering.end()]
    drawn = ["".join(_printed(image(file), address)) for file in _drawn(message)]
    sources = sources_text((part_of(message, "metadata"),)) if is_own else ""
    parts = ["".join(_printed(events, address)), code_of(message).rstrip()]
    return "\n\n".join(filter(None, (*parts, *drawn, sources)))


def _printed(
    events: Iterable[Delta | FileLink], address: Callable[[RemoteFile], str]
) -> Iterator[str]:
    for event in events:
        yield event.text if isinstance(event, Delta) else address(event.file)


def files_of(message: Mapping[str, Any]) -> Iterator[RemoteFile]:
    """All files that a message shows."""
    rendering = Rendering(str(message.get("id") or ""), images_in_text(message))
    for event in (*rendering.feed(text_of(message)), *rendering.end()):
        if isinstance(event, FileLink):
            yield event.file
    yield from _drawn(message)
