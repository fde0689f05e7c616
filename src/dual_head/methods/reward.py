"""The reward model of ARGS: Bradley-Terry, trained by TRL's RewardTrainer, acting while decoding.

    L = -log sigmoid(r(x, y+) - r(x, y-))
    z_t(v) = z_base,t(v) + alpha r(x, y_<t, v)  for the k most likely v under z_base, all others ruled out

Source: Khanov et al. 2024, "ARGS: Alignment as Reward-Guided Search": k = 10, and alpha is its w (1 in the paper,
1.5 in its published run). By default a LoRA and a score head on the backbone, whose weights it shares in memory.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dual_head.errors import DualHeadError
from dual_head.guides.reward_model import RewardModelConfig
from dual_head.methods.base import Method
from dual_head.methods.peer import ChangedRows, PeerOptions, Row, Trl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RewardOptions(PeerOptions):
    """-log sigmoid(r(x, y+) - r(x, y-)), which has no options."""

    def trl(self, lm: Any, tokenizer: Any, reference: Any) -> Trl:
        """RewardTrainer, with the metrics of our own preferences. Errors: padding that is EOS."""
        del lm, reference
        from trl.trainer.reward_config import RewardConfig
        from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

        pad = tokenizer.pad_token_id
        if pad == tokenizer.eos_token_id:
            raise DualHeadError(
                "A reward model reads its score at the last token that is not padding, so with EOS as padding it "
                "never sees EOS. Set tokenizer.pad_token to another token of the vocabulary that ends no reply."
            )
        collate = ChangedRows(_whole, DataCollatorForPreference(pad_token_id=pad))
        return Trl(RewardTrainer, RewardConfig, {"max_length": None}, collate=collate, mixins=(_pair_metrics(),))

    def prepare(self, tokenizer: Any) -> None:
        """Pad with another token than EOS: the score is read at the last token that is not padding."""
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token


def _whole(row: Row) -> dict[str, list[int]]:
    return {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}


def _pair_metrics() -> type:
    import torch.nn.functional as F

    from dual_head.methods.held_out import HeldOutTrainer

    class PairMetrics(HeldOutTrainer):
        """TRL's reward trainer with the metrics of our own preferences, for every held-out pair."""

        def pair_metrics(self, outputs: Any) -> "dict[str, Tensor]":
            """Those of -log sigmoid(r(x, y+) - r(x, y-)), named as those of guides; logits [2B, 1], chosen first."""
            chosen, rejected = outputs.logits[:, 0].float().chunk(2)
            margin = chosen - rejected
            return {
                "preference": -F.logsigmoid(margin),
                "accuracy": (margin > 0).float(),
                "margin": margin,
                "reward_chosen": chosen,
                "reward_rejected": rejected,
            }

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            """Evaluate, less TRL's averages of batches by the same names."""
            output = super().evaluation_loop(*args, **kwargs)
            metrics: Any = self._metrics  # type: ignore[attr-defined] - TRL's, which its log adds
            for name in self.held_out:
                metrics["eval"].pop(name, None)
            return output

    return PairMetrics


METHOD = Method(
    name="reward",
    guide=RewardModelConfig(tune="lora", k=10),
    peer=RewardOptions(),
    training={"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "num_train_epochs": 1.0},
    symbols={"k": "guide.k", "rank": "guide.rank"},
)
