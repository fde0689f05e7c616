"""The page in a real browser: headless Chromium."""

import json
import shlex

import pytest
from browser import CHROMIUM, Browser, open_browser
from engines import small_engine, tiny_model
from servers import ScriptedEngine, running_server, until

MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in CHROMIUM, reason="chromium and chromedriver are not installed"),
]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as window:
        yield window


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
