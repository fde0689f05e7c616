"""The demonstration on a chat model, with the toy backbone in its place: what is shown, trained and refused."""

import json

import pytest
import torch
from files import write_guides

from dual_head import AlignedModel, HiddenConfig
from dual_head.cli import main
from dual_head.data import Cut
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.answers import QUESTIONS, Answer, answer
from dual_head.demo.findings import ALPHAS, STRONG, Findings, findings_of, rows_of
from dual_head.demo.options import RealOptions
from dual_head.demo.own_guide import read_questions
from dual_head.demo.real import _cell, guides_to_show
from dual_head.errors import DualHeadError
from dual_head.model.generate import encode_prompts
from dual_head.model.pretrained import load_tokenizer
from dual_head.replies import rules
from dual_head.replies.pairs import conversation

BACKBONE = ["--backbone", str(TOY_BACKBONE)]


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """Two random guides of the toy backbone, under the names of rules."""
    place, tokenizer = tmp_path_factory.mktemp("guides"), load_tokenizer(str(TOY_BACKBONE))
    for seed, rule in enumerate(("concise", "bulleted")):
        options = {"seed": seed, "spread": 0.05, "tokenizer": tokenizer}
        write_guides(place / rule, TOY_BACKBONE, {rule: HiddenConfig(rank=4)}, **options)
    return place


def reply(text: str, alpha: float = 0.0, *, kl: float = 0.0, loss: float = 1.0, question: str = QUESTIONS[0]) -> Answer:
    return Answer(question, {"concise": alpha}, text, kl, loss)


def refused(capsys, *arguments: object) -> str:
    assert main(["demo", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.mark.heavy
def test_two_guides_are_shown_at_every_strength_mixed_and_where_they_break(guides, tmp_path, capsys):
    small = ["--max_new_tokens", "8", "--output_dir", str(tmp_path)]
    assert main(["demo", "--real", "--guides", str(guides), *BACKBONE, *small]) == 0
    words = capsys.readouterr().out
    for part in (*QUESTIONS, "concise (short replies", "bulleted (a bulleted list)", "both 1", "KL 0]", "means over 6"):
        assert part in words
    assert f"dual-head serve {guides} --backbone {TOY_BACKBONE}" in words
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "real.json").read_text())["replies"]
    expected = {f"{name}={alpha:g}" for name in ("concise", "bulleted") for alpha in (*ALPHAS, *STRONG)} | {"mixed"}
    assert rows.keys() == expected
    assert [len(rows[key]) for key in ("concise=0", "bulleted=2", "mixed", "concise=5")] == [6, 6, 6, 3]
    assert all(row["kl"] == 0 for row in rows["concise=0"])
    assert all(row["kl"] > 0 for row in rows["mixed"])


@pytest.mark.heavy
def test_a_guide_is_trained_on_the_models_own_replies_and_shown(tmp_path, capsys):
    questions = tmp_path / "questions.txt"
    questions.write_text("".join(f"how do i bake {what} ?\n\n" for what in ("bread", "a cake", "cookies", "a pie") * 3))
    small = ["--questions", str(questions), "--max_new_tokens", "40", "--output_dir", str(tmp_path / "out")]
    assert main(["demo", "--train", *BACKBONE, *small]) == 0
    words = capsys.readouterr().out
    pairs = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert f"12 questions, {len(pairs)} pairs" in words
    for pair in pairs:  # the better one is finished and shorter, or the other was cut
        chosen, rejected = (len(pair[name][0]["content"].split()) for name in ("chosen", "rejected"))
        worded = sum(word.isalpha() for word in pair["rejected"][0]["content"].split())
        assert chosen < rejected or worded < 5 or rejected > 30
    model = AlignedModel.from_pretrained(tmp_path / "out" / "guides" / "concise")
    assert model.guides["hidden"].config.rank == 64
    assert f"dual-head serve {tmp_path / 'out' / 'guides'}" in words
    assert "means over 6 questions" in words


