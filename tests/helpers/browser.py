"""A headless Chromium, controlled through its DevTools protocol over a pipe, without a driver or a package.

Messages are JSON, each ended by a zero byte, on file descriptors 3 and 4 of the browser (`--remote-debugging-pipe`).
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")

# All text that the page shows, including the shadow trees of its components.
VISIBLE_TEXT = """
(function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return "";
  const inner = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes];
  return inner.map(text).join(" ");
})(document.body)
"""


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless Chromium, with the given size of window."""

    def __init__(self, profile: Path, *, width: int = 1200, height: int = 900) -> None:
        program = find_chromium()
        assert program is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-pipe"]
        redirected = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", program, *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._unread = itertools.count(1), b""
        self._session: str | None = None
        self._session = self._call("Target.attachToTarget", targetId=self._first_page(), flatten=True)["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait()

    def _first_page(self, *, timeout_s: float = 300) -> str:
        """Return the id of the browser's first page, which opens shortly after the browser answers requests."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for target in self._call("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return str(target["targetId"])
            time.sleep(0.1)
        raise TimeoutError("the browser has no page")

    def open(self, address: str) -> None:
        """Load a page from scratch."""
        self._call(
            "Page.navigate", url="about:blank"
        )  # otherwise a change of the fragment alone would not load the page
        self._call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, converted from JSON."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text_with(self, *expected: str, timeout_s: float = 300) -> str:
        """Return the text of the page once it contains all expected texts, or after the timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            shown = " ".join(str(self.evaluate(VISIBLE_TEXT)).split())
            if all(text in shown for text in expected) or time.monotonic() > deadline:
                return shown
            time.sleep(0.2)

    def screenshot(self, path: Path) -> None:
        """Write a screenshot as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "result" in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser is gone"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
