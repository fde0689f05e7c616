"""Rounds on a model's own replies: sample, score by a reward, pair best with worst, train, measure, and again.

    round 1   backbone           -> replies -> reward -> pairs 1       -> guide 1 -> gain and KL on held-out prompts
    round 2   guide 1 at alpha   -> replies -> reward -> pairs 1 and 2 -> guide 2 -> gain and KL
    ...

Each guide is trained anew on the pairs of all rounds so far. Everything that is done is kept in the folder: a run that
was stopped goes on where it was. It knows rewards as numbers and methods as `Method`, and no command line.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, set_seed

from dual_head.console.gauge import Gauge
from dual_head.data import Cut, Prompt
from dual_head.data.types import is_held_out
from dual_head.errors import DualHeadError
from dual_head.evaluate.judges.base import chosen_device
from dual_head.evaluate.rewards import Reward, score_all
from dual_head.files.figures import figures_json
from dual_head.files.lines import add_lines, rows_by_key
from dual_head.files.places import atomic_folder
from dual_head.files.reading import read_json
from dual_head.methods import Method
from dual_head.model.aligned import AlignedModel
from dual_head.model.generate import end_tokens
from dual_head.model.pretrained import load_tokenizer
from dual_head.model.score import reply_scalars
from dual_head.replies.pairs import best_with_worst, conversation
from dual_head.replies.sample import generate_replies, reply_lengths, reply_text, sample_replies
from dual_head.stats import crossed
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.options import RunOptions
from dual_head.train.run import train_guide

LEAST_PAIRS = 4
REPLIES_FILE, PAIRS_FILE, MEASURE_FILE, ROUNDS_FILE = "replies.jsonl", "pairs.jsonl", "measure.json", "rounds.json"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are sampled; rows: replies in a batch."""

    count: int = 4
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    rows: int = 64


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Held-out prompts at alpha: mean reward, gain over the backbone with its 95% interval, KL in nats a reply."""

    reward: float
    gain: float
    interval: tuple[float, float]
    kl: float
    finished: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round did: pairs of all rounds so far, mean reward of what was sampled, and the guide on new prompts."""

    number: int
    pairs: int
    sampled: float
    measured: Measured


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Rounds in one folder; prompts: conversations, or texts of a user; alpha: that of sampling and measuring."""

    folder: Path
    backbone: str
    prompts: Sequence[Prompt]
    reward: tuple[str, Reward]
    method: Method
    training: Callable[[str], GuideTrainingArguments]
    sampling: Sampling
    alpha: float = 1.0
    held_out: float = 0.2
    seed: int = 0

    def run(self, count: int) -> Iterator[Round]:
        """Yield what each round did, as soon as it is done. Errors: a reward that tells too few replies apart."""
        training, held_out = [], []
        for prompt in self.prompts:
            # Sampling, rewards and pairs all see the same conversation.
            turns = list(conversation(prompt) if isinstance(prompt, str) else prompt)
            (held_out if is_held_out(turns, self.held_out, self.seed) else training).append(turns)
        if not training or not held_out:
            raise DualHeadError(
                f"Of {len(self.prompts)} prompts, {len(training)} are to train on and {len(held_out)} to measure. Give "
                "more prompts, or another --held_out."
            )
        base = self._replies(self.folder / "base", None, held_out)
        for number in range(1, count + 1):
            place = self.folder / f"round-{number}"
            before = self.folder / f"round-{number - 1}" / "guide" if number > 1 else None
            scores = self._sample(place, before, training, number)
            pairs = self._pairs(number)
            self._train(place, pairs)
            measured = self._replies(place, place / "guide", held_out)
            gain, interval = crossed(
                np.subtract([row["reward"] for row in measured], [row["reward"] for row in base])[None]
            )
            figures = Measured(
                reward=fmean(row["reward"] for row in measured), gain=gain, interval=interval,
                kl=fmean(row["kl"] for row in measured), finished=fmean(row["finished"] for row in measured),
            )  # fmt: skip
            done = Round(number=number, pairs=len(pairs), sampled=fmean(scores), measured=figures)
            with atomic_folder(self.folder) as staging:
                known = _known(self.folder / ROUNDS_FILE)  # of a run with more rounds, the later ones stay
                figures_of_all = [*known[: number - 1], asdict(done), *known[number:]]
                (staging / ROUNDS_FILE).write_text(figures_json(figures_of_all), encoding="utf-8")
            yield done

    # ---- one round ----------------------------------------------------------------------------------------

    def _model(self, guide: Path | None, tokenizer: PreTrainedTokenizerBase) -> AlignedModel:
        """What replies, where training runs: on an accelerator if there is one."""
        model: Any = (
            AlignedModel.from_backbone(self.backbone, {}, tokenizer=tokenizer)
            if guide is None
            else AlignedModel.from_pretrained(str(guide))
        )
        return model.eval().to(chosen_device("auto"))

    def _sample(self, place: Path, guide: Path | None, prompts: Sequence[Prompt], number: int) -> list[float]:
        """Append replies to the prompts of training and their rewards, what is not there; every reward."""
        file, (name, reward) = place / REPLIES_FILE, self.reward
        rows = _sampled(file)
        if len(rows) < len(prompts):
            tokenizer: Any = load_tokenizer(self.backbone)
            model = self._model(guide, tokenizer)
            options = {**asdict(self.sampling), "seed": self.seed + number, "alpha": self.alpha if guide else None}
            with Gauge(f"round {number}, prompts sampled", len(prompts), done=len(rows)) as gauge:
                for i, texts in sample_replies(model, tokenizer, prompts, done=rows, **options):
                    scores = score_all(name, reward, [(prompts[i], text) for text in texts])
                    cut = [isinstance(text, Cut) for text in texts]
                    rows[i] = {"key": str(i), "prompt": prompts[i], "replies": texts, "cut": cut, "scores": scores}
                    add_lines(file, [json.dumps(rows[i], ensure_ascii=False)])
                    gauge.advance()
        return [score for row in rows.values() for score in row["scores"]]

    def _pairs(self, number: int) -> list[dict[str, Any]]:
        """Best with worst of every prompt of every round so far."""
        pairs = []
        for n in range(1, number + 1):
            for row in _sampled(self.folder / f"round-{n}" / REPLIES_FILE).values():
                replies = [Cut(text) if cut else text for text, cut in zip(row["replies"], row["cut"], strict=True)]
                if pair := best_with_worst(row["prompt"], replies, row["scores"]):
                    pairs.append(pair)
        if len(pairs) < LEAST_PAIRS:
            raise DualHeadError(
                f"The reward '{self.reward[0]}' gave {len(pairs)} pairs: the replies to the other prompts all score "
                "the same. Give more prompts, more --replies, or another --reward."
            )
        return pairs

    def _train(self, place: Path, pairs: Sequence[dict[str, Any]]) -> None:
        guide = place / "guide"
        if (guide / "report.json").is_file():
            return
        with atomic_folder(place) as staging:
            lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
            (staging / PAIRS_FILE).write_text(lines, encoding="utf-8")
        data = {"dataset_name": str(place / PAIRS_FILE), "held_out": 0.05}
        train_guide(self.method, RunOptions(model_name_or_path=self.backbone, **data), self.training(str(guide)))

    @torch.no_grad()
    def _replies(self, place: Path, guide: Path | None, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """One reply to every held-out prompt at alpha, with its reward and divergence; the same seed in every round."""
        file, (name, reward) = place / MEASURE_FILE, self.reward
        if known := _known(file):
            return known
        tokenizer: Any = load_tokenizer(self.backbone)
        model, rows = self._model(guide, tokenizer), []
        alpha, ends = self.alpha if guide else None, end_tokens(model)
        set_seed(self.seed % 2**32)  # numpy takes no more
        drawn = {"do_sample": True, "temperature": self.sampling.temperature, "top_k": self.sampling.top_k}
        for start in range(0, len(prompts), self.sampling.rows):
            part = prompts[start : start + self.sampling.rows]
            sequences, mask, new = generate_replies(
                model, tokenizer, part, alpha=alpha, max_new_tokens=self.sampling.max_new_tokens, **drawn
            )
            lengths = reply_lengths(new, ends)
            kl = reply_scalars(model, sequences, mask, alpha=alpha, lengths=lengths)["kl"].tolist()
            texts = [reply_text(row, tokenizer, ends) for row in new.tolist()]
            scores = score_all(name, reward, list(zip(part, texts, strict=True)))
            for text, score, divergence in zip(texts, scores, kl, strict=True):
                finished = not isinstance(text, Cut)
                rows.append({"reply": text, "reward": score, "kl": max(divergence, 0.0), "finished": finished})
        with atomic_folder(place) as staging:
            (staging / MEASURE_FILE).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return rows


def _sampled(file: Path) -> dict[int, dict[str, Any]]:
    """What was sampled, by the number of its prompt."""
    return {int(key): row for key, row in rows_by_key(file, dict).items()}


def _known(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON; none where it is not there."""
    return read_json(file, "Delete it: it is measured again.", kind=list) if file.is_file() else []
