"""A real Chromium, without a window and without a network, told what to do by its own protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

_START_SECONDS = 120
_ANSWER_SECONDS = 120
# Without them it asks Google's hosts at every start.
_QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-allow-origins=*", "--remote-debugging-port=0",
)  # fmt: skip


def missing_programs() -> list[str]:
    return [] if shutil.which("chromium") else ["chromium"]


class Tab:
    """One page. `asked` holds the URL of every request, `said` what scripts and policy said."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=_ANSWER_SECONDS)
        self._numbers = itertools.count(1)
        self.asked: list[str] = []
        self.said: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif method == "Log.entryAdded":
            self.said.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(told["exceptionDetails"]))
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {told['message']}")

    def open(self, url: str, ready: str = "document.readyState === 'complete'") -> None:
        """Waits until `ready` is true there."""
        self.send("Page.navigate", url=url)
        self.wait(ready)

    def wait(self, condition: str) -> None:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never: {condition}; {self.said}"
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def show(self, *, width: int, height: int, dark: bool = False) -> None:
        """A window of this size, of a user who prefers dark or light pages."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def point(self, selector: str, *, press: bool = False) -> None:
        """Moves the mouse to the middle of the first such element, and clicks there if asked."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        kinds = ["mouseMoved", *(["mousePressed", "mouseReleased"] if press else [])]
        for kind in kinds:
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=1,
                button="left" if kind != "mouseMoved" else "none",
            )  # fmt: skip

    def key(self, name: str, code: int) -> None:
        """Presses a key that has a name, as Tab (9), Enter (13) or ArrowRight (39)."""
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                windowsVirtualKeyCode=code, **more,
            )  # fmt: skip

    def accessible(self) -> list[tuple[str, str]]:
        """(role, name) of everything that a screen reader is told of."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"] and "role" in node
        ]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium() -> Iterator[Tab]:
    """A browser with a new profile; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        words = ["chromium", *_QUIET, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield Tab(_address(Path(folder), process))
        finally:
            process.kill()
            process.wait()


def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Of its one page, which it serves on a port of its own choice."""
    told, deadline = folder / "DevToolsActivePort", time.monotonic() + _START_SECONDS
    while not (told.exists() and len(told.read_text().splitlines()) == 2):
        assert process.poll() is None, "Chromium ended"
        assert time.monotonic() < deadline, "Chromium does not start"
        time.sleep(0.05)
    port, path = told.read_text().splitlines()
    browser = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=_ANSWER_SECONDS)
    browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    while "result" not in (found := json.loads(browser.recv())):
        pass
    targets = found["result"]["targetInfos"]
    target = next(each["targetId"] for each in targets if each["type"] == "page")
    browser.close()
    return f"ws://127.0.0.1:{port}/devtools/page/{target}"
