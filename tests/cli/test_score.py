"""`dual-head score`: replies ranked, pairs counted, and every token written down and coloured."""

import json
import re

import pytest
from engines import character_tokenizer
from files import word_tokenizer, write_guides

from dual_head import AlignedModel, HiddenConfig
from dual_head.cli import main
from dual_head.cli.score import _pieces
from dual_head.data import Cut

PROMPT = "ask0 ask1"
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}ask7 ask6 {{ m.content }} good7 {% else %}"
    " {{ m.content }} </s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def guides(backbone_folder, tmp_path_factory):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    folder = tmp_path_factory.mktemp("guides")
    return write_guides(folder, backbone_folder, {"edit": HiddenConfig()}, spread=0.3, tokenizer=tokenizer)


@pytest.fixture
def model(guides):
    return AlignedModel.from_pretrained(str(guides))


def write_rows(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def refused(capsys, *arguments) -> str:
    assert main(["score", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_replies_are_ranked_by_their_reward_and_written_token_by_token(guides, model, tmp_path, capsys):
    replies = ["bad1 bad2", "bad1", "good1 good2"]
    file = write_rows(tmp_path / "replies.jsonl", {"prompt": PROMPT, "replies": replies, "cut": [False, True, False]})
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(guides), "--replies", file, "--alpha", "2", "--output", str(out)]) == 0
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    expected = model.score([PROMPT] * 3, [replies[0], Cut(replies[1]), replies[2]], alpha=2.0)
    assert [one["reward"] for one in row["replies"]] == pytest.approx([score.reward for score in expected], abs=1e-5)
    assert row["best"] == max(range(3), key=lambda i: expected[i].reward) != 0
    for one, score in zip(row["replies"], expected, strict=True):
        assert [token["token_id"] for token in one["tokens"]] == [token.token_id for token in score.tokens]
        assert sum(token["reward"] for token in one["tokens"]) == pytest.approx(one["reward"], abs=1e-5)
    assert "".join(token["token"] for token in row["replies"][1]["tokens"]).strip() == "bad1"
    lines = [line for line in capsys.readouterr().out.splitlines() if re.search(r"[+-]\d", line)]
    shown = [float(re.search(r"([+-]\d+\.\d\d)\s", line)[1]) for line in lines[:3]]
    assert shown == sorted(shown, reverse=True)


def test_what_generate_writes_is_scored(guides, tmp_path, capsys):
    out = tmp_path / "replies.jsonl"
    assert main(["generate", str(guides), "--prompt", PROMPT, "--max_new_tokens", "4", "--output", str(out)]) == 0
    assert main(["score", str(guides), "--replies", str(out)]) == 0
    assert "1 replies to 1 prompts: mean reward" in capsys.readouterr().out


@pytest.mark.parametrize("system", [None, "ask3"])
def test_what_generate_writes_is_scored_in_its_conversation_and_without_an_end_where_it_has_none(
    guides, model, tmp_path, system
):
    out, scores = tmp_path / "replies.jsonl", tmp_path / "scores.jsonl"
    flags = ["--prompt", PROMPT, "--max_new_tokens", "4", *(["--system", system] if system else [])]
    assert main(["generate", str(guides), *flags, "--output", str(out)]) == 0
    assert main(["score", str(guides), "--replies", str(out), "--output", str(scores)]) == 0
    row, scored = (json.loads(file.read_text()) for file in (out, scores))
    conversation = [{"role": "system", "content": system}, {"role": "user", "content": PROMPT}]
    assert row["prompt"] == (conversation if system else PROMPT)
    assert row["cut"] is True
    (expected,) = model.score([conversation if system else conversation[1:]], [Cut(row["output"])])
    assert scored["replies"][0]["reward"] == pytest.approx(expected.reward, abs=1e-5)
    assert len(scored["replies"][0]["tokens"]) == len(row["output"].split())


@pytest.mark.parametrize(("value", "ends"), [("true", 0), ("1", 0), ("false", 1), ("0", 1), ("", 1)])
def test_a_table_says_in_words_or_numbers_whether_a_reply_was_cut(guides, tmp_path, value, ends):
    file, scores = tmp_path / "replies.csv", tmp_path / "scores.jsonl"
    file.write_text(f"prompt,reply,cut\n{PROMPT},good1 good2,{value}\n")
    assert main(["score", str(guides), "--replies", str(file), "--output", str(scores)]) == 0
    assert len(json.loads(scores.read_text())["replies"][0]["tokens"]) == 2 + ends


def test_pairs_are_counted_by_how_often_the_chosen_reply_is_preferred(guides, model, tmp_path, capsys):
    rows = [
        {"prompt": PROMPT, "chosen": f" good{i}", "rejected": f" bad{i}", "subset": "odd" if i % 2 else "even"}
        for i in range(5)
    ]
    file = write_rows(tmp_path / "pairs.jsonl", *rows)
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(guides), "--pairs", file, "--output", str(out)]) == 0
    # Texts are continued, as training continues them.
    expected = [
        [score.reward for score in model.score([PROMPT] * 2, [row["chosen"], row["rejected"]], chat_template=False)]
        for row in rows
    ]
    written = [json.loads(line)["replies"] for line in out.read_text().splitlines()]
    for replies, rewards in zip(written, expected, strict=True):
        assert [reply["label"] for reply in replies] == ["chosen", "rejected"]
        assert [reply["reward"] for reply in replies] == pytest.approx(rewards, abs=1e-5)
    right = [chosen > rejected for chosen, rejected in expected]
    assert 0 < sum(right) < 5  # else swapping the two would not show
    said = capsys.readouterr().out
    assert f"The chosen reply is preferred: {20 * sum(right):.1f}% of 5" in said
    assert re.search(r"even: [\d.]+% of 3", said)
    assert re.search(r"odd: [\d.]+% of 2", said)