def test_what_cannot_be_is_refused(guides, tmp_path, capsys):
    assert "--guides goes with --real" in refused(capsys, "--guides", guides)
    assert "--guides goes with --real" in refused(capsys, "--train", "--guides", guides)
    assert "--rule goes with --train" in refused(capsys, "--real", "--rule", "plain")
    assert "--max_new_tokens goes with --real or --train" in refused(capsys, "--max_new_tokens", "5")
    assert "--steps is of the small world" in refused(capsys, "--real", "--steps", "5")
    assert "Give one of them" in refused(capsys, "--real", "--train")
    assert "one or two names" in refused(capsys, "--real", "--show", "a", "b", "c")
    real = ["--real", *BACKBONE, "--output_dir", tmp_path / "out"]
    assert "Did you mean 'concise'?" in refused(capsys, *real, "--guides", guides, "--show", "concis")
    assert "holds no folders of guides" in refused(capsys, *real, "--guides", tmp_path)
    train = ["--train", *BACKBONE, "--output_dir", tmp_path / "out"]
    assert "Did you mean 'plain'?" in refused(capsys, *train, "--rule", "plane")
    assert "a question a line" in refused(capsys, *train, "--questions", tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "holds no question" in refused(capsys, *train, "--questions", tmp_path / "empty.txt")


def test_guides_are_shown_whose_rules_can_be_computed(tmp_path, monkeypatch):
    for name in ("concise", "plain", "positive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "dual_head"}))
    options = RealOptions(real=True, guides=str(tmp_path))
    assert list(guides_to_show(options)) == ["concise", "positive"]
    monkeypatch.setattr(rules, "find_spec", lambda _: None)
    assert list(guides_to_show(options)) == ["concise"]
    (tmp_path / "concise" / "config.json").unlink()
    with pytest.raises(DualHeadError, match=r"plain, positive need pip install 'dual-head\[rules\]'"):
        guides_to_show(options)


def test_the_questions_that_train_are_none_of_those_that_show():
    questions = read_questions(None)
    assert len(questions) == len(set(questions)) == 60
    assert not set(questions) & set(QUESTIONS)


# ---- answers, by hand ----------------------------------------------------------------------------------------


def test_a_reply_falls_apart_when_it_is_empty_circles_or_is_no_language():
    assert reply("Paris is the capital of France.").collapse is None
    assert reply("Paris.").collapse == "says nothing"
    assert reply("so it is so it is so it is so it is").distinct == pytest.approx(3 / 10)
    assert reply("so it is so it is so it is so it is").collapse == "runs in a circle"
    assert reply("grape of seven wheel under", loss=6.0).collapse == "is no language"


def test_a_long_reply_is_cut_where_it_is_printed():
    assert _cell(reply("- a\n\n- b", kl=2.0), ["concise"]) == "- a\n- b\n[concise 0; KL 2]"
    assert _cell(reply("line\n" * 20, kl=2.0), ["concise"]).startswith("line\n" * 7 + "line ...\n[")
    assert _cell(reply("w" * 300), ["concise"]).startswith("w" * 280 + " ...\n[concise 0;")


def test_a_rule_counts_what_it_counts_elsewhere():
    assert reply("one two three four five six").score("concise") == 94
    assert reply(Cut("one two three four five six")).score("concise") == 0
    assert reply("- one\n- two").score("bulleted") == 1


def test_the_break_is_the_least_strength_at_which_a_sound_reply_falls_apart():
    sound, circle = "this is a sound reply to it", "and on and on and on and on and on"
    other = QUESTIONS[1]
    alone = {
        -1.0: [reply(circle, -1.0)],
        0.0: [reply(sound), reply(circle, question=other)],
        1.0: [reply(sound, 1.0), reply(circle, 1.0, question=other)],
        2.0: [reply(circle, 2.0)],
        3.0: [reply(circle, 3.0)],
    }
    alpha, broken = Findings({"concise": alone}, []).break_of("concise")
    assert (alpha, broken.question) == (2.0, QUESTIONS[0])
    assert Findings({"concise": {0.0: alone[0.0], 1.0: alone[1.0]}}, []).break_of("concise") is None


def test_answers_are_sorted_by_guide_and_strength():
    names = ["concise", "bulleted"]
    rows = rows_of(names)
    assert len(rows) == 6 * 8 + 2 * 2 * 3
    findings = findings_of(names, [Answer(question, strengths, "", 0.0, 0.0) for question, strengths in rows])
    assert [len(findings.alone["bulleted"][alpha]) for alpha in (*ALPHAS, *STRONG)] == [6, 6, 6, 6, 3, 3]
    assert findings.alone["concise"][0.0] == findings.alone["bulleted"][0.0]
    assert len(findings.mixed) == 6
    (single,) = findings_of(["concise"], []).alone
    assert single == "concise"
    assert not any(len(strengths) > 1 for _, strengths in rows_of(["concise"]))


def test_divergence_and_loss_are_those_of_the_reply_up_to_its_end(guides):
    tokenizer = load_tokenizer(str(TOY_BACKBONE))
    model = AlignedModel.from_pretrained(guides / "concise", tokenizer=tokenizer)
    rows = [("how do i bake bread ?", {"concise": 1.0}), ("how do i hide a gift ?", {"concise": 0.0})]
    for row, (question, strengths) in zip(answer(model, tokenizer, rows, max_new_tokens=30), rows, strict=True):
        prompt = encode_prompts([conversation(question)], tokenizer)["input_ids"]
        tail = tokenizer(row.text, add_special_tokens=False)["input_ids"]
        tail += [] if isinstance(row.text, Cut) else [tokenizer.eos_token_id]
        whole = torch.cat([prompt, torch.tensor([tail])], 1)
        with torch.no_grad():
            base, policy = (model(whole, alpha=a).logits.log_softmax(-1) for a in (0.0, strengths["concise"]))
        scored = slice(prompt.shape[1] - 1, -1)
        kl = (policy.exp() * (policy - base)).sum(-1)[0, scored].sum().item()
        loss = -base[0, scored].gather(1, torch.tensor(tail)[:, None]).mean().item()
        assert row.kl == pytest.approx(kl, abs=1e-3, rel=1e-3)
        assert row.loss == pytest.approx(loss, rel=1e-3)


def test_what_a_rule_needs_is_asked_for_before_anything_is_sampled(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(rules, "require", lambda *names: (_ for _ in ()).throw(DualHeadError(f"install {names}")))
    monkeypatch.setattr("dual_head.demo.own_guide.chat_model", lambda _: pytest.fail("the model was looked for"))
    assert "install ('textstat', 'rules')" in refused(capsys, "--train", "--rule", "plain", "--output_dir", tmp_path)
