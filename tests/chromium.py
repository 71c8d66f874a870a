"""A browser without a window, driven over a pipe by its own protocol: no driver to install, and no port to open."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any


def find() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page in a new browser. Everything it asked the network for, and every error it had, is kept.

    `requests`: addresses; `errors`: what the console and the page complained of.
    """

    def __init__(self, executable: str, *, patience: float = 60):
        self.patience = patience
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        their_in, self.commands = os.pipe()
        self.replies, their_out = os.pipe()
        quiet = ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        start = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # the protocol speaks on descriptors 3 and 4
        command = ["bash", "-c", start, str(their_in), str(their_out), executable, "--headless=new", "--no-sandbox"]
        self.process = subprocess.Popen(
            [*command, *quiet, "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        self.buffer, self.count, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, and what came back."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            reply = self._next()
            if reply.get("id") == self.count:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
        raise TimeoutError(method)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.replies, 2**20)
            if not part:
                raise ConnectionError("the browser has gone")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            self.errors.append(params["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(str(params["args"]))
        return message

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; of what it promises, where it is a promise."""
        reply = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + self.patience
        while not self.evaluate(expression):
            if time.monotonic() > until:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def show(self, url: str, *, width: int, height: int, dark: bool = False) -> None:
        """Open a page in a window of that size, of a phone where it is narrow."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self.ask("Emulation.setDeviceMetricsOverride", **size, mobile=phone)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def click(self, x: float, y: float, *, to: tuple[float, float] | None = None) -> None:
        """Press there, and let go there or at another place."""
        a, b = to or (x, y)
        self._mouse("mousePressed", x, y)
        if to:
            self._mouse("mouseMoved", a, b)
        self._mouse("mouseReleased", a, b)

    def _mouse(self, kind: str, x: float, y: float) -> None:
        pressed = {"button": "left", "buttons": int(kind != "mouseReleased"), "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def tap(self, x: float, y: float) -> None:
        self.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, text: str = "") -> None:
        codes = {"Enter": 13, "Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        which = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **which, **({"text": text} if text else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **which)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        picture = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.session = ""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.ask("Browser.close")
        for end in (self.commands, self.replies):
            os.close(end)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()
