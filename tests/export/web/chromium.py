"""Headless Chromium, driven through ChromeDriver's HTTP protocol (W3C WebDriver), and a server for a folder."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP plain.test 127.0.0.1",  # a host that is not this machine by its name
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
TIMEOUT_S = 60


class PageError(RuntimeError):
    """An error that ChromeDriver or a script in the page reported."""


@dataclass(frozen=True)
class Browser:
    """One window. Scripts may be bodies of async functions; what they return comes back as JSON."""

    session: str

    def open(self, url: str) -> None:
        call("POST", f"{self.session}/url", {"url": url})

    def reload(self) -> None:
        call("POST", f"{self.session}/refresh", {})

    def run(self, script: str, *arguments: object) -> Any:
        """The script's arguments are in `args`."""
        wrapped = (
            "const done = arguments[arguments.length - 1]; const args = [...arguments].slice(0, -1);"
            f"(async () => {{ {script} }})().then((value) => done({{value: value ?? null}}),"
            " (error) => done({error: String(error)}));"
        )
        result = call("POST", f"{self.session}/execute/async", {"script": wrapped, "args": list(arguments)})
        if "error" in result:
            raise PageError(result["error"])
        return result["value"]

    def wait_until_ready(self) -> None:
        """Returns when the page's model is open; its script may start after the load event. Raises PageError."""
        self.run("while (!window.edgeembed) await new Promise((wait) => setTimeout(wait, 20));")
        self.run("await window.edgeembed.ready")

    def find(self, selector: str) -> str:
        return str(call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})[ELEMENT])

    def choose_file(self, selector: str, path: Path) -> None:
        """Chooses a file, as in the dialog of a file input."""
        call("POST", f"{self.session}/element/{self.find(selector)}/value", {"text": str(path.resolve())})

    def click(self, selector: str) -> None:
        call("POST", f"{self.session}/element/{self.find(selector)}/click", {})

    def press(self, key: str) -> None:
        """Presses a key, for the element that has the focus."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        call("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})

    def devtools(self, command: str, **parameters: object) -> Any:
        return call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self) -> bytes:
        return base64.b64decode(self.devtools("Page.captureScreenshot")["data"])

    def log(self) -> list[str]:
        """Warnings and errors on the console since the last call."""
        return [entry["message"] for entry in call("POST", f"{self.session}/se/log", {"type": "browser"})]


def call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=2 * TIMEOUT_S) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise PageError(json.load(error)["value"]["message"]) from None


def is_installed() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a fresh profile, in which no page has stored anything."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            port = next(match[1] for line in driver.stdout if (match := re.search(r"successfully on port (\d+)", line)))
            options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
            capabilities = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "WARNING"},
                "timeouts": {"script": 1000 * TIMEOUT_S},
            }
            root = f"http://127.0.0.1:{port}/session"
            opened = call("POST", root, {"capabilities": {"alwaysMatch": capabilities}})
            session = f"{root}/{opened['sessionId']}"
            try:
                yield Browser(session)
            finally:
                call("DELETE", session)
        finally:
            driver.terminate()
            driver.wait()
            driver.stdout.close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Prints nothing; `headers_added` are part of every response."""

    headers_added: Mapping[str, str] = MappingProxyType({})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        for name, value in self.headers_added.items():
            self.send_header(name, value)
        super().end_headers()


class QuietServer(http.server.ThreadingHTTPServer):
    """Ignores that a browser closes a connection early."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[tuple[str, http.server.HTTPServer]]:
    """The address of a folder, and its server, which a test may shut down early."""
    handler = type("Handler", (QuietHandler,), {"headers_added": headers or {}})
    server = QuietServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
