"""A local language model as judge: likelihoods of verdicts, computed by hand beside it."""

import json
import math

import pytest
import torch
from files import WORDS, word_tokenizer, write_backbone
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dual_head import DualHeadError
from dual_head.evaluate import Answer, Comparison, Question
from dual_head.evaluate.judges import load_judge
from dual_head.evaluate.judges.lm import Reading, _told_apart, _verdict
from dual_head.evaluate.judges.prompts.reading import PATTERNS
from dual_head.evaluate.judges.verdicts import judge_pairs

QUESTION = Question("q", "ask0")
VERDICTS = ["[[A]]", "[[B]]", "[[C]]", *(f"[[{n}]]" for n in range(1, 11)), "Rating:", "m", "M", "Human:", "Assistant:"]
PAIRWISE = {"name": "p", "kind": "pairwise", "verdict": "[[A]]", "template": "{question} {answer_a} or {answer_b} ?"}
SINGLE = {"name": "s", "kind": "single", "verdict": "[[rating]]", "template": "{question} {answer}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama whose tokenizer has a word for each verdict, and templates short enough for it."""
    folder = tmp_path_factory.mktemp("lm_judge")
    write_backbone(folder / "model", words=[*WORDS, *VERDICTS], spread=0.5)
    (folder / "short").mkdir()
    for own in (PAIRWISE, SINGLE):
        (folder / "short" / f"{own['name']}.json").write_text(json.dumps(own))
    return folder


def judge_of(folder, template="short", **options):
    return load_judge(f"lm:{folder / 'model'}", template=str(folder / template), device="cpu", **options)


def by_hand(folder, text, choices):
    """Share of each choice as the next word of a text, read by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    return torch.softmax(logits[tokenizer.convert_tokens_to_ids(choices)].double(), 0).tolist()


def test_a_preference_is_the_likelihood_of_each_letter_in_one_forward(folder):
    text = "\n\nHuman: ask0 good1 good2 or bad1 ?\n\nAssistant:"
    a, b, c = by_hand(folder, text, ["[[A]]", "[[B]]", "[[C]]"])
    ((_, verdict),) = judge_of(folder).compare([Comparison(QUESTION, ("good1 good2",), ("bad1",))])
    expected = 0.5 if c > max(a, b) else a + c / 2
    assert verdict.value == pytest.approx(expected, abs=1e-5)
    assert verdict.said == f"A {a:.3f} B {b:.3f} C {c:.3f}"


def test_a_grade_is_the_expected_rating(folder):
    text = "\n\nHuman: ask0 good1\n\nAssistant: Rating:"
    shares = by_hand(folder, text, [f"[[{n}]]" for n in range(1, 11)])
    ((_, verdict),) = judge_of(folder).grade([(QUESTION, ("good1",))])
    assert verdict.value == pytest.approx(sum(n * share for n, share in enumerate(shares, 1)), abs=1e-4)
    assert 1 < verdict.value < 10


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_the_verdicts_of_one_at_a_time(folder, side):
    replies = [" ".join(f"good{i % 8}" for i in range(n)) for n in (1, 9, 4, 2, 17, 3)]
    comparisons = [Comparison(QUESTION, (reply,), ("bad0 bad1",)) for reply in replies]
    batched, single = judge_of(folder, batch_size=4), judge_of(folder, batch_size=1)
    batched._tokenizer.padding_side = side
    together, alone = dict(batched.compare(comparisons)), dict(single.compare(comparisons))
    values = [alone[i].value for i in range(len(replies))]
    assert [together[i].value for i in range(len(replies))] == pytest.approx(values, abs=1e-5)
    assert len({round(value, 4) for value in values}) > 2


def test_a_judge_leaves_its_model_without_gradients(folder):
    judge = judge_of(folder)
    list(judge.grade([(QUESTION, ("good1",))]))
    assert not any(parameter.requires_grad for parameter in judge._model.parameters())


def test_verdicts_that_begin_alike_are_told_apart_token_by_token(tmp_path):
    characters = sorted(set("Humanskitgoder0123456789[]: \n.?"))
    tokens = ["<pad>", "</s>", "<unk>", "A", *characters]
    tokens = list(dict.fromkeys(tokens))
    write_backbone(tmp_path / "model", words=tokens, spread=0.5)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "s.json").write_text(json.dumps(SINGLE))
    judge = load_judge(f"lm:{tmp_path / 'model'}", template=str(tmp_path / "s.json"), device="cpu")
    ((_, verdict),) = judge.grade([(Question("q", "a"), ("go",))])
    text = "\n\nHuman: a go\n\nAssistant: Rating: [["
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()

    def next_logps(words):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(words)["input_ids"]])).logits[0, -1]
        return dict(zip(tokens, logits.double().log_softmax(0).tolist(), strict=True))

    first, after_one = next_logps(text), next_logps(text + "1")
    weights = {n: math.exp(first[str(n)]) for n in range(2, 10)}
    weights[1] = math.exp(first["1"] + after_one["]"])
    weights[10] = math.exp(first["1"] + after_one["0"])
    expected = sum(n * weight for n, weight in weights.items()) / sum(weights.values())
    assert verdict.value == pytest.approx(expected, abs=1e-4)


def test_only_the_tokens_that_tell_choices_apart_are_read():
    tails = {"1]]": (1, 9), "10]]": (1, 0, 9), "2]]": (2, 9)}
    assert [_told_apart(choice, tails) for choice in tails] == [(1, 9), (1, 0), (2,)]
    reading = Reading((5,), {choice: _told_apart(choice, tails) for choice in tails})
    assert reading.rows == [(5,), (5, 1)]
    with pytest.raises(DualHeadError, match="does not tell 'm' from the other verdicts"):
        _told_apart("m", {"m": (3,), "M": (3,)})


def test_a_tokenizer_without_the_verdicts_is_refused(folder, tmp_path):
    write_backbone(tmp_path / "model")  # every letter is <unk> to it
    with pytest.raises(DualHeadError, match="does not tell 'A]]'"):
        list(
            load_judge(f"lm:{tmp_path / 'model'}", template=str(folder / "short"), device="cpu").compare(
                [Comparison(QUESTION, ("good1",), ("bad1",))]
            )
        )


def test_a_tie_that_is_likeliest_is_a_tie():
    pattern = PATTERNS["[[A]]"]
    logs = {"A]]": math.log(0.3), "B]]": math.log(0.1), "C]]": math.log(0.6)}
    assert _verdict(pattern, logs).value == 0.5
    logs["C]]"] = math.log(0.2)
    assert _verdict(pattern, logs).value == pytest.approx((0.3 + 0.1) / 0.6)
    broken = _verdict(pattern, {**logs, "A]]": math.nan})
    assert (broken.value, broken.flaw) == (None, "the model's likelihoods are not finite")


def test_a_chat_template_is_used_and_one_without_system_messages_gets_them_in_the_request(folder, tmp_path):
    judge = judge_of(folder)
    seen = []
    judge._tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}time "
    )
    tokenize = judge._tokenizer.__class__.__call__

    class Spying(judge._tokenizer.__class__):
        def __call__(self, texts, **options):
            seen.extend(texts)
            return tokenize(self, texts, **options)

    judge._tokenizer.__class__ = Spying
    messages = [{"role": "system", "content": "once"}, {"role": "user", "content": "upon"}]
    reading = judge._reading(messages, PATTERNS["[[A]]"])
    assert "<s> once\n\nupon time [[A]]" in seen
    ids = word_tokenizer([*WORDS, *VERDICTS])("once upon time")["input_ids"]
    assert list(reading.common) == ids  # the template's own <s>, and no second one


def test_what_is_too_long_for_the_model_is_a_flaw(folder):
    fits, longer = (Comparison(QUESTION, ("good1 " * n,), ("bad1",)) for n in (50, 60))
    verdicts = dict(judge_of(folder).compare([fits, longer]))
    assert verdicts[0].value is not None
    assert (verdicts[1].value, verdicts[1].flaw) == (None, "too long: 67 tokens, the model reads 64")


def test_two_scores_are_no_choice_between_a_few(folder):
    judge = load_judge(f"lm:{folder / 'model'}", template="scores-v1", device="cpu")
    with pytest.raises(DualHeadError, match="Take template mt-bench or alpaca"):
        list(judge.compare([Comparison(QUESTION, ("good1",), ("bad1",))]))


def test_both_orders_are_asked_and_averaged(folder):
    questions = [Question(f"q{i}", f"ask{i}") for i in range(3)]
    a = {q.id: Answer(question=q.id, replies=("good1 good2",)) for q in questions}
    b = {q.id: Answer(question=q.id, replies=("bad1",)) for q in questions}
    for outcome in judge_pairs(judge_of(folder), questions, a, b):
        assert len(outcome.orders) == 2
        assert outcome.preference == pytest.approx(sum(outcome.orders) / 2)


def test_other_words_or_weights_are_another_judge(folder, tmp_path):
    write_backbone(tmp_path / "model", words=[*WORDS, *VERDICTS], spread=0.5, seed=3)
    other = load_judge(f"lm:{tmp_path / 'model'}", template=str(folder / "short"), device="cpu")
    own = judge_of(folder).identity
    assert own == judge_of(folder, batch_size=2).identity
    assert len({own, other.identity, judge_of(folder, "short/p.json").identity}) == 3


def test_a_model_without_a_tokenizer_is_refused(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder / "model").save_pretrained(tmp_path / "bare")
    with pytest.raises(DualHeadError, match="has no tokenizer"):
        load_judge(f"lm:{tmp_path / 'bare'}")
    with pytest.raises(DualHeadError, match="Could not load the backbone"):
        load_judge(f"lm:{tmp_path}")
