"""What the linter counts is what a reader would count, and a leak is seen where there is one."""

import json
import random

import pytest

from dual_head.classify import Example, TextForm
from dual_head.classify.data.load import load_examples
from dual_head.classify.rationales.lint import agrees, label_words, lint
from dual_head.classify.rationales.probe import NothingToProbe, probe
from dual_head.errors import DualHeadError

LABELS = ("entailment", "not_entailment", "neutral")


def row(rationale, label=0, *, said="a b c d", answer="", name=""):
    return Example(said, label, rationale, answer, id=name)


def counts(*examples, labels=LABELS, **options):
    found = lint(examples, labels, probing=False, **options)
    return {name: check.count for name, check in found.checks.items() if check.count}


def test_words_of_labels_are_found_as_whole_words_in_any_case():
    words = label_words(LABELS)
    assert [bool(words.search(said)) for said in ("An Entailment.", "NOT-entailment", "not entailment", "neutral")]
    assert not any(words.search(said) for said in ("it entails", "neutrality", "entailments", ""))
    # One letter is a word of its own in English; only "(a)" names the choice.
    letters = label_words("ab")
    assert not letters.search("a dog, b.")
    assert letters.search("so (B) it is")


def test_a_rationale_is_held_against_all_labels_and_against_its_own():
    assert counts(
        row("clearly neutral, I say", 2), row("neutral it is not", 0), row("so neutral a thing", (0.5, 0.0, 0.5))
    ) == {"word of a label": 3, "word of its own label": 2}


def test_the_text_of_an_answer_is_looked_for_without_its_letter():
    assert counts(
        row("only a Math problem here", answer="(d) math problem"),
        row("a math problem it is", answer="math problem."),
        row("such math problems", answer="(d) math problem"),
        row("nothing of the kind", answer=""),
    ) == {"text of its answer": 2}


def test_blank_rationales_are_rows_without_one():
    found = lint([row(" \n"), row("why not so")], LABELS, probing=False)
    assert (found.rows, found.rationales) == (2, 1)
    assert found.checks["no rationale"].share == 0.5
    assert found.checks["word of a label"].rows == 1


def test_special_tokens_and_marks_in_angle_brackets_are_found_in_rationales():
    name = "special token or mark in the rationale"
    marked = ["it <REASON> is so", "so it is <ANS>", "that is why </s>", "and so <|im_end|> on"]
    assert counts(*map(row, marked)) == {name: 4}
    assert counts(row("2 < 3 and 5 > 4 it is"), row("a <- b -> c it is"), row("it is [EOT] so")) == {}
    assert counts(row("it is [EOT] so"), special=["[EOT]"]) == {name: 1}


def test_our_prefixes_are_found_in_rationales_and_inputs():
    assert counts(row("first this. Final answer: yes"), row("then that is so", said="x\nReasoning: y")) == {
        "prefix of ours in the rationale": 1,
        "prefix of ours in the input": 1,
    }
    assert counts(row("we say WHY= that"), form=TextForm(reason_prefix="why=")) == {
        "prefix of ours in the rationale": 1
    }


def test_a_rationale_that_is_part_of_the_input_explains_nothing():
    said = "Premise: A dog runs. Hypothesis: It moves."
    assert counts(row("a dog RUNS", said=said), row("a dog ran", said=said), row("it", said=said)) == {
        "copied from the input": 1,
        "fewer than 3 words": 1,
    }


def test_lengths_are_held_against_the_median():
    found = lint([row("w " * n) for n in (2, 4, 4, 20, 21)], LABELS, probing=False)
    assert found.words == {"least": 2.0, "median": 4.0, "most": 21.0}
    assert found.checks["over 5 times the median length"].count == 1
    assert found.checks["fewer than 3 words"].count == 1


def test_one_rationale_in_several_rows_is_counted_with_its_text():
    found = lint([row("It is so."), row("it is so"), row("another one here")], LABELS, probing=False)
    assert found.checks["same rationale in several rows"].count == 2
    assert found.repeated == [(2, "it is so")]


def test_examples_say_where_they_are():
    found = lint([row("fine by me"), row("neutral", name="r7"), row("neutral")], LABELS, probing=False)
    assert found.checks["word of a label"].examples == (("r7", "neutral"), ("row 3", "neutral"))


@pytest.mark.parametrize(
    ("answer", "agreed"), [("Neutral.", True), ("(neutral) x", True), ("neutrality", False), ("no", False)]
)
def test_an_answer_agrees_with_the_name_of_a_label(answer, agreed):
    assert agrees(answer, "neutral") is agreed


def test_agreement_counts_rows_that_have_an_answer_and_a_label():
    rows = [row("x", 2, answer="neutral"), row("x", 0, answer="neutral"), row("x", 0), row("x", None, answer="neutral")]
    found = lint(rows, LABELS, probing=False).agreement
    assert (found["rows"], found["share"]) == (2, 0.5)
    assert found["interval"] == pytest.approx((0.0945, 0.9055), abs=1e-4)  # Wilson, 1 of 2
    assert lint(rows[2:], LABELS, probing=False).agreement is None


