"""The other sides of every comparison, written as plainly as a good engineer would from the papers.

A Dual-Head step over whole padded sequences, TRL's DPO as its users run it, transformers' own generation, and the
decoding loops of GenARM and ARGS. Plain torch, transformers, TRL and PEFT: nothing here knows our library, and nothing
is slowed down: each model keeps a cache, logits are asked for the last position only, reference log-probs may be
computed before. It knows no clock and no data set.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

BETA, ENTROPY_WEIGHT = 0.05, 0.01
HEADS, WIDTH = 8, 48

# ---- training: Dual-Head, naive --------------------------------------------------------------------------


class NaiveHeads(nn.Module):
    """A reward head that starts as the lm_head, and a causal attention gate: z = (1 - g) z_LM + g z_RM."""

    def __init__(self, lm_head: nn.Linear, heads: int = HEADS, width: int = WIDTH):
        super().__init__()
        hidden = lm_head.in_features
        self.heads, self.width = heads, width
        self.reward = nn.Linear(hidden, lm_head.out_features, bias=False)
        self.reward.weight.data.copy_(lm_head.weight.data)
        self.qkv = nn.Linear(hidden, 3 * heads * width, bias=False)
        self.output = nn.Linear(heads * width, 1)

    def gate(self, hidden: Tensor) -> Tensor:
        """g [B, T] of hidden [B, T, d]; padding is on the right, where causal attention never looks."""
        q, k, v = self.qkv(hidden).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2)).squeeze(-1).sigmoid()


@dataclass(frozen=True)
class NaiveLosses:
    """The four terms of the Dual-Head objective, each averaged over pairs; kl is measured only."""

    next_token: Tensor  # nats per token of the chosen response
    preference: Tensor
    gate_entropy: Tensor  # nats per response token
    kl: Tensor  # KL(policy || backbone), nats per response token

    @property
    def total(self) -> Tensor:
        """L = L_LM + L_pref - 0.01 H(g)."""
        return self.next_token + self.preference - ENTROPY_WEIGHT * self.gate_entropy


def naive_dual_head_losses(lm: PreTrainedModel, heads: NaiveHeads, batch: Mapping[str, Tensor]) -> NaiveLosses:
    """All terms from whole [2 pairs, T, V] tensors: input_ids, attention_mask, response_mask, all chosen first."""
    ids, mask = batch["input_ids"], batch["response_mask"][:, 1:].float()
    with torch.no_grad():
        output = lm(ids, attention_mask=batch["attention_mask"], output_hidden_states=True, use_cache=False)
    hidden, z_base = output.hidden_states[-1], output.logits
    g, z_reward = heads.gate(hidden), heads.reward(hidden)
    z = (1 - g[..., None]) * z_base + g[..., None] * z_reward
    policy = F.log_softmax(z, dim=-1, dtype=torch.float32)  # [B, T, V]
    reward = F.log_softmax(z_reward, dim=-1, dtype=torch.float32)
    base = F.log_softmax(z_base, dim=-1, dtype=torch.float32)
    with torch.no_grad():
        kl = (policy.exp() * (policy - base)).sum(-1)[:, :-1]

    labels = ids[:, 1:, None]
    policy_logps, reward_logps = (x[:, :-1].gather(-1, labels).squeeze(-1) * mask for x in (policy, reward))
    tokens = mask.sum(-1)
    chosen, rejected = tokens.chunk(2)
    reward_chosen, reward_rejected = reward_logps.sum(-1).chunk(2)
    entropy = _binary_entropy(g[:, :-1]) * mask
    return NaiveLosses(
        next_token=-(policy_logps.sum(-1).chunk(2)[0] / chosen).mean(),
        preference=-F.logsigmoid(BETA * (reward_chosen - reward_rejected)).mean(),
        gate_entropy=(sum(entropy.sum(-1).chunk(2)) / (chosen + rejected)).mean(),
        kl=((kl * mask).sum(-1) / tokens).mean(),
    )


def naive_dual_head_step(
    lm: PreTrainedModel, heads: NaiveHeads, batch: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> float:
    """Forward, backward and the optimizer's step; the loss."""
    loss = naive_dual_head_losses(lm, heads, batch).total
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _binary_entropy(g: Tensor) -> Tensor:
    return -(g * g.log() + (1 - g) * (1 - g).log())


# ---- training: DPO by TRL --------------------------------------------------------------------------------


