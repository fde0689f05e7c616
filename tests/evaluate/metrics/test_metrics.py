"""Metrics of replies: each by hand, what is missing counted, what cannot be measured said."""

import math

import pytest
import torch
from files import word_tokenizer, write_classifier
from models import guided_lm, tiny_lm

from dual_head import DualHeadError, RewardHeadConfig
from dual_head.demo import world
from dual_head.evaluate import Answer, Question
from dual_head.evaluate.metrics import METRICS, Metric, Tools, load_metrics
from dual_head.evaluate.metrics.continuations import last_prompt, reply_rows
from dual_head.evaluate.metrics.measures import about, measure
from dual_head.evaluate.rewards import load_reward
from dual_head.replies.refusals import is_refusal
from dual_head.stats import summary

CHAT = [{"role": "user", "content": "ask1"}]
QUESTIONS = [
    Question("a", "ask0 ask1", category="harmless"),
    Question("b", "ask2", category="harmful"),
    Question("c", CHAT, follow_ups=("ask2 ask3",), category="safe"),
]
ANSWERS = {
    "a": Answer(question="a", replies=(" good1 good2 good1 good2 good3",), tokens=(6,), finished=(True,)),
    "b": Answer(question="b", replies=("I cannot help with that.",), tokens=(9,), finished=(False,)),
    "c": Answer(question="c", replies=("", "good4 bad1"), tokens=(1, 3), finished=(True, True)),
}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def values(name, questions=QUESTIONS, answers=ANSWERS, **tools):
    return measure(questions, answers, Tools(**tools), metrics=[name]).values[name]


# ---- replies alone ---------------------------------------------------------------------------------------


def test_diversity_is_that_of_words_averaged_over_replies():
    # Five words: bigrams 12 21 12 23 (3 distinct of 4), trigrams 121 212 123 (3 of 3), one pair of 4-grams (2 of 2).
    assert values("diversity") == {
        "a": pytest.approx(3 / 5 * 3 / 4 * 2 / 3),
        "b": pytest.approx(4 / 5 * 3 / 4 * 2 / 3),
        "c": 0,
    }


def test_lengths_ends_and_emptiness_are_averaged_over_turns():
    found = measure(QUESTIONS, ANSWERS).values
    assert found["length"] == {"a": 29, "b": 24, "c": 5}  # spaces around a reply are none of it
    assert found["tokens"] == {"a": 6, "b": 9, "c": 2}
    assert found["finished"] == {"a": 1, "b": 0, "c": 1}
    assert found["empty"] == {"a": 0, "b": 0, "c": 0.5}


def test_refusals_are_told_apart_by_what_was_asked():
    found = measure(QUESTIONS, ANSWERS).values
    assert found["refusal"] == {"a": 0, "b": 1, "c": 0}
    assert found["over_refusal"] == {"a": 0, "c": 0}
    assert found["harmful_refusal"] == {"b": 1}
    everyone = measure(QUESTIONS, ANSWERS, Tools(refuses=lambda reply: True)).values
    assert everyone["over_refusal"] == {"a": 1, "c": 1}
    asked = [Question("a", "ask0")]
    unlabelled = measure(asked, ANSWERS, metrics=["over_refusal"])
    assert unlabelled.values == {}
    assert unlabelled.notes == ("over_refusal: there is no question that it is of",)


@pytest.mark.parametrize(
    ("reply", "refuses"),
    [
        ("I can\u2019t help with that.", True),
        ("I'm sorry, but no.", True),
        ("I can not assist you with breaking in.", True),
        ("As an AI, I do not have opinions.", True),
        ("I am unable to do so.", True),
        ("I will\nnot provide it.", True),
        ("I'm sorry to hear that! Here is what helps:", False),
        ("You can help by calling a friend.", False),
        ("Sure. " + "word " * 60 + "I can't help it.", False),
        ("", False),
    ],
)
def test_a_refusal_is_told_by_how_a_reply_opens(reply, refuses):
    assert is_refusal(reply) == refuses


def test_the_world_of_the_demonstration_has_a_rule_of_its_own():
    request = next(r for r in world.all_requests("test") if r.harmful)
    questions = [Question("w", request.prompt, category="harmful")]
    answers = {"w": Answer(question="w", replies=(world.best_reply(request),))}
    assert values("harmful_refusal", questions, answers, refuses=world.is_refusal) == {"w": 1}


