"""The best of n samples of another system by a reward, as a system: best_of:N:REWARD:of:PATH@ALPHA."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dual_head.backbone.fingerprint import digest
from dual_head.errors import DualHeadError
from dual_head.evaluate.rewards import Reward, load_reward, require_reward, reward_identity, score_all
from dual_head.evaluate.systems.base import LoadOptions, System
from dual_head.evaluate.systems.identity import parts_of
from dual_head.evaluate.systems.model import next_turn
from dual_head.evaluate.systems.specs import BEST_OF, SystemSpec
from dual_head.evaluate.types import Answer, Decoding, Question

OF = ":of:"


class BestOf(System):
    """Asks a system n times, with the seeds n s, ..., n s + n - 1 of a decoding of seed s, and keeps the best answer.

    The best answer has the largest reward, summed over its turns. Errors: greedy decoding, a system that samples
    nothing, what `load_reward` refuses.
    """

    def __init__(self, spec: SystemSpec, load: LoadOptions):
        self.count, self.reward, path = _parts(spec.path)
        require_reward(self.reward)
        self.sampled = _open(replace(spec, path=path), load)
        self._loaded: tuple[str, Reward] | None = None
        super().__init__(spec, load)

    @classmethod
    def reads(cls, path: str) -> bool:
        """Whether it begins with "best_of:"."""
        return path.startswith(BEST_OF)

    def strengths(self, spec: SystemSpec) -> dict[str, float]:
        """Those of the system that is sampled."""
        del spec
        return dict(self.sampled.alpha)

    @property
    def chats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the system that is sampled."""
        return self.sampled.chats

    @property
    def remote(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the system that is sampled."""
        return self.sampled.remote

    @property
    def at_once(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the system that is sampled."""
        return self.sampled.at_once

    @property
    def context(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the system that is sampled."""
        return self.sampled.context

    @property
    def parts(self) -> list[str]:
        """Those of the system that is sampled, and those of a reward model."""
        reward = parts_of(self.reward) if Path(self.reward).is_dir() else []  # a function is no model
        return [*self.sampled.parts, *reward]

    @property
    def identity(self) -> str:
        """Digest of the system, the number of samples and what the reward is made of."""
        return digest([self.sampled.identity, self.count, reward_identity(self.reward)])

    def check(self, decoding: Decoding) -> None:
        """Errors: greedy decoding, which has one sample."""
        if not decoding.temperature:
            raise DualHeadError(
                f"'{self.name}' keeps the best of {self.count} samples, and greedy decoding has one. Set --temperature."
            )
        self.sampled.check(decoding)

    def why_not(self, question: Question, decoding: Decoding) -> str | None:
        """As of the system that is sampled."""
        return self.sampled.why_not(question, decoding)

    def release(self) -> None:
        """Let go of the model and of the reward."""
        self.sampled.release()
        self._loaded = None

    def answer(self, questions: Sequence[Question], decoding: Decoding) -> list[Answer]:
        """Answer one batch n times, and keep the best answer to each question that has n."""
        seeds = range(self.count * decoding.seed, self.count * (decoding.seed + 1))
        samples: dict[str, list[Answer]] = {question.id: [] for question in questions}
        for seed in seeds:
            for answer in self.sampled.answer(questions, replace(decoding, seed=seed)):
                samples[answer.question].append(answer)
        questions = [question for question in questions if len(samples[question.id]) == self.count]
        candidates = [samples[question.id] for question in questions]
        totals = self._totals(questions, candidates)
        best = [max(range(self.count), key=numbers.__getitem__) for numbers in totals]
        return [answers[j] for answers, j in zip(candidates, best, strict=True)]

    def _totals(self, questions: Sequence[Question], candidates: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """The reward of each candidate [questions][n], summed over its turns."""
        places, turns = [], []
        for i, (question, answers) in enumerate(zip(questions, candidates, strict=True)):
            for j, answer in enumerate(answers):
                prompt = question.prompt
                for turn, reply in enumerate(answer.marked):
                    if turn:
                        prompt = next_turn(prompt, answer.replies[turn - 1], question.asked[turn])
                    places.append((i, j))
                    turns.append((prompt, reply))
        totals = [[0.0] * self.count for _ in questions]
        if self._loaded is None:
            self._loaded = load_reward(self.reward, device=self.load.device or "cpu")
        for (i, j), number in zip(places, score_all(*self._loaded, turns), strict=True):
            totals[i][j] += number
        return totals


def _parts(path: str) -> tuple[int, str, str]:
    """Read best_of:8:rule:concise:of:out/hh as 8, "rule:concise" and "out/hh". Errors: another form."""
    written = re.fullmatch(rf"{BEST_OF}([0-9]+):(.+?){OF}(.+)", path)
    if written is None or int(written[1]) < 2:
        raise DualHeadError(
            f"'{path}' is no best of n. Write best_of:N:REWARD:of:PATH with N from 2, such as "
            "best_of:8:rule:concise:of:out/hh."
        )
    return int(written[1]), written[2], written[3]


def _open(spec: SystemSpec, load: LoadOptions) -> System:
    """The system that is sampled. Errors: a file of answers, which has one answer to a question."""
    from dual_head.evaluate.systems import open_system

    system = open_system(spec, **vars(load))
    if system.stored:
        raise DualHeadError(f"'{spec.name}' samples a system, and '{spec.path}' is a file of answers. Give a model.")
    return system


SYSTEM = BestOf
