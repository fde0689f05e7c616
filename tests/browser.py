"""Headless Chromium, spoken to by WebDriver's own protocol."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from servers import free_port, until

CHROMIUM = [shutil.which(name) for name in ("chromium", "chromedriver")]
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"]


class Browser:
    """One window of Chromium."""

    def __init__(self, driver: httpx2.Client):
        capabilities = {"alwaysMatch": {"goog:chromeOptions": {"binary": CHROMIUM[0], "args": OPTIONS}}}
        self._driver, self._path = driver, "/session"
        self._path = f"/session/{self._call('POST', '', capabilities=capabilities)['sessionId']}"

    def _call(self, method: str, path: str, **body):
        response = self._driver.request(method, self._path + path, json=body if method == "POST" else None)
        value = response.json()["value"]
        assert response.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        """Load a page, and wait until it has asked for the models."""
        self._call("POST", "/url", url=url)
        until(lambda: self.text("#state") == "ready")

    def run(self, script: str):
        """What JavaScript returns."""
        return self._call("POST", "/execute/sync", script=script, args=[])

    def text(self, selector: str) -> str:
        """The text of the first such element."""
        return self.run(f"return document.querySelector({json.dumps(selector)}).textContent")

    def texts(self, selector: str) -> list[str]:
        """The text of each such element."""
        return self.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map(each => each.textContent)")

    def click(self, selector: str) -> None:
        """Click where the element is, as a user would."""
        (element,) = self._call("POST", "/element", using="css selector", value=selector).values()
        self._call("POST", f"/element/{element}/click")

    def type(self, selector: str, keys: str) -> None:
        """Type into the element."""
        (element,) = self._call("POST", "/element", using="css selector", value=selector).values()
        self._call("POST", f"/element/{element}/value", text=keys)

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def close(self) -> None:
        """Close the window."""
        self._call("DELETE", "")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """One window for as long as the block lasts."""
    port = free_port()
    driver = subprocess.Popen([CHROMIUM[1], f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            until(lambda: _answers(client))
            window = Browser(client)
            yield window
            window.close()
    finally:
        driver.terminate()
        driver.wait()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/status").json()["value"]["ready"]
    except httpx2.TransportError:
        return False
