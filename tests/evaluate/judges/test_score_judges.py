"""Judges that score each reply: rules and reward models; and how any judge is asked for."""

import sys
import textwrap

import pytest
import torch
from files import word_tokenizer, write_classifier
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from dual_head import DualHeadError
from dual_head.demo import world
from dual_head.evaluate import Comparison, Judge, Question
from dual_head.evaluate.judges import JUDGES, load_judge
from dual_head.evaluate.judges.base import batches_by_length, shown_turns
from dual_head.evaluate.rewards import load_reward

QUESTION = Question("q", "ask0 ask1")
TALK = Question("t", "ask0", follow_ups=("ask1",))


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """A module of rules in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as a console script has it
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    (tmp_path / "my_rules.py").write_text(
        textwrap.dedent("""
            seen = []
            def words(prompt, reply):
                seen.append((prompt, reply))
                return len(reply.split()) / 10
            def nan(prompt, reply): return float("nan") if "bad" in reply else 1.0
            def infinite(prompt, reply): return float("inf")
            def nothing(prompt, reply): return None
            def failing(prompt, reply): return 1 / 0
        """)
    )
    return tmp_path / "my_rules.py"


def compared(judge, *pairs, question=QUESTION):
    verdicts = dict(judge.compare([Comparison(question, (first,), (second,)) for first, second in pairs]))
    return [verdicts[i] for i in range(len(pairs))]


def graded(judge, *texts, question=QUESTION):
    verdicts = dict(judge.grade([(question, (text,)) for text in texts]))
    return [verdicts[i] for i in range(len(texts))]


# ---- rules -------------------------------------------------------------------------------------------------


def test_the_higher_score_is_preferred_and_equal_ones_tie(rules):
    judge = load_judge("rule:my_rules:words")
    verdicts = compared(judge, ("a b", "a"), ("a", "a b"), ("a b", "c d"))
    assert [verdict.value for verdict in verdicts] == [1, 0, 0.5]
    assert verdicts[0].said == "0.2 against 0.1"
    assert (judge.name, judge.symmetric) == ("words", True)
    assert [verdict.value for verdict in graded(judge, "a b c", "")] == [0.3, 0]


def test_scores_that_differ_in_their_last_bits_tie(rules, monkeypatch):
    judge = load_judge("rule:my_rules:words")
    monkeypatch.setattr(judge, "_rule", lambda prompt, reply: 0.1 + 0.2 if reply == "a" else 0.3)
    assert 0.1 + 0.2 != 0.3
    assert compared(judge, ("a", "b"))[0].value == 0.5


def test_each_turn_is_scored_after_the_turns_before_it_and_the_mean_counts(rules):
    judge = load_judge("rule:my_rules:words")
    ((_, verdict),) = judge.grade([(TALK, ("one", "one two three"))])
    assert verdict.value == pytest.approx((0.1 + 0.3) / 2)
    assert verdict.said == "0.1 0.3"
    talk = [
        {"role": "user", "content": "ask0"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "ask1"},
    ]
    assert sys.modules["my_rules"].seen == [("ask0", "one"), (talk, "one two three")]
    with pytest.raises(DualHeadError, match="'t' has 2 turns and an answer to it 1 replies"):
        shown_turns(TALK, ("one",))


def test_a_reply_that_many_are_compared_with_is_scored_once(rules):
    judge = load_judge("rule:my_rules:words")
    compared(judge, ("a", "base"), ("a b", "base"), ("base", "a b c"))
    assert [reply for _, reply in sys.modules["my_rules"].seen] == ["a", "base", "a b", "a b c"]


@pytest.mark.parametrize("rule", ["nan", "infinite", "nothing"])
def test_what_is_no_number_is_a_flaw_and_no_tie(rule, rules):
    judge = load_judge(f"rule:my_rules:{rule}")
    both = compared(judge, ("good", "bad"), ("bad", "good"), ("bad", "bad2"))
    assert [verdict.value for verdict in both] == [None, None, None]
    assert all(verdict.flaw for verdict in both)
    if rule == "nan":
        assert both[0].flaw == "second: the rule gave nan, not a number"
        assert graded(judge, "good", "bad")[0].value == 1
        assert graded(judge, "good", "bad")[1].value is None


def test_a_rule_that_fails_stops_the_run_and_says_where(rules):
    with pytest.raises(DualHeadError, match="'failing' failed for the reply 'a': ZeroDivisionError"):
        compared(load_judge("rule:my_rules:failing"), ("a", "b"))


def test_an_edited_rule_is_another_judge(rules, monkeypatch):
    before = load_judge("rule:my_rules:words").identity
    assert load_judge("rule:my_rules:words").identity == before
    rules.write_text(rules.read_text().replace("/ 10", "/ 5"))
    monkeypatch.delitem(sys.modules, "my_rules")
    assert load_judge("rule:my_rules:words").identity != before


def test_the_demonstration_world_is_judged_by_its_exact_reward():
    judge = load_judge("rule")
    request = world.sample_requests(1, seed=0)[0]
    best = world.best_reply(request)
    for prompt in (request.prompt, [{"role": "user", "content": request.text}]):
        question = Question("w", prompt)
        (verdict,) = graded(judge, best, question=question)
        assert verdict.value == world.reward(request, best).total
        assert [v.value for v in compared(judge, (best, " nonsense"), (" nonsense", best), question=question)] == [1, 0]
    with pytest.raises(DualHeadError, match=r"own requests only, not to 'ask0 ask1'.*rule:module:function"):
        graded(judge, "good0")


# ---- reward models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    folder = write_classifier(tmp_path_factory.mktemp("judge") / "reward")
    word_tokenizer().save_pretrained(folder)
    return folder


REPLIES = [" ".join(f"good{i % 8}" for i in range(n)) for n in (1, 7, 3, 12, 2, 5, 1, 9, 30)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_each_reply_the_score_that_it_has_alone(reward_model, side, monkeypatch):
    _, reward = load_reward(str(reward_model))
    alone = [reward("ask0 ask1", f" {reply}") for reply in REPLIES]
    assert len({round(score, 4) for score in alone}) > 5
    judge = load_judge(f"reward:{reward_model}", batch_size=4, device="cpu")
    judge._model.tokenizer.padding_side = side
    found = [verdict.value for verdict in graded(judge, *(f" {reply}" for reply in REPLIES))]
    assert found == pytest.approx(alone, abs=1e-5)
    assert (judge.name, judge.symmetric) == ("reward", True)


def test_a_model_without_a_padding_token_is_batched_too(reward_model, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "padless")
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "padless")
    texts = ("good1 <pad>", "<pad>", "good1 good2 good3")
    rows = [[*tokenizer(f"ask0 {reply}")["input_ids"], tokenizer.eos_token_id] for reply in texts]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    judge = load_judge(f"reward:{tmp_path / 'padless'}", device="cpu")
    replies = (" good1 <pad>", " <pad>", " good1 good2 good3")
    found = [verdict.value for verdict in graded(judge, *replies, question=Question("q", "ask0"))]
    assert found == pytest.approx(alone, abs=1e-5)
    assert judge._model.model.config.pad_token_id is None  # as it was


def test_an_encoder_is_a_reward_model_as_well(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=60, num_labels=1, pad_token_id=0, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    _, reward = load_reward(str(tmp_path))
    judge = load_judge(f"reward:{tmp_path}", device="cpu")
    found = [verdict.value for verdict in graded(judge, " good1", " good1 good2 good3")]
    alone = [reward("ask0 ask1", " good1"), reward("ask0 ask1", " good1 good2 good3")]
    assert found == pytest.approx(alone, abs=1e-5)


def test_what_is_too_long_for_the_reward_model_is_a_flaw(reward_model, monkeypatch):
    judge = load_judge(f"reward:{reward_model}", device="cpu")
    monkeypatch.setattr(judge._model, "context", 8)
    short, long = compared(judge, (" good1", " good2"), (" good1", " good2" * 20))
    assert short.value in (0, 1)
    assert (long.value, long.flaw) == (None, "second: too long: 24 tokens, the model reads 8")


def test_scores_that_are_not_finite_are_a_flaw(reward_model, monkeypatch):
    judge = load_judge(f"reward:{reward_model}", device="cpu")
    monkeypatch.setattr(judge._model, "score", lambda rows: [float("nan")] * len(rows))
    (verdict,) = compared(judge, (" good1", " good2"))
    assert (verdict.value, verdict.flaw) == (None, "first: the score is nan")


def test_other_weights_are_another_judge_and_the_same_elsewhere_are_not(reward_model, tmp_path):
    write_classifier(tmp_path / "other", seed=5)
    write_classifier(tmp_path / "copy")
    for name in ("other", "copy"):
        word_tokenizer().save_pretrained(tmp_path / name)
    own, other, copy = (
        load_judge(f"reward:{folder}", device="cpu").identity
        for folder in (reward_model, tmp_path / "other", tmp_path / "copy")
    )
    assert own == copy != other


def test_batches_are_of_about_the_same_length():
    assert list(batches_by_length({0: 5, 1: 1, 2: 4, 3: 2, 7: 3}, 2)) == [[1, 3], [7, 2], [0]]


# ---- asking for a judge ------------------------------------------------------------------------------------


def test_every_kind_of_judge_says_how_it_is_asked_for():
    kinds = JUDGES.load_all()
    assert kinds.keys() >= {"rule", "reward", "lm", "openai"}
    assert all(kind.form.startswith(name) for name, kind in kinds.items())
    assert isinstance(load_judge("rule"), Judge)


@pytest.mark.parametrize(
    ("spec", "options", "remedy"),
    [
        ("rul", {}, "Did you mean 'rule'?"),
        ("", {}, "A judge is one of: lm:PATH"),
        ("some/folder", {}, "reward:PATH"),
        ("rule", {"batch_size": 2}, "Unknown option 'batch_size'"),
        ("rule:words", {}, "rule:module:function"),
        ("rule:no_such:words", {}, "Cannot import"),
        ("reward:no/such/folder", {}, "There is no folder 'no/such/folder'"),
        ("reward:", {}, "There is no folder ''"),
        ("lm:", {}, "The judge lm needs a model"),
    ],
)
def test_what_is_no_judge_is_refused_with_the_remedy(spec, options, remedy):
    with pytest.raises(DualHeadError) as refused:
        load_judge(spec, **options)
    assert remedy in str(refused.value)


def test_options_that_cannot_be_are_refused(reward_model):
    for options, remedy in (({"batch_size": 0}, "at least 1"), ({"device": "abacus"}, "is not a device")):
        with pytest.raises(DualHeadError, match=remedy):
            load_judge(f"reward:{reward_model}", **options)
