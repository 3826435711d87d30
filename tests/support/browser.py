"""A real browser without a window, driven over WebDriver: Debian's ``chromium`` and its driver."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "no headless browser: apt-get install chromium chromium-driver"
OPTIONS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--window-size=1280,1000", "--hide-scrollbars", "--disable-background-networking"),
]


class Browser:
    """One window of a browser.

    Args:
        address: of the session at the driver.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def open(self, page: Path) -> None:
        """Open a file; returns when it is loaded."""
        _ask(f"{self.address}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function of JavaScript returns."""
        return _ask(f"{self.address}/execute/sync", {"script": script, "args": list(arguments)})

    def console(self) -> list[str]:
        """What the console has said since the last call, errors of the page and its policy too."""
        return [entry["message"] for entry in _ask(f"{self.address}/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """Write what is in sight as a PNG file."""
        path.write_bytes(base64.b64decode(_ask(f"{self.address}/screenshot")))


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser that ends with the block."""
    driver = subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = next(
            line.rsplit(" ", 1)[1].strip(".\n")
            for line in driver.stdout
            if "successfully on port" in line
        )
        address = f"http://127.0.0.1:{port}/session"
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": CHROMIUM, "args": OPTIONS},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = _ask(address, {"capabilities": {"alwaysMatch": capabilities}})
        browser = Browser(f"{address}/{session['sessionId']}")
        try:
            yield browser
        finally:
            _ask(browser.address, method="DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=10)


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until ``condition()`` holds.

    Raises:
        AssertionError: it does not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _ask(address: str, body: dict | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]
