"""The commands of `chatgpt_webapi.py` as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def run(
    folder: Path,
    *arguments: str,
    python: tuple[str, ...] = (),
    given: str = "",
    **environ: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with `folder/data` as its DATA_DIR unless `environ` has another. `given`: its standard input."""
    settings = {"DATA_DIR": str(folder / "data"), **environ}
    return subprocess.run(
        [*(python or (sys.executable,)), str(ROOT / "chatgpt_webapi.py"), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **settings},
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
    )