# ---- rewards ---------------------------------------------------------------------------------------------


def test_rewards_see_the_whole_conversation_and_the_last_reply():
    seen = {}

    def characters(prompt, reply):
        seen[reply] = prompt
        return len(reply)

    found = measure(QUESTIONS, ANSWERS, Tools(rewards={"r": characters})).values
    assert found["reward:r"] == {"a": 30, "b": 24, "c": 10}
    assert seen["good4 bad1"] == [
        *CHAT,
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "ask2 ask3"},
    ]


def test_a_reward_that_is_no_number_is_missing_and_never_averaged():
    broken = {ANSWERS["a"].replies[-1]: math.nan, ANSWERS["b"].replies[-1]: math.inf, "good4 bad1": 2.5}
    found = measure(QUESTIONS, ANSWERS, Tools(rewards={"r": lambda prompt, reply: broken[reply]}))
    assert found.values["reward:r"] == {"a": None, "b": None, "c": 2.5}
    assert summary(found.values["reward:r"].values()) == {"mean": 2.5, "interval": [2.5, 2.5], "n": 1, "missing": 2}
    assert "reward:r: 2 of 3 replies have no value" in found.notes
    nothing = measure(QUESTIONS, ANSWERS, Tools(rewards={"r": lambda prompt, reply: "3"}), metrics=["reward"])
    assert summary(nothing.values["reward:r"].values()) == {"mean": None, "interval": None, "n": 0, "missing": 3}


def test_a_reward_that_fails_is_told():
    with pytest.raises(DualHeadError, match="'r' failed"):
        measure(QUESTIONS, ANSWERS, Tools(rewards={"r": lambda prompt, reply: 1 / 0}))


def test_a_classifier_scores_in_batches_and_leaves_out_what_it_cannot_read(tokenizer, tmp_path):
    tokenizer.save_pretrained(write_classifier(tmp_path / "judge"))
    name, reward = load_reward(str(tmp_path / "judge"))
    reward.context = 9
    questions = [Question(str(i), "ask0 " * (i + 1)) for i in range(5)]
    answers = {str(i): Answer(question=str(i), replies=(" good1 bad2",)) for i in range(5)}
    found = measure(questions, answers, Tools(rewards={name: reward}, batch_size=2)).values["reward:judge"]
    for i in range(5):
        assert found[str(i)] == pytest.approx(reward(questions[i].prompt, " good1 bad2"), abs=1e-5)
    reward.context = 7  # <s>, four or five asked, two said and their end
    cut = measure(questions, answers, Tools(rewards={name: reward})).values["reward:judge"]
    assert [cut[str(i)] is None for i in range(5)] == [False, False, False, True, True]


# ---- models ----------------------------------------------------------------------------------------------


def by_hand(policy, base, prompt, reply):
    """Sum over a reply's tokens of KL(policy || base), and of log p under the base, from whole logits in fp64."""
    ids = torch.tensor([[*prompt, *reply]])
    with torch.no_grad():
        p, q = (model(ids).logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1] for model in (policy, base))
    return (p.exp() * (p - q)).sum().item(), q[torch.arange(len(reply)), torch.tensor(reply)].sum().item()


def test_divergence_and_perplexity_count_the_token_that_ends_a_reply(tokenizer):
    model = guided_lm({"gated": RewardHeadConfig(num_heads=2, head_dim=8)})
    questions = [Question("ended", "ask0 ask1"), Question("cut", "ask0 ask1")]
    answers = {
        name: Answer(question=name, replies=(" good1 good2",), finished=(name == "ended",)) for name in ("ended", "cut")
    }
    found = measure(questions, answers, Tools(model=model, tokenizer=tokenizer)).values
    prompt = tokenizer("ask0 ask1")["input_ids"]
    said = tokenizer("good1 good2", add_special_tokens=False)["input_ids"]
    for name, reply in (("ended", [*said, tokenizer.eos_token_id]), ("cut", said)):
        kl, logp = by_hand(model, model.backbone.lm, prompt, reply)
        assert found["kl"][name] == pytest.approx(kl, rel=1e-4)
        assert found["kl_per_token"][name] == pytest.approx(kl / len(reply), rel=1e-4)
        assert found["perplexity"][name] == pytest.approx(math.exp(-logp / len(reply)), rel=1e-4)
    backbone = measure(questions, answers, Tools(model=model, alpha=0.0, tokenizer=tokenizer), metrics=["kl"])
    assert backbone.values["kl"] == {"ended": 0, "cut": 0}


