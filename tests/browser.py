"""Chromium without a window, driven over its own pipe: pages are opened and forms are sent as a person would."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.processes import need
from tests.waiting import wait_for

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-dev-shm-usage "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe"
).split()


class Browser:
    """One tab. Source: Chrome DevTools Protocol; each message ends with a zero byte."""

    def __init__(self, folder: Path) -> None:
        program = need("chromium")
        commands, self._to_browser = os.pipe()
        from_browser, events = os.pipe()
        script = f'exec "$@" 3<&{commands} 4>&{events}'
        command = [program, *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "browser", *command],
            stderr=subprocess.DEVNULL,
            pass_fds=(commands, events),
        )
        os.close(commands)
        os.close(events)
        self._answers = os.fdopen(from_browser, "rb")
        self._count = 0
        self._session: dict[str, str] = {}
        targets = self._call("Target.getTargets")["targetInfos"]
        tab = next(target for target in targets if target["type"] == "page")
        attached = {"targetId": tab["targetId"], "flatten": True}
        found = self._call("Target.attachToTarget", **attached)
        self._session = {"sessionId": found["sessionId"]}

    def _call(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        line = json.dumps({**message, **self._session}).encode() + b"\0"
        os.write(self._to_browser, line)
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                return answer["result"]

    def _read(self) -> bytes:
        read = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            read += byte
        return bytes(read)

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)
        wait_for(lambda: self.evaluate("document.readyState") == "complete")

    def evaluate(self, expression: str) -> Any:
        """What a script of the tests' own gives within the page."""
        found = self._call("Runtime.evaluate", expression=expression)
        return found["result"].get("value")

    @property
    def text(self) -> str:
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._answers.close()
        os.close(self._to_browser)
