"""Rules of replies give the numbers that their equations do, and a finite one for every reply."""

import math

import pytest

from dual_head.data import Cut
from dual_head.replies import RULES

PROMPT = "Say something."


def score(rule: str, reply: str) -> float:
    return RULES[rule].score(PROMPT, reply)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reply", ["", " \n ", "Hi", "\u4f60\u597d " * 8, "- a\n- b", "x" * 5000, "!?. " * 50])
def test_every_rule_gives_every_reply_a_finite_number(rule, reply):
    assert math.isfinite(score(rule, reply))
    assert math.isfinite(score(rule, Cut(reply)))


def test_concise_counts_the_words_saved_of_a_hundred():
    assert score("concise", "Paris is the capital of France.") == 94
    assert score("concise", "word " * 100) == score("concise", "word " * 300) == 0


def test_concise_gives_nothing_to_a_cut_reply_or_to_no_answer():
    assert score("concise", Cut("Paris is the capital of France and")) == 0
    assert score("concise", "Yes.") == score("concise", "") == 0


@pytest.mark.parametrize("reply", ["* * * * * *", "\U0001f600 " * 6, "1 2 3 4 5 6"])
def test_a_reply_without_words_is_neither_concise_nor_plain(reply):
    assert score("concise", reply) == 0
    assert score("plain", reply) == -20


def test_plain_gives_nothing_to_scripts_that_its_index_does_not_count():
    assert score("plain", "\u4f60\u597d \u4e16\u754c " * 4) == -20


def test_plain_is_minus_the_coleman_liau_grade():
    text = "The constitutional court met. Its members were deliberating publicly."
    letters, words, sentences = sum(c.isalpha() for c in text), 9, 2
    grade = 0.058 * 100 * letters / words - 0.296 * 100 * sentences / words - 15.8
    assert 10 < grade < 20
    assert score("plain", text) == pytest.approx(-grade)


def test_plain_orders_plain_words_before_learned_ones():
    easy, hard = "The cat sat on the mat and was happy.", "Jurisprudence necessitates constitutional oversight."
    assert score("plain", easy) > score("plain", hard) >= -20 == score("plain", "No.")


def test_positive_has_the_sign_of_the_tone():
    assert score("positive", "What a wonderful, lovely day!") > 0 > score("positive", "This is awful and sad.")
    assert score("positive", "It is a table.") == 0


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("- pears\n- plums", 1),
        ("Buy:\n\n* pears\n* plums\n1. figs", 0.75),
        ("1) pears\n2) plums\nThat is all.\nBye.", 0.5),
        ("- one item only", 0),
        ("-5 degrees\n-7 degrees", 0),
        ("", 0),
    ],
)
def test_bulleted_is_the_share_of_lines_that_are_items(reply, share):
    assert score("bulleted", reply) == share


def test_refuses_reads_the_opening():
    assert score("refuses", "I'm sorry, but I can't help with that.") == 1
    assert score("refuses", "Sure! Here is how.") == 0
