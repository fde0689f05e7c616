"""The page in a real browser: headless Chromium."""

import json
import shlex

import pytest
from browser import CHROMIUM, Browser, open_browser
from engines import small_engine, tiny_model
from servers import ScriptedEngine, running_server, until

from dual_head import LinearDecay

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
        assert browser.texts(".column .cut") == ["cut at the limit of tokens"] * 3
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


def test_an_answer_of_a_proxy_that_is_no_json_is_shown_by_its_status(browser, model, tokenizer):
    with running_server(model, tokenizer, small_engine) as server:
        browser.open(server.url)
        page = "new Response('<h1>no</h1>', {status: 502, statusText: 'Bad Gateway'})"
        browser.run(f"window.fetch = async () => {page}; document.getElementById('key').onchange()")
        until(lambda: browser.text("#state") == "The server answers 502 Bad Gateway.")
        browser.type("#message", "go\ue007")
        until(lambda: browser.texts(".column .error") == [" The server answers 502 Bad Gateway."] * 3)


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


def choose_preset(browser: Browser, name: str) -> None:
    """Choose it, as from the list."""
    browser.run(f"const list = document.getElementById('preset'); list.value = {json.dumps(name)}; list.onchange()")


def test_a_preset_that_decays_is_asked_for_until_its_slider_is_moved(browser, model, tokenizer, tmp_path):
    (tmp_path / "presets.yaml").write_text("fading:\n  hidden: {start: 2.0, end: 0.5, tokens: 4}\n")
    engine = roomy(ScriptedEngine(text=lambda request: ["so"]))
    with running_server(model, tokenizer, lambda _: engine, presets=str(tmp_path / "presets.yaml")) as server:
        browser.open(server.url)
        choose_preset(browser, "toy:fading")
        assert browser.text(".guide span") == "hidden, 2 to 0.5 in 4 tokens"
        browser.type("#message", "go\ue007")
        until(lambda: " tokens in " in browser.text("#state"))
        headings = ["hidden 0", "hidden 1 to 0.25 in 4 tokens", "hidden 2 to 0.5 in 4 tokens"]
        assert browser.texts(".column h2 span") == headings
        strengths = [request.alpha["hidden"] for request in engine.requests[1:]]
        assert 0.0 in strengths
        assert LinearDecay(1.0, 0.25, 4) in strengths
        assert LinearDecay(2.0, 0.5, 4) in strengths
        browser.run("navigator.clipboard.writeText = async text => { window.copied = text }")
        browser.click("#curl")
        assert '"alpha":{"hidden":{"start":2,"end":0.5,"tokens":4}}' in browser.run("return window.copied")
        strong(browser)
        assert browser.text(".guide span") == "hidden"
        browser.type("#message", "on\ue007")
        until(lambda: len(engine.requests) == 7)
        assert sorted(request.alpha["hidden"] for request in engine.requests[4:]) == [0.0, 1.0, 2.0]


def test_a_turn_that_was_stopped_before_its_first_token_is_left_out_of_the_next_request(browser, model, tokenizer):
    engine = roomy(ScriptedEngine())
    with running_server(model, tokenizer, lambda _: engine) as server:
        browser.open(server.url)
        engine.pause = 60.0
        browser.type("#message", "one\ue007")
        until(lambda: engine.running == 3)
        browser.click("#stop")
        until(lambda: engine.cancelled == 3)
        engine.pause = 0.0
        for words in ("two", "three"):
            before = len(engine.requests)
            until(lambda: not browser.run("return document.getElementById('send').disabled"))
            browser.type("#message", f"{words}\ue007")
            until(lambda count=before: len(engine.requests) == count + 3)
        reply = browser.texts(".turn:nth-child(2) .text")[-1]
    prompts = {tokenizer.decode(request.prompt_ids) for request in engine.requests[4:]}
    assert prompts == {"u:two;a:", f"u:two;a:{reply};u:three;a:"}
