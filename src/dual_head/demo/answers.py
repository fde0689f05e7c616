"""Answers of a chat model to questions, each at strengths of its own: what a rule counts, and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, set_seed

from dual_head.data import Cut
from dual_head.model.aligned import AlignedModel
from dual_head.model.generate import end_tokens
from dual_head.model.score import reply_scalars
from dual_head.replies import RULES
from dual_head.replies.pairs import conversation
from dual_head.replies.sample import generate_replies, reply_lengths, reply_text

QUESTIONS = (
    "What is the capital of France?",
    "How does a rainbow form?",
    "How can I sleep better?",
    "What should I cook for dinner tonight?",
    "Why is exercise good for me?",
    "How do I learn to play the guitar?",
)
TEMPERATURE, TOP_K = 0.7, 50
LEAST_WORDS = 3
LOOP = 0.5  # share of different trigrams under which a reply runs in a circle
NOISE = 4.0  # nats a token under the backbone, above which it is no language


@dataclass(frozen=True)
class Answer:
    """One reply: kl, sum_t KL(policy || backbone) in nats; loss, nats a token under the backbone."""

    question: str
    strengths: Mapping[str, float]
    text: str
    kl: float
    loss: float

    def score(self, rule: str) -> float:
        """What a rule counts."""
        return RULES[rule].score(conversation(self.question), self.text)

    @property
    def distinct(self) -> float:
        """Share of its trigrams of words that differ; 1 where there are none."""
        words = self.text.split()
        trigrams = list(zip(words, words[1:], words[2:], strict=False))
        return len(set(trigrams)) / len(trigrams) if trigrams else 1.0

    @property
    def collapse(self) -> str | None:
        """How it fell apart, if it did."""
        if len(self.text.split()) < LEAST_WORDS:
            return "says nothing"
        if self.distinct < LOOP:
            return "runs in a circle"
        return "is no language" if self.loss > NOISE else None


def answer(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> list[Answer]:
    """Sample a reply to each (question, {guide: strength}), all in one batch."""
    set_seed(seed)
    alpha = {name: [strengths.get(name, 0.0) for _, strengths in rows] for name in model.guides}
    sequences, mask, new = generate_replies(
        model, tokenizer, [conversation(question) for question, _ in rows], alpha=alpha, do_sample=True,
        temperature=TEMPERATURE, top_k=TOP_K, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    ends = end_tokens(model)
    lengths = reply_lengths(new, ends)
    scalars = reply_scalars(model, sequences, mask, alpha=alpha, lengths=lengths, needs=("kl", "base_logps"))
    losses = -scalars["base_logps"] / lengths.to(scalars["kl"].device)
    texts = [reply_text(row, tokenizer, ends) for row in new.tolist()]
    return [
        Answer(question, strengths, Cut(text.strip()) if isinstance(text, Cut) else text.strip(), kl, loss)
        for (question, strengths), text, kl, loss in zip(
            rows, texts, scalars["kl"].tolist(), losses.tolist(), strict=True
        )
    ]
