"""The fourth world of the evidence: people's preferences on a real chat model, whose replies a reward model scores.

The pairs are people's, so nothing in them is the model's own; the judge is trained on prompts that no guide and no
table sees. It knows no guides, no training and no tables.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from evidence_data import FEW_PAIRS, FEW_PROMPTS, PARTS, in_parts, pairs_of, write_pairs
from evidence_features import kept_features
from evidence_work import claimed
from evidence_worlds import Dialogues, Judging

from dual_head.data import Pair
from dual_head.replies.pairs import brief

JUDGED = 1200  # pairs that the judge is trained on
PARTS_OF = {"safer": FEW_PROMPTS, "harmless": FEW_PAIRS}
UPPER = partial(Judging, rate=1e-4, epochs=1, top_layers=10, bf16=True, held_out=400)


@dataclass(frozen=True, kw_only=True)
class People(Dialogues):
    """Pairs of HH-RLHF or of PKU-SafeRLHF below `data`, for a chat model.

    about: helpful, harmless, or safer, which is PKU-SafeRLHF's. pairs_each: pairs that guides are trained on. Every
    prompt asks for one or two sentences, so that most replies end by themselves.
    """

    data: Path
    about: str = "safer"
    name: str = "people"
    batch: int = 8
    pairs_each: int = 400
    judging: Judging = field(default_factory=UPPER)
    judge: str = "a reward model trained on other prompts"

    @property
    def title(self) -> str:
        """The world and the objective."""
        return f"{self.name}-{self.about}"

    @property
    def extent(self) -> str:
        """How many pairs are trained on."""
        return str(self.most or self.pairs_each)

    def part(self, objective: str, part: str) -> Path:
        """The pairs of one objective in one part, in an order of their own; written where they are not there."""
        folder = self.folder / "pairs"
        file = folder / f"{objective}-{part}.jsonl"
        with claimed(folder / f"{objective}.claim", wait=True):
            if not file.is_file():
                parts = in_parts(pairs_of(self.data, objective), PARTS_OF.get(objective, PARTS))
                Random(0).shuffle(parts[part])  # a file has all pairs of a prompt one after the other
                most = {"train": self.pairs_each, "judge": JUDGED}.get(part)
                write_pairs(file, [_briefly(pair) for pair in parts[part][:most]])
        return file

    def features(self, name: str, objective: str) -> Path | None:
        """The backbone's hidden states beside the pairs; see `kept_features`."""
        return kept_features(self, name, objective)


def _briefly(pair: Pair) -> Pair:
    """The pair with a last message that asks for a short answer."""
    *before, last = pair.prompt
    return replace(pair, prompt=(*before, {**last, "content": brief(last["content"])}))