def test_the_page_shows_every_token_as_text_on_a_ground_of_its_reward(guides, tmp_path):
    rows = [{"prompt": "<b>ask0</b>", "replies": ["good1 good2", "bad1"]}]
    file, page = write_rows(tmp_path / "replies.jsonl", *rows), tmp_path / "page.html"
    assert main(["score", str(guides), "--replies", file, "--page", str(page)]) == 0
    text = page.read_text()
    assert "&lt;b&gt;ask0" in text
    assert "<b>" not in text
    assert text.count('title="reward') == 5  # three words and two ends
    assert "<script" not in text
    assert text.count('class="reply best"') == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reply": "x"}, "has no prompt"),
        ({"prompt": PROMPT}, "has no reply"),
        ({"prompt": PROMPT, "replies": []}, "has no reply"),
        ({"prompt": PROMPT, "replies": ["a", "b"], "cut": [True]}, '2 replies and 1 values of "cut"'),
        ({"prompt": PROMPT, "reply": "a", "cut": "maybe"}, '"cut" must be true or false'),
        ([1], "is not an object"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(guides, tmp_path, capsys, row, said):
    file = write_rows(tmp_path / "replies.jsonl", row)
    told = refused(capsys, guides, "--replies", file)
    assert said in told
    assert "replies.jsonl" in told


def test_what_is_scored_is_named_once(guides, tmp_path, capsys):
    file = write_rows(tmp_path / "replies.jsonl", {"prompt": PROMPT, "reply": "good1"})
    assert "either --replies or --pairs" in refused(capsys, guides)
    assert "either --replies or --pairs" in refused(capsys, guides, "--replies", file, "--pairs", file)
    assert "There is no file" in refused(capsys, guides, "--replies", tmp_path / "none.jsonl")
    assert "is an input of this command" in refused(capsys, guides, "--replies", file, "--output", file)


def test_options_of_the_input_that_is_not_scored_are_refused(guides, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", {"prompt": PROMPT, "reply": "good1"})
    error = refused(capsys, guides, "--replies", file, "--split", "train", "--max_pairs", "1")
    assert "--split, --max_pairs are of pairs, and replies are scored here. Give --pairs" in error
    assert "--raw is of replies" in refused(capsys, guides, "--pairs", file, "--raw")


def test_the_pieces_of_tokens_make_up_the_text():
    for tokenizer in (character_tokenizer(), word_tokenizer()):
        ids = tokenizer("good1 good2 \u00e4").input_ids
        assert "".join(_pieces(ids, tokenizer)) == tokenizer.decode(ids)
