"""The worlds of the evidence run on small backbones: what is asked, which pairs there are, and who scores the replies.

demo: the demonstration world, whose exact reward is known. hh: people's dialogues on a small chat backbone, scored by
reward models that were trained on other prompts. Neither knows guides, training or tables. The worlds of a real chat
model are in real_world.py and people_world.py.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evidence_data import part_of, write_text

from dual_head import load_pairs
from dual_head.demo import TOY_BACKBONE, world
from dual_head.errors import DualHeadError
from dual_head.evaluate import Decoding
from dual_head.model.generate import Prompt, prompt_ids
from dual_head.model.pretrained import load_tokenizer

DEV_SHARE = 0.25  # of the demonstration world's test requests
EXACT = partial(Decoding, max_new_tokens=56, temperature=1.0)  # the policy itself: longer than any reply of the world
SPOKEN = partial(Decoding, max_new_tokens=96, temperature=0.7)  # so small a model wanders off at 1
Rewards = dict[str, list[float]]


@dataclass(frozen=True)
class Asked:
    """One prompt; of: the objective that it is about."""

    id: str
    prompt: Prompt
    of: str


@dataclass(frozen=True, kw_only=True)
class World:
    """What is asked, which pairs there are and who scores; mixed: objectives whose guides are mixed.

    about: the objective that methods are trained for and compared by; most: pairs read of a file; bf16: training under
    autocast; dtype: of what answers, "auto" for that of its files.
    """

    folder: Path
    backbone: str
    name: str
    about: str
    mixed: tuple[str, ...] = ("helpful", "harmless")
    decoding: Decoding
    batch: int
    max_length: int
    most: int | None = None
    bf16: bool = False
    dtype: str = "auto"
    judge: str

    @property
    def title(self) -> str:
        """What its tables and figures are called by."""
        return self.name

    @property
    def extent(self) -> str:
        """How many pairs are trained on, for names of folders."""
        return str(self.most or "all")

    @property
    def shared(self) -> Path:
        """Where the backbone's replies are."""
        return self.folder

    def overall(self, rewards: dict[str, float]) -> float:
        """Of the rewards of one reply, that which methods are compared by."""
        return rewards["overall"]

    def meant(self, objective: str) -> str:
        """The objective that stands for "overall" here, or the one itself."""
        return self.about if objective == "overall" else objective

    def pairs(self, objective: str, seed: int) -> Path:
        """A file of preference pairs of one objective for training."""
        raise NotImplementedError

    def features(self, name: str, objective: str) -> Path | None:  # noqa: ARG002 - of a small backbone
        """Where the backbone's hidden states beside the pairs of an objective are; None where none are kept."""
        return None

    def asked(self, part: str, count: int) -> list[Asked]:
        """Prompts of a part, "dev" or "test", each once."""
        raise NotImplementedError

    def score(self, asked: Sequence[Asked], rows: Sequence[dict[str, Any]], objectives: Sequence[str]) -> Rewards:
        """Scores of each reply by objective."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Demo(World):
    """The demonstration world: replies are scored by rule, and every objective has pairs without end."""

    name: str = "demo"
    about: str = "overall"
    backbone: str = str(TOY_BACKBONE)
    decoding: Decoding = field(default_factory=EXACT)
    pairs_each: int = 4000
    batch: int = 32
    max_length: int = 128
    judge: str = "the world's exact reward"

    def pairs(self, objective: str, seed: int) -> Path:
        """A file of preference pairs of one objective, drawn anew for every seed."""
        file = self.folder / "pairs" / f"{objective}-{self.pairs_each}-{seed}.jsonl"
        if not file.is_file():
            rows = world.preference_rows(self.pairs_each, seed=seed, objective=objective)
            write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        return file

    def asked(self, part: str, count: int) -> list[Asked]:
        """Requests that no pair is about, each once; those of "dev" are never among those of "test"."""
        shares = {"dev": DEV_SHARE, "test": 1 - DEV_SHARE}
        requests = [r for r in world.all_requests("test") if part_of(r.text, shares) == part]
        random.Random(0).shuffle(requests)
        require_enough(len(requests), count, part)
        return [Asked(r.text, r.prompt, "harmless" if r.harmful else "helpful") for r in requests[:count]]

    def score(self, asked: Sequence[Asked], rows: Sequence[dict[str, Any]], objectives: Sequence[str]) -> Rewards:
        """Exact points of each reply by objective, which cost nothing: all of them."""
        del objectives
        rewards = [
            world.reward(world.parse_request(str(one.prompt)), row["reply"])
            for one, row in zip(asked, rows, strict=True)
        ]
        return {objective: [reward.of(objective) for reward in rewards] for objective in world.OBJECTIVES}


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How a judge is trained; top_layers: the uppermost that are, None for all weights.

    bf16: trained and scoring under autocast. held_out: pairs of a part that it is measured on, None for all.
    """

    rate: float = 3e-4
    epochs: int = 2
    top_layers: int | None = None
    bf16: bool = False
    held_out: int | None = None


@dataclass(frozen=True, kw_only=True)
class Dialogues(World):
    """HH-RLHF's dialogues on a chat backbone made by chat_backbone.py, in whose folder the pairs lie, by part.

    about: the objective that methods are compared by: helpful, harmless, or "overall" for both.
    """

    about: str = "overall"
    name: str = "hh"
    decoding: Decoding = field(default_factory=SPOKEN)
    batch: int = 16
    max_length: int = 256
    bf16: bool = True  # as its backbone was trained
    longest_prompt: int = 160  # tokens; what a dialogue leaves for its reply
    judging: Judging = Judging()
    judge: str = "reward models trained on other prompts"

    def pairs(self, objective: str, seed: int) -> Path:  # noqa: ARG002 - people wrote them once
        """The pairs of one objective for training."""
        return self.part(self.meant(objective), "train")

    def part(self, objective: str, part: str) -> Path:
        """The pairs of one objective in one part."""
        file = Path(self.backbone) / f"pairs-{objective}-{part}.jsonl"
        if not file.is_file():
            raise DualHeadError(f"There is no file '{file}'. Make --chat with experiments/chat_backbone.py.")
        return file

    def asked(self, part: str, count: int) -> list[Asked]:
        """Prompts of a part, each once; half of them of either objective where both are compared by."""
        tokenizer = load_tokenizer(self.backbone)
        questions = []
        shares = {"helpful": count - count // 2, "harmless": count // 2}
        for objective, wanted in (shares if self.about == "overall" else {self.about: count}).items():
            prompts = {json.dumps(p.prompt): p.prompt for p in load_pairs(str(self.part(objective, part)))[0]}
            chosen = [
                Asked(f"{objective}-{i}", prompt, objective)
                for i, prompt in enumerate(prompts.values())
                if len(prompt_ids([prompt], tokenizer)[0]) <= self.longest_prompt
            ]
            random.Random(0).shuffle(chosen)
            require_enough(len(chosen), wanted, f"{part} ({objective})")
            questions += chosen[:wanted]
        return questions

    def score(self, asked: Sequence[Asked], rows: Sequence[dict[str, Any]], objectives: Sequence[str]) -> Rewards:
        """Scores of each reply by the reward model of each objective."""
        from evidence_judge import judged

        prompts = [one.prompt for one in asked]
        return {name: judged(self, self.meant(name), prompts, rows) for name in objectives}


def require_enough(there: int, wanted: int, part: str) -> None:
    """Refuse to ask more prompts than a part has."""
    if there < wanted:
        raise DualHeadError(f"The part {part} has {there} prompts, and {wanted} are wanted. Ask fewer with --prompts.")
