"""The page in a real browser: headless Chromium, spoken to by WebDriver's own protocol."""

import base64
import json
import shlex
import shutil
import subprocess

import httpx2
import pytest
from engines import character_tokenizer, small_engine, tiny_model
from servers import CHAT, ScriptedEngine, free_port, running_server, until

CHROMIUM = [shutil.which(name) for name in ("chromium", "chromedriver")]
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"]
MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in CHROMIUM, reason="chromium and chromedriver are not installed"),
]


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


@pytest.fixture(scope="module")
def browser():
    port = free_port()
    driver = subprocess.Popen([CHROMIUM[1], f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            until(lambda: answers(client))
            window = Browser(client)
            yield window
            window.close()
    finally:
        driver.terminate()
        driver.wait()


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/status").json()["value"]["ready"]
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def tokenizer():
    characters = character_tokenizer()
    characters.chat_template = CHAT
    return characters


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_model("hidden")
    model._tokenizer = tokenizer
    return model


def roomy(engine: ScriptedEngine) -> ScriptedEngine:
    """With a context for more than the tokens that the page asks for."""
    engine.context_length = 512
    return engine


def strong(browser: Browser) -> None:
    """Set the slider of the guide to 2, and ask for few tokens."""
    browser.run("const range = document.querySelector('.guide input'); range.value = 2; range.oninput()")
    browser.run("document.getElementById('tokens').value = 12")


def test_three_columns_show_what_the_library_says_at_three_strengths(browser, model, tokenizer):
    with running_server(model, tokenizer, small_engine) as server:
        browser.open(server.url)
        strong(browser)
        browser.type("#message", "how are you?\ue007")  # Enter
        until(lambda: browser.text("#state").startswith("36 tokens"))
        texts = [
            model.generate([{"role": "user", "content": "how are you?"}], alpha=alpha, max_new_tokens=12)
            for alpha in (0.0, 1.0, 2.0)
        ]
        assert browser.texts(".column h2 span") == ["hidden 0", "hidden 1", "hidden 2"]
        assert browser.texts(".column .text") == texts
        assert len(set(texts)) == 3
        assert browser.run("return document.querySelector('.column:last-child .token').dataset.kl") != "0"
        assert browser.picture().startswith(b"\x89PNG")


def test_the_text_comes_piece_by_piece_and_stops_at_a_click(browser, model, tokenizer):
    engine = roomy(ScriptedEngine(pause=0.1, text=lambda request: [f"word{i} " for i in range(request.max_tokens)]))
    with running_server(model, tokenizer, lambda _: engine) as server:
        browser.open(server.url)
        browser.type("#message", "go")
        browser.click("#send")
        until(lambda: all("word1 " in text for text in browser.texts(".column .text")))
        assert browser.text("#state") == "generating"
        browser.click("#stop")
        until(lambda: all(text.endswith("(stopped)") for text in browser.texts(".column .text")))
        until(lambda: engine.cancelled == 3)


def test_whatever_is_said_stays_text(browser, model, tokenizer):
    engine = roomy(ScriptedEngine(text=lambda request: ["so: ", MARKUP]))
    with running_server(model, tokenizer, lambda _: engine) as server:
        browser.open(server.url)
        browser.type("#message", MARKUP)
        browser.click("#send")
        until(lambda: " tokens in " in browser.text("#state"))
        assert browser.texts(".column .text") == [f"so: {MARKUP}"] * 3
        assert browser.texts(".asked") == [MARKUP]
        assert browser.run("return [document.title, document.querySelectorAll('#chat img, #chat b').length]") == [
            "dual-head",
            0,
        ]


def test_the_copied_command_asks_for_what_the_page_shows(browser, model, tokenizer):
    with running_server(model, tokenizer, small_engine) as server:
        browser.open(server.url)
        strong(browser)
        browser.type("#message", "it's 'quoted'\ue007")
        until(lambda: browser.text("#state").startswith("36 tokens"))
        browser.run("navigator.clipboard.writeText = async text => { window.copied = text }")
        browser.click("#curl")
        command, url, *rest = shlex.split(browser.run("return window.copied"))
        body = json.loads(rest[rest.index("-d") + 1])
        assert (command, body["alpha"]) == ("curl", {"hidden": 2})
        reply = server.post(url.removeprefix(server.url), body).json()
        assert reply["choices"][0]["message"]["content"] == browser.texts(".column .text")[-1]
        browser.click("#python")
        assert 'extra_body={"alpha": {"hidden":2}}' in browser.run("return window.copied")