def trl_dpo(
    lm: PreTrainedModel,
    rows: Sequence[Mapping[str, list[int]]],
    *,
    lora: bool,
    precomputed: bool,
    checkpointing: bool = False,
    learning_rate: float = 1e-6,
) -> Callable[[], float]:
    """TRL's DPOTrainer on a copy of `lm`: a function that takes one optimizer step on all `rows` and gives the loss.

    lora: rank 16 on PEFT's default modules, else every weight; precomputed: reference log-probs are computed here,
    once, as TRL caches them; checkpointing: recompute activations, which is TRL's default and slower. fp32.
    """
    lm = copy.deepcopy(lm).requires_grad_(True)
    settings = {
        "per_device_train_batch_size": len(rows),
        "learning_rate": learning_rate,
        "precompute_ref_log_probs": precomputed,
        "gradient_checkpointing": checkpointing,
        "use_cpu": lm.device.type == "cpu",
    }
    with _quiet_peft():
        trainer = _dpo_trainer(lm, rows, lora=lora, settings=settings)
    trainer.current_gradient_accumulation_steps = 1  # train() would set it, but takes more than one step at a time
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    optimizer = trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, optimizer)

    def step() -> float:
        with _quiet_peft():
            loss = trainer.training_step(model, batch)
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _dpo_trainer(lm: PreTrainedModel, rows: Sequence[Mapping[str, list[int]]], *, lora: bool, settings: Any) -> Any:
    from datasets import Dataset  # TRL is optional, and slow to import
    from peft import LoraConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class OnIds(DPOTrainer):
        """For rows that are tokens already: TRL would tokenise text here, and report its use."""

        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

        def _send_telemetry(self) -> None:
            pass

    # Only its padding token is read.
    vocab = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocab, pad_token="<pad>", eos_token="</s>")
    needs_reference = not (lora or settings["precompute_ref_log_probs"])
    quiet = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    with tempfile.TemporaryDirectory() as folder:  # it makes one, and nothing is saved
        return OnIds(
            model=lm,
            # TRL would load the reference by the model's name, and random weights have none.
            ref_model=copy.deepcopy(lm).requires_grad_(False) if needs_reference else None,
            args=DPOConfig(folder, max_length=None, bf16=False, **quiet, **settings),
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, task_type="CAUSAL_LM") if lora else None,
        )


def _quiet_peft() -> warnings.catch_warnings:
    """Drop the warning that PEFT and TRL use a name which transformers has since renamed."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)


# ---- generation ------------------------------------------------------------------------------------------


def plain_generate(lm: PreTrainedModel, ids: Tensor, new: int, streamer: BaseStreamer | None = None) -> Tensor:
    """transformers' greedy generation of exactly `new` tokens after ids [B, T]; gives [B, T + new].

    streamer: is put the prompt and then every token, here and in the loops below.
    """
    length = {"max_new_tokens": new, "min_new_tokens": new}
    return lm.generate(  # pyright: ignore[reportCallIssue]
        ids, attention_mask=torch.ones_like(ids), do_sample=False, streamer=streamer, **length
    )


@torch.inference_mode()
def genarm_two_models(
    base: PreTrainedModel,
    arm: PreTrainedModel,
    ids: Tensor,
    new: int,
    alpha: float,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """GenARM, greedy: z = z_base + alpha log softmax(z_arm), each model with a cache of its own; [B, T + new]."""
    base_cache, arm_cache = DynamicCache(config=base.config), DynamicCache(config=arm.config)
    token = ids
    _put(streamer, ids)
    for _ in range(new):
        z = _next_logits(base, token, base_cache) + alpha * _next_logits(arm, token, arm_cache).log_softmax(-1)
        token = z.argmax(-1, keepdim=True)
        _put(streamer, token)
        ids = torch.cat([ids, token], dim=1)
    return ids


@torch.inference_mode()
def args_k_forwards(
    base: PreTrainedModel,
    reward_model: PreTrainedModel,
    ids: Tensor,
    new: int,
    k: int,
    w: float,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """ARGS, greedy: argmax of z_base(v) + w r(x, v) over the top k of the base; [B, T + new].

    The reward model (one label) reads the prefix once, and every candidate by one token on a cache of its own.
    """
    base_cache, reward_cache = DynamicCache(config=base.config), DynamicCache(config=reward_model.config)
    reward_model.base_model(ids, past_key_values=reward_cache, use_cache=True)
    token, rows = ids, torch.arange(len(ids))
    _put(streamer, ids)
    for _ in range(new):
        z, candidates = _next_logits(base, token, base_cache).topk(k)  # [B, k]
        caches = [_copied(reward_cache) for _ in range(k)]
        scores = [_score(reward_model, candidates[:, j, None], caches[j]) for j in range(k)]
        best = (z + w * torch.stack(scores, dim=1)).argmax(-1)
        token = candidates[rows, best, None]
        _put(streamer, token)
        reward_cache = _row_by_row(caches, best.tolist())
        ids = torch.cat([ids, token], dim=1)
    return ids


def _put(streamer: BaseStreamer | None, tokens: Tensor) -> None:
    if streamer is not None:
        streamer.put(tokens)


def _next_logits(lm: PreTrainedModel, tokens: Tensor, cache: Cache) -> Tensor:
    return lm(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()


def _score(reward_model: Any, token: Tensor, cache: Cache) -> Tensor:
    hidden = reward_model.base_model(token, past_key_values=cache, use_cache=True).last_hidden_state
    return reward_model.score(hidden[:, -1]).squeeze(-1).float()  # [B]


def _copied(cache: DynamicCache) -> DynamicCache:
    """A cache that grows by itself; its keys are shared, as a dynamic layer grows into a new tensor anyway."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _row_by_row(caches: Sequence[DynamicCache], chosen: Sequence[int]) -> DynamicCache:
    """The cache whose row i is row i of caches[chosen[i]]."""
    if len(set(chosen)) == 1:
        return caches[chosen[0]]
    merged = _copied(caches[0])
    layer: Any
    for number, layer in enumerate(merged.layers):
        of_rows: list[Any] = [caches[j].layers[number] for j in chosen]
        layer.keys = torch.cat([own.keys[i, None] for i, own in enumerate(of_rows)])
        layer.values = torch.cat([own.values[i, None] for i, own in enumerate(of_rows)])
    return merged
