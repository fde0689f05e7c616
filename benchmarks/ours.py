"""Our side of every comparison: the library as its users run it, on the reference job.

A training step from kept hidden states, the same with the backbone's forward in it (a first epoch), the bare matrix
products that no implementation can do without, and decoding. It knows no clock and no table.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from job import prompts
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from dual_head import AlignedModel, PairCollator, method
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.methods import Method
from dual_head.train.step import GuidedLoss

LEARNING_RATE = 5e-5
HEADS_CHUNK = 512  # tokens of a bare product at a time: large enough for the caches, small enough for the allocator


class Step:
    """One optimizer step of a method's guide on one batch of pairs, in fp32 or beside a bf16 backbone."""

    def __init__(self, lm: LlamaForCausalLM, rows: Sequence[Mapping[str, list[int]]], chosen: Method, *, bf16: bool):
        lm = copy.deepcopy(lm).to(torch.bfloat16) if bf16 else lm
        self.model = AlignedModel.from_backbone(lm, chosen.guides())
        self.loss = GuidedLoss(self.model, chosen, guide=chosen.name).train()
        self.optimizer = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad), lr=LEARNING_RATE, fused=True
        )
        self.bf16 = bf16
        self.loss.looking = False  # as in training, but for the steps that are logged
        self.batch: dict[str, Any] = dict(PairCollator(0, share_prompt=True)(rows))

    def streamed(self) -> None:
        """Take a step with the backbone's forward in it."""
        self._take(self.batch)

    def cached(self) -> Callable[[], None]:
        """Run the backbone once; give a step from what it said."""
        masks = self.model.branch_masks(self.batch["parts"])
        with torch.no_grad(), self._precision():
            said = self.model.encode(
                self.batch["input_ids"], attention_mask=masks, position_ids=self.batch["position_ids"]
            )
        kept = {**self.batch, "hidden": said.hidden.clone()}
        del kept["input_ids"]
        return lambda: self._take(kept)

    def bare(self) -> None:
        """Compute the step's three products at its scored positions, and nothing else."""
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        lm_head: Any = self.model.get_output_embeddings()
        w, d = lm_head.weight.to(dtype), torch.zeros_like(lm_head.weight, dtype=dtype)
        hidden = torch.ones(len(self.batch["at"]), w.shape[1], dtype=dtype)
        for part in hidden.split(HEADS_CHUNK):
            torch.mm(part, w.T)
            z = torch.mm(part, d.T)
            torch.mm(z.T, part)

    def _take(self, batch: dict[str, Any]) -> None:
        with self._precision():
            loss = self.loss(**batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def rows_of(tokens: int, prompt: int, count: int = 4, *, vocab_size: int) -> list[dict[str, list[int]]]:
    """Pairs of a given length: sequences of `tokens`, of which `prompt` are prompt."""
    reply = tokens - prompt
    ids = prompts(count, prompt + 2 * reply, vocab_size=vocab_size).tolist()
    return [{"prompt_ids": r[:prompt], "chosen_ids": r[prompt:tokens], "rejected_ids": r[tokens:]} for r in ids]


# ---- decoding --------------------------------------------------------------------------------------------


def hidden_guides(lm: LlamaForCausalLM, count: int, rank: int = 64) -> AlignedModel:
    """Several objectives as edits of the hidden state; random, so that they do something."""
    names = [f"objective_{i}" for i in range(count)]
    return AlignedModel.from_backbone(lm, {name: HiddenConfig(rank=rank, init_std=0.01) for name in names})


def full_head(lm: LlamaForCausalLM) -> AlignedModel:
    """A reward head as wide as the vocabulary, with its attention gate."""
    return AlignedModel.from_backbone(lm, method("dual_head").with_options({"guide.init_std": 0.01}).guides())


def genarm(lm: LlamaForCausalLM) -> AlignedModel:
    """A LoRA on the backbone's own weights as reward model."""
    return AlignedModel.from_backbone(lm, {"genarm": LanguageModelConfig()})


def args(lm: LlamaForCausalLM, reward_model: LlamaForSequenceClassification, folder: str, k: int) -> AlignedModel:
    """ARGS with the reward model saved in `folder`."""
    from dual_head.guides.reward_model import RewardModelConfig

    reward_model.save_pretrained(folder)
    return AlignedModel.from_backbone(lm, {"args": RewardModelConfig(model=folder, k=k)})


def generation(model: AlignedModel, ids: Tensor, new: int, *, alpha: Any = 1.0) -> Callable[..., Tensor]:
    """Greedy generation of exactly `new` tokens, as `peers.plain_generate` does it; it may be given a streamer."""
    given = {"attention_mask": torch.ones_like(ids), "alpha": alpha, "max_new_tokens": new, "min_new_tokens": new}
    return lambda streamer=None: model.generate(  # pyright: ignore[reportReturnType]
        ids, do_sample=False, streamer=streamer, **given
    )