def test_shares_count_as_the_label_of_the_largest_even_below_a_half():
    rows = [row("why", (0.4, 0.3, 0.3)), row("because", (0.2, 0.1, 0.7)), row("so an entailment", (0.45, 0.35, 0.2))]
    assert lint(rows, LABELS, probing=False).labels == {"entailment": 2, "not_entailment": 0, "neutral": 1}
    assert counts(*rows)["word of its own label"] == 1


def test_the_report_is_plain_json():
    found = lint([row("neutral it is", 2, answer="neutral"), row("so it is", 0)], LABELS, probing=False)
    said = json.loads(json.dumps(found.as_dict()))
    assert said["checks"]["word of a label"]["share"] == 0.5
    assert said["labels"] == {"entailment": 1, "not_entailment": 0, "neutral": 1}
    assert (said["probe"], said["unprobed"]) == (None, "switched off")


def test_no_example_is_an_error():
    with pytest.raises(DualHeadError, match="no example"):
        lint([], LABELS)


# ---- the leak probe ----------------------------------------------------------------------------------------


def rows_of(count, *, leaking, seed=0):
    """Inputs that tell nothing; rationales of noise, with a word for the label where they leak."""
    rng = random.Random(seed)
    noise = [f"w{i}" for i in range(30)]
    found = []
    for i in range(count):
        label = rng.randrange(2)
        told = ["aye", "nay"][label] if leaking else "hm"
        found.append(Example(f"q{i} {rng.choice(noise)}", label, " ".join([*rng.sample(noise, 4), told])))
    return found


def test_a_leak_is_seen_in_cross_validation_and_on_held_out_rows():
    pytest.importorskip("sklearn")
    for found in (
        probe(rows_of(120, leaking=True)),
        probe(rows_of(120, leaking=True), held_out=rows_of(60, leaking=True, seed=1)),
    ):
        assert found.rationale.value > 0.95
        assert found.input.value < 0.7
        assert found.leak
        assert found.rationale.interval[0] <= found.rationale.value <= found.rationale.interval[1]


def test_rationales_that_tell_nothing_are_no_leak():
    pytest.importorskip("sklearn")
    found = probe(rows_of(120, leaking=False))
    assert not found.leak
    assert found.rationale.value < 0.7
    assert (found.rows, found.fitted, found.how) == (120, 120, "5 folds")


def test_rows_with_one_passage_stay_on_one_side():
    """Every passage has one label: were a passage on both sides, its words would tell it."""
    pytest.importorskip("sklearn")
    rng = random.Random(0)
    rows = [
        Example(f"passage{p} here\nquestion w{rng.randrange(99)}", p % 2, f"v{rng.randrange(99)}")
        for p in range(20)
        for _ in range(6)
    ]
    assert probe(rows).input.value < 0.65


def test_what_cannot_be_probed_says_why():
    pytest.importorskip("sklearn")
    with pytest.raises(NothingToProbe, match="several labels"):
        probe([Example("x", (1.0, 1.0), "y")])
    with pytest.raises(NothingToProbe, match="too few rows"):
        probe([Example("x", 0, "y"), Example("z", 0, "y")] * 10)
    found = lint([row("x", 0), row("y", 0)], LABELS)
    assert (found.probe, found.unprobed) == (None, "too few rows with a rationale and a label, or all of one label")


def test_soft_labels_count_as_their_greatest_share():
    pytest.importorskip("sklearn")
    hard = rows_of(120, leaking=True)
    soft = [Example(e.input, (0.9, 0.1) if e.label == 0 else (0.3, 0.7), e.rationale) for e in hard]
    assert probe(soft) == probe(hard)


# ---- the real files ----------------------------------------------------------------------------------------


def test_on_creak_the_probe_finds_what_the_sources_say(shared_data):
    """The floors in SOURCES.md: 59.7 of the input and 76.7 of the rationale, by another vectoriser than ours."""
    pytest.importorskip("sklearn")
    folder = str(shared_data / "rationales" / "creak")
    train = load_examples(folder, max_rows=5000)
    found = probe(train.examples, held_out=load_examples(folder, split="dev").examples)
    assert found.rationale.value == pytest.approx(0.767, abs=0.03)
    assert found.input.value == pytest.approx(0.597, abs=0.03)
    assert found.majority.value == pytest.approx(0.496, abs=0.01)
    assert found.leak


def test_commonsense_rationales_hold_their_answers_and_agree_as_the_sources_say(shared_data):
    loaded = load_examples(str(shared_data / "rationales" / "cqa_palm"))
    found = lint(loaded.examples, loaded.labels, probing=False)
    assert found.agreement["share"] == pytest.approx(0.761, abs=0.01)
    assert found.words["median"] == 24
    assert found.checks["text of its answer"].share > 0.7
