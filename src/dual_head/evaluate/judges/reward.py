"""A reward model as judge: guides, or a sequence classifier with one label, score each reply."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dual_head.backbone.fingerprint import digest, sketch, tokenizer_fingerprint
from dual_head.errors import DualHeadError
from dual_head.evaluate.judges.base import WINDOW, ScoreJudge, Shown, batches_by_length, chosen_device
from dual_head.evaluate.rewards import ReplyIds, load_reward_model
from dual_head.options import option, require_bounds


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """batch_size: replies scored in one forward; device: "auto" is the accelerator where there is one."""

    batch_size: int = option(16, least=1)
    device: str = "auto"

    def __post_init__(self) -> None:
        require_bounds(self, prefix="")


class RewardJudge(ScoreJudge):
    """Scores prompt + reply as one text; what is longer than the model reads is a flaw of that verdict.

    where: a folder of guides, or of a sequence classifier with one label and its tokenizer.
    """

    form = "reward:PATH (guides, or a sequence classifier with one label)"
    Options = RewardOptions

    def __init__(self, where: str, options: RewardOptions | None = None):
        self.options = options or RewardOptions()
        if not (where and Path(where).is_dir()):
            raise DualHeadError(f"There is no folder '{where}'. Give the folder of a reward model: {self.form}.")
        self._model = load_reward_model(where, device=chosen_device(self.options.device))
        self.name = Path(where).resolve().name
        model, tokenizer = self._model.model, self._model.tokenizer
        weights = {name: sketch(x) for name, x in model.named_parameters() if x.is_floating_point()}
        reads = [tokenizer_fingerprint(tokenizer), tokenizer.chat_template, str(model.dtype)]
        self.identity = f"reward:{digest([json.loads(model.config.to_json_string()), weights, reads], 16)}"

    def scores(self, shown: Sequence[Shown]) -> Iterator[tuple[int, float | str]]:
        """Score replies, batched with others of about their length."""
        size, context = self.options.batch_size, self._model.context
        for start in range(0, len(shown), size * WINDOW):
            rows: dict[int, ReplyIds] = {}
            for index, (prompt, reply) in enumerate(shown[start : start + size * WINDOW], start):
                ids = self._model.encode(prompt, reply)
                if 0 < len(ids) <= context:
                    rows[index] = ids
                else:
                    yield index, f"too long: {len(ids)} tokens, the model reads {context}" if ids else "no tokens"
            for batch in batches_by_length({index: len(ids) for index, ids in rows.items()}, size):
                yield from zip(batch, self._model.score([rows[index] for index in batch]), strict=True)


JUDGE = RewardJudge
