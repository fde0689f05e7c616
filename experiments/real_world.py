"""The third world of the evidence: people's questions to a real chat model, whose replies a rule scores.

The pairs are the model's replies, best against worst by the rule, so the training signal and the judge are the same
and neither is noise. It knows no guides, no training and no tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from evidence_features import kept_features
from evidence_worlds import Asked, Rewards, World, require_enough
from real_replies import NEW_TOKENS, instructions, kind_of, openings

from dual_head.data import Cut
from dual_head.errors import DualHeadError
from dual_head.evaluate import Decoding
from dual_head.model.generate import prompt_ids
from dual_head.model.pretrained import load_tokenizer
from dual_head.replies import RULES
from dual_head.replies.pairs import brief, conversation

LONGEST_PROMPT = 160  # tokens


@dataclass(frozen=True, kw_only=True)
class Questions(World):
    """A real chat model's replies by one rule; `replies`: the folder that real_replies.py wrote.

    about: the rule that methods are trained for and compared by. mixed: rules whose guides are mixed. briefly:
    questions ask for one or two sentences, as those of training do.
    """

    replies: Path
    data: Path
    about: str = "concise"
    briefly: bool = True
    mixed: tuple[str, ...] = ("concise", "positive")
    name: str = "real"
    decoding: Decoding = field(default_factory=partial(Decoding, max_new_tokens=NEW_TOKENS, temperature=0.7))
    batch: int = 8
    max_length: int = 256
    judge: str = "a rule of the reply's words"

    @property
    def title(self) -> str:
        """The world and the rule."""
        return f"{self.name}-{self.about}"

    @property
    def shared(self) -> Path:
        """One place for the folders of all rules: the backbone's replies are the same to each."""
        return self.folder.parent / f"base-{kind_of(self.about)}"

    def shortened(self, new_tokens: int | None) -> "Questions":
        """The same with replies of at most so many tokens; None: as they are."""
        return self if new_tokens is None else replace(self, decoding=replace(self.decoding, max_new_tokens=new_tokens))

    def overall(self, rewards: dict[str, float]) -> float:
        """The rule's own score, whichever rule the reply was first scored for."""
        return rewards[self.about]

    def pairs(self, objective: str, seed: int) -> Path:  # noqa: ARG002 - sampled once
        """The pairs of one objective for training."""
        file = self.replies / f"pairs-{self.meant(objective)}.jsonl"
        if not file.is_file():
            raise DualHeadError(f"There is no file '{file}'. Make --replies with experiments/real_replies.py.")
        return file

    def features(self, name: str, objective: str) -> Path | None:
        """The backbone's hidden states beside the pairs; see `kept_features`."""
        return kept_features(self, name, objective)

    def asked(self, part: str, count: int) -> list[Asked]:
        """Short questions of a part, "dev" or "test", each once: instructions, or harmful openings for refusals."""
        tokenizer = load_tokenizer(self.backbone)
        kind = kind_of(self.about)
        texts = openings(self.data, kind, part) if kind == "harmless" else instructions(self.data, part)
        questions = [
            Asked(f"{kind}-{i}", conversation(text), self.about)
            for i, text in enumerate(map(brief, texts) if self.briefly else texts)
            if _length(text, tokenizer) <= LONGEST_PROMPT
        ]
        require_enough(len(questions), count, part)
        return questions[:count]

    def score(self, asked: Sequence[Asked], rows: Sequence[dict[str, Any]], objectives: Sequence[str]) -> Rewards:
        """Every rule's score of each reply, which costs nothing, and that of `about` as "overall"."""
        del objectives
        replies = [row["reply"] if row["finished"] else Cut(row["reply"]) for row in rows]
        scores = {
            name: [rule.score(one.prompt, reply) for one, reply in zip(asked, replies, strict=True)]
            for name, rule in RULES.items()
        }
        return {"overall": scores[self.about], **scores}


def _length(text: str, tokenizer: Any) -> int:
    return len(prompt_ids([conversation(text)], tokenizer)[0])