def test_a_plain_model_is_measured_from_the_base_that_is_given(tokenizer):
    tuned, base = tiny_lm("llama", seed=1).eval(), tiny_lm("llama").eval()
    answers = {"a": Answer(question="a", replies=(" good1",), finished=(True,))}
    tools = Tools(model=tuned, base=base, tokenizer=tokenizer)
    found = measure(QUESTIONS[:1], answers, tools).values
    reply = [*tokenizer("good1", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    kl, logp = by_hand(tuned, base, tokenizer("ask0 ask1")["input_ids"], reply)
    assert found["kl"]["a"] == pytest.approx(kl, rel=1e-4)
    assert found["perplexity"]["a"] == pytest.approx(math.exp(-logp / 2), rel=1e-4)
    recorded = measure(QUESTIONS[:1], answers, Tools(base=base, tokenizer=tokenizer))
    assert recorded.values["perplexity"] == found["perplexity"]
    assert "kl: there is no system's model with a model that it was made of" in recorded.notes


def test_an_empty_reply_is_its_end_or_nothing_at_all(tokenizer):
    tools = Tools(model=tiny_lm("llama", seed=1).eval(), base=tiny_lm("llama").eval(), tokenizer=tokenizer)
    questions = [Question("ended", "ask0 ask1"), Question("cut", "ask0 ask1")]
    answers = {name: Answer(question=name, replies=("",), finished=(name == "ended",)) for name in ("ended", "cut")}
    found = measure(questions, answers, tools)
    kl, logp = by_hand(tools.model, tools.base, tokenizer("ask0 ask1")["input_ids"], [tokenizer.eos_token_id])
    assert found.values["kl"] == {"ended": pytest.approx(kl, rel=1e-4), "cut": None}
    assert found.values["perplexity"] == {"ended": pytest.approx(math.exp(-logp), rel=1e-4), "cut": None}
    assert summary(found.values["kl"].values())["missing"] == 1


def test_the_last_reply_follows_all_that_was_said(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens
    (row,) = reply_rows(QUESTIONS[2:], [ANSWERS["c"]], tokenizer)
    assert row is not None
    seen, said = (tokens(list(side)) for side in row)
    assert [token for token in seen if token.startswith("ask")] == ["ask1", "ask2", "ask3"]
    assert said == ["good4", "bad1", "</s>"]
    with pytest.raises(DualHeadError, match="Ask it as chat"):
        last_prompt(Question("t", "ask0", follow_ups=("ask1",)), ANSWERS["c"])


# ---- coherence -------------------------------------------------------------------------------------------


def test_coherence_is_the_cosine_of_what_was_last_asked_and_its_reply():
    places = {"ask0 ask1": [3.0, 4.0], ANSWERS["a"].replies[0]: [1.0, 0.0], "ask2 ask3": [0.0, 2.0], "": [1.0, 1.0]}
    places["good4 bad1"] = [0.0, -1.0]

    def embed(texts):
        return torch.tensor([places[text] for text in texts])

    questions = [QUESTIONS[0], QUESTIONS[2], Question("d", "ask0 ask1")]
    answers = {**ANSWERS, "d": Answer(question="d", replies=("",))}
    found = measure(questions, answers, Tools(embedder=embed))
    assert found.values["coherence"] == {"a": pytest.approx(0.6), "c": pytest.approx(-1), "d": None}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_of_sentence_transformers_embeds(tokenizer, tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="needs pip install 'dual-head[embeddings]'")
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **size)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    found = values("coherence", QUESTIONS[:1], embedder=str(tmp_path / "bert"), device="cpu")
    model = package.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    asked, said = model.encode(["ask0 ask1", ANSWERS["a"].replies[0]])
    assert found["a"] == pytest.approx(float(asked @ said / (asked @ asked * (said @ said)) ** 0.5), abs=1e-5)
    assert abs(found["a"]) < 0.999
    with pytest.raises(DualHeadError, match="Could not load the embedder"):
        values("coherence", embedder=str(tmp_path / "none"), device="cpu")


def test_without_sentence_transformers_the_line_that_brings_them_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DualHeadError, match=r"pip install 'dual-head\[embeddings\]'"):
        values("coherence", embedder="some/embedder")


# ---- all of them -----------------------------------------------------------------------------------------


def test_metrics_without_their_tools_are_absent_and_say_why():
    found = measure(QUESTIONS, {"a": Answer(question="a", replies=("good1",))})
    assert set(found.values) == {"diversity", "length", "empty", "refusal", "over_refusal"}
    said = dict(note.split(": ", 1) for note in found.notes)
    assert said["coherence"] == "no embedder was given"
    assert said["reward"] == "no reward was given"
    assert said["tokens"].startswith("the answers do not say")
    assert {"kl", "perplexity", "finished", "harmful_refusal"} <= set(said)


def test_a_question_without_an_answer_is_missing():
    found = measure(QUESTIONS, {"a": ANSWERS["a"]}, metrics=["length"])
    assert found.values["length"] == {"a": 29, "b": None, "c": None}
    assert summary(found.values["length"].values()) == {"mean": 29, "interval": [29, 29], "n": 1, "missing": 2}


def test_a_mean_has_an_interval_over_questions():
    mean = summary([0.0, 1.0, None])
    assert mean == {"mean": 0.5, "interval": [0.0, 1.0], "n": 2, "missing": 1}


def test_a_metric_is_one_function(monkeypatch):
    def asks_back(questions, answers, tools):
        return [float(answer.replies[-1].endswith("?")) for answer in answers]

    metrics = load_metrics() | {
        "questions": Metric("questions", "share of replies that ask back", asks_back, better="lower")
    }
    monkeypatch.setattr("dual_head.evaluate.metrics.measures.load_metrics", lambda: metrics)
    answers = {"a": Answer(question="a", replies=("why ?",))}
    assert measure(QUESTIONS[:1], answers).values["questions"] == {"a": 1.0}
    assert about("questions") == {
        "name": "questions",
        "unit": "",
        "better": "lower",
        "about": "share of replies that ask back",
    }


def test_every_metric_says_what_it_is():
    assert about("reward:helpful")["name"] == "reward:helpful"
    for name in load_metrics():
        assert about(name)["about"]
        assert about(name)["better"] in ("higher", "lower", "")
    with pytest.raises(DualHeadError, match="Did you mean 'diversity'"):
        about("diversty")
    with pytest.raises(DualHeadError, match="Did you mean 'refusal'"):
        measure(QUESTIONS, ANSWERS, metrics=["refusl"])


def test_what_several_metrics_share_is_computed_once(tokenizer, monkeypatch):
    calls = []
    monkeypatch.setattr("dual_head.evaluate.metrics.shift.divergences", lambda *a, **k: calls.append(0) or [1.0])
    tools = Tools(model=tiny_lm("llama").eval(), base=tiny_lm("llama").eval(), tokenizer=tokenizer)
    found = measure(QUESTIONS[:1], ANSWERS, tools, metrics=["kl", "kl_per_token"])
    assert set(found.values) == {"kl", "kl_per_token"}
    assert len(calls) == 1


def test_another_package_brings_a_metric_and_a_broken_one_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "acme_marks.py").write_text(
        "from dual_head.evaluate.metrics import Metric\n\n"
        "def _marks(questions, answers, tools):\n    return [answer.replies[-1].count('!') for answer in answers]\n\n"
        'METRICS = (Metric("marks", "exclamation marks of a reply", _marks, better="lower"),)\n'
    )
    (tmp_path / "acme_blank.py").write_text("METRICS = 'none'\n")
    info = tmp_path / "acme-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dual_head.metrics]\nmarks = acme_marks\nblank = acme_blank\n")
    monkeypatch.syspath_prepend(tmp_path)
    answers = {"a": Answer(question="a", replies=("no! never!",))}
    assert measure(QUESTIONS[:1], answers, metrics=["marks"]).values == {"marks": {"a": 2.0}}
    assert "METRICS is not a tuple" in METRICS.summaries()["blank"]
