"""A local causal LM as judge: it is made to begin its verdict, and the likelihoods of what may follow are compared.

One forward a batch and no generation, so that a verdict says how sure the model is and can always be read:

    [system user ... | Rating: [[ | 7 ]]]      read | opening, read too | one choice of several, compared by log p
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dual_head.backbone.decoder import Backbone
from dual_head.backbone.fingerprint import digest, tokenizer_fingerprint
from dual_head.backbone.load import context_length, load_backbone
from dual_head.data import Cut, Message
from dual_head.data.conversation import Written, write
from dual_head.errors import DualHeadError
from dual_head.evaluate.judges.base import WINDOW, batches_by_length, chosen_device
from dual_head.evaluate.judges.prompted import Item, PromptedJudge
from dual_head.evaluate.judges.prompts import Pattern
from dual_head.evaluate.types import Question, Verdict
from dual_head.files.reading import reading
from dual_head.options import option, require_bounds

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LanguageModelOptions:
    """template: see `load_family`; batch_size: verdicts in one forward; device: "auto" is the accelerator, if any."""

    template: str = "mt-bench"
    batch_size: int = option(8, least=1)
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        require_bounds(self, prefix="")


@dataclass(frozen=True)
class Reading:
    """One verdict as token ids: `common` is read by the model, then one of `choices` follows."""

    common: Ids
    choices: dict[str, Ids]

    @property
    def rows(self) -> list[Ids]:
        """Every text after which a next token is needed: one, unless choices begin alike, as 1]] and 10]] may."""
        return sorted({self.common + tail[:n] for tail in self.choices.values() for n in range(len(tail))})


class LanguageModelJudge(PromptedJudge):
    """Compares the likelihoods of the verdicts that a template allows.

        value = sum_c p(c) value(c),   p(c) = softmax over the choices c of log pi(c | prompt, opening)

    So a grade is the expected rating, and a preference p(A) + p(C) / 2; where the tie C is the likeliest, it is a
    tie. where: a causal LM, a folder or a name on the hub. What is longer than its context is a flaw of that verdict.
    Errors: a model or tokenizer that cannot be loaded, templates whose verdict is no choice between a few.
    """

    form = "lm:PATH (a causal language model)"
    Options = LanguageModelOptions

    def __init__(self, where: str, options: LanguageModelOptions | None = None):
        self.options = options = options or LanguageModelOptions()
        if not where:
            raise DualHeadError(f"The judge lm needs a model: {self.form}.")
        super().__init__(options.template)
        lm = load_backbone(where, dtype=options.dtype)
        self._model = Backbone(lm).to(chosen_device(options.device))
        self._tokenizer: PreTrainedTokenizerBase = _tokenizer_of(where)
        self._context = context_length(lm.config) or math.inf
        self.name = where.rstrip("/").rsplit("/", 1)[-1]
        reads = [tokenizer_fingerprint(self._tokenizer), self._tokenizer.chat_template, str(lm.dtype)]
        self.identity = f"lm:{digest([self._model.fingerprint().as_dict(), reads, self.family.identity], 16)}"

    def require(self, questions: Sequence[Question], kinds: Sequence[str]) -> None:
        """Refuse questions that no template is for, and templates whose verdict is no choice between a few."""
        self._require_choices(template.pattern for template in self.family.needed(questions, kinds))

    def _require_choices(self, patterns: Iterable[Pattern]) -> None:
        if any(not pattern.choices for pattern in patterns):
            raise DualHeadError(
                f"A local model's verdict is a choice between a few; '{self.family.name}' asks for two scores. Take "
                "template mt-bench or alpaca."
            )

    def verdicts(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """Read what the model would name, a batch in one forward."""
        self._require_choices(pattern for _, pattern in items)
        size = self.options.batch_size
        for start in range(0, len(items), size * WINDOW):
            readings: dict[int, Reading] = {}
            for index, (messages, pattern) in enumerate(items[start : start + size * WINDOW], start):
                reading = self._reading(messages, pattern)
                longest = max(map(len, reading.rows))
                if longest <= self._context:
                    readings[index] = reading
                else:
                    yield index, Verdict(None, flaw=f"too long: {longest} tokens, the model reads {self._context}")
            for batch in batches_by_length({i: len(reading.common) for i, reading in readings.items()}, size):
                batch_likelihoods = self._likelihoods([readings[index] for index in batch])
                for index, likelihoods in zip(batch, batch_likelihoods, strict=True):
                    yield index, _verdict(items[index][1], likelihoods)

    def _reading(self, messages: list[Message], pattern: Pattern) -> Reading:
        """Tokenise each choice behind the whole prompt: where tokens end may depend on what follows."""
        replies = [Cut(pattern.opening + choice) for choice in pattern.choices]
        conversation = _conversation(messages, replies, self._tokenizer)
        rows = [conversation.prompt + ids for ids in conversation.replies]
        columns = zip(*rows, strict=False)
        shared = next((n for n, column in enumerate(columns) if len(set(column)) > 1), min(map(len, rows)))
        tails = {choice: tuple(row[shared:]) for choice, row in zip(pattern.choices, rows, strict=True)}
        return Reading(tuple(rows[0][:shared]), {choice: _told_apart(choice, tails) for choice in tails})

    @torch.no_grad()
    def _likelihoods(self, readings: Sequence[Reading]) -> list[dict[str, float]]:
        """Log-likelihood of each choice of each reading: {choice: log pi}, in one forward."""
        rows = sorted({row for reading in readings for row in reading.rows})
        longest, fill = max(map(len, rows)), self._tokenizer.pad_token_id or 0
        # Padded on the right, whatever the tokenizer says: causal attention never sees it, and no position moves.
        ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        device = self._model.output_device
        hidden = self._model(ids.to(device), attention_mask=mask.to(device))[0].last_hidden_state
        last = hidden[torch.arange(len(rows)), mask.sum(1) - 1]  # [R, d]
        logps = self._model.logits(last).float().log_softmax(-1).cpu()  # [R, V]
        at = {row: number for number, row in enumerate(rows)}
        return [
            {
                choice: sum(logps[at[reading.common + tail[:n]], token].item() for n, token in enumerate(tail))
                for choice, tail in reading.choices.items()
            }
            for reading in readings
        ]


def _tokenizer_of(where: str) -> PreTrainedTokenizerBase:
    with reading(f"'{where}' has no tokenizer, and a judge reads text", "Save it beside the model."):
        return AutoTokenizer.from_pretrained(where)


def _conversation(messages: list[Message], replies: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Written:
    """The conversation and its replies as the model reads them; a template may take no system message."""
    merged = [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
    forms = write([(messages, replies), (merged, replies)], tokenizer)
    for form in forms:
        if isinstance(form, Written):
            return form
    raise DualHeadError(f"The judge's chat template refuses its prompt ({forms[0]}). Take another model or template.")


def _told_apart(choice: str, tails: dict[str, Ids]) -> Ids:
    """The first tokens of a choice that no other choice begins with."""
    ids, rivals = tails[choice], [tail for name, tail in tails.items() if name != choice]
    for n in range(1, len(ids) + 1):
        if all(tail[:n] != ids[:n] for tail in rivals):
            return ids[:n]
    raise DualHeadError(
        f"The judge's tokenizer does not tell {choice!r} from the other verdicts. Take another model or template."
    )


def _verdict(pattern: Pattern, likelihoods: dict[str, float]) -> Verdict:
    """Expected value over the choices. Source: soft preferences as AlpacaEval 2 reads them from log-probabilities."""
    highest = max(likelihoods.values())
    weights = {choice: math.exp(logp - highest) for choice, logp in likelihoods.items()}
    total = sum(weights.values())
    if not math.isfinite(total):
        return Verdict(None, flaw="the model's likelihoods are not finite")
    shares = {choice: weight / total for choice, weight in weights.items()}
    text = " ".join(f"{choice.rstrip(']')} {share:.3f}" for choice, share in shares.items())
    likeliest = max(shares, key=lambda choice: shares[choice])
    if pattern.kind == "pairwise" and pattern.choices[likeliest] == 0.5:
        return Verdict(0.5, said=text)
    return Verdict(sum(pattern.choices[choice] * share for choice, share in shares.items()), said=text)


JUDGE = LanguageModelJudge
