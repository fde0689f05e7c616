"""ARGS: a reward model scores the backbone's most likely next tokens while decoding.

    delta(v) = r(x, y_<t, v)  for the k most likely v under z_base;  every other v is ruled out

A step of decoding is one forward of the reward model over the tokens that were chosen and their k continuations,
of all rows: they share the prefix's keys and values, and a mask lets each see the prefix and itself. Decode-only:
there is nothing here that a loss over finished replies could train; the reward model itself is trained by
`dual-head train reward`. This file knows nothing of losses or of other guides.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DynamicCache, PreTrainedModel

from dual_head.backbone.cache import CacheSlot, PrefixCache, SpecialLayers
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.features import Features
from dual_head.backbone.load import load_config
from dual_head.backbone.views import shared_view
from dual_head.errors import DualHeadError, require
from dual_head.files.places import require_unaltered
from dual_head.files.reading import reading
from dual_head.guides.base import Parameters, States
from dual_head.guides.layers import require_positive
from dual_head.guides.second_model import (
    SecondModel,
    SecondModelConfig,
    count_layers,
    count_parameters,
    injecting,
    lora_config,
)
from dual_head.ops.masks import additive

BATCH_TOKENS = 4096  # continuations scored in one forward
OWN_PLACE = (
    "'dual-head train reward --guide.tune full' trains one that model.guide('reward').tuned.save_pretrained(FOLDER) "
    "writes as such."
)


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(SecondModelConfig):
    """Options of the ARGS guide, besides those of `SecondModelConfig`; its weight w is alpha.

    model: a sequence classifier with one label; None for the backbone with a score head of its own; k: how
    many candidates are scored.
    """

    tune: Literal["lora", "full", "none"] = "none"
    k: int = 10

    def __post_init__(self):
        super().__post_init__()
        require_positive(k=self.k)
        if self.model is not None and self.tune != "none":
            raise DualHeadError("A reward model in a folder or on the hub is used as it is: leave out tune.")

    def moved_from(self, backbone: str | None) -> "RewardModelConfig":
        """Stay the model that is named; one that is a part of its backbone cannot move without it."""
        if self.model is not None:
            return self
        raise DualHeadError(
            f"This reward model is a part of its backbone ({backbone}). Only one in a folder or on the hub can move. "
            f"{OWN_PLACE}"
        )


class RewardModel(SecondModel):
    """delta(v) = r(x, y_<t, v) for the k candidates. Source: ARGS (Khanov et al. 2024), k = 10, w = 1."""

    Config = RewardModelConfig
    config: RewardModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trainable = False

    def attach(self, backbone: Backbone) -> None:
        """Load the reward model, or put a score head on a view of the backbone's decoder."""
        config, full = self.config, self.config.tune == "full"
        model = None if config.model is None else _load(config.model, backbone)
        if (backbone.special_layers if model is None else SpecialLayers.of(model.config)).recurrent:
            raise DualHeadError(
                "A reward model reads candidates ahead of the sequence and forgets them, and some of these layers keep a "
                "state that cannot forget. Choose a model whose layers are all of attention."
            )
        if model is not None:
            self._parts = (
                model.base_model,
                model.score,
            )  # not submodules: they are borrowed
            self._hold(model, moves=True)
            return
        lm = copy.deepcopy(backbone.lm).float().requires_grad_(True) if full else shared_view(backbone.lm)
        decoder: Any = lm.base_model
        if config.tune == "lora":
            peft = require("peft", "peft")
            adapter = lora_config(config, decoder)
            with injecting(decoder):
                peft.inject_adapter_in_model(adapter, decoder)
        score = nn.Linear(self.shape.hidden_size, 1, bias=False)
        nn.init.normal_(score.weight, std=0.02)
        self._parts = (decoder, score)
        self._hold(nn.ModuleDict({"decoder": decoder}), moves=full)
        self._hold(nn.ModuleDict({"score": score}), moves=False)  # it moves with the guide's weights

    @property
    def _decoder(self) -> Any:
        return self._parts[0]

    @property
    def _score(self) -> Any:
        return self._parts[1]

    @property
    def tuned(self) -> PreTrainedModel:
        """The reward model as a trainer takes it: transformers' classifier, sharing every tensor with this guide.

        Errors: an architecture without a sequence classifier.
        """
        config = copy.deepcopy(self._decoder.config)
        config.num_labels = 1
        # The score is read at the last token that is not padding, whose id is None here, as a backbone's may be EOS.
        config.get_text_config().pad_token_id = None
        try:
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            raise DualHeadError(
                f"transformers has no sequence classifier for {config.model_type}. Train the reward model on another."
            ) from error
        setattr(model, model.base_model_prefix, self._decoder)
        model.score = self._score
        return model.eval()

    @property
    def cache_layers(self) -> int:
        return self.shape.num_layers if self.config.model is None else count_layers(self.config.model)

    @property
    def reads_base(self) -> bool:
        return True

    def executed(self, stored: int, backbone: Parameters) -> int:
        """Its decoder and its score head; the candidates come from logits that the policy needs anyway."""
        if self.config.model is not None:
            return count_parameters(self.config.model, backbone, AutoModelForSequenceClassification).whole
        shared = 0 if self.config.tune == "full" else backbone.decoder
        return shared + stored

    @property
    def why_not_paged(self) -> str:
        """Candidates are read ahead of the sequence and forgotten, which pages have no place for."""
        return "a reward model reads candidates ahead of every sequence, each with keys of its own"

    @property
    def extra_forwards(self) -> float:
        """One pass, which reads the token that was chosen and its k continuations."""
        return 1

    # ---- sequence part ---------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Score the candidates of every position in `keep`: ids and rewards [B, T, k]."""
        if features.input_ids is None or features.logits is None:
            raise DualHeadError("A reward-model guide reads token ids, so inputs_embeds are not enough for it.")
        ids, layers = features.input_ids, self._decoder.config.get_text_config(decoder=True).num_hidden_layers
        prefix = DynamicCache() if cache is None else cache.view(layers)
        past = prefix.get_seq_length() + 0  # a static cache hands out its counter itself, and moves it on
        scored = torch.arange(ids.shape[1], device=ids.device)[features.keep]
        # A step of decoding reads its token and what may follow it at once. A prompt goes first, by itself: its
        # attention is plain causal, for which there are kernels that need no mask.
        new = 1 if ids.shape[1] == len(scored) == 1 else 0
        if not new:
            positions = {} if features.positions is None else {"position_ids": features.positions}
            self._decoder(
                input_ids=ids, attention_mask=features.padding, past_key_values=prefix, use_cache=True, **positions
            )
        # A backbone may have more logits than there are tokens; the reward model can only read its own.
        readable = min(self.shape.vocab_size, self._decoder.get_input_embeddings().weight.shape[0])
        k = min(self.config.k, readable)
        # Positions that lie apart would take three times as long.
        base = features.logits(features.hidden[:, features.keep].contiguous())  # [B, n, V]
        candidates = base[..., :readable].topk(k).indices
        step = max(1, BATCH_TOKENS // (len(ids) * k))
        rewards = [
            self._rewards(
                candidates[:, i : i + step], scored[i : i + step], new, PrefixCache(prefix, new), past, features
            )
            for i in range(0, len(scored), step)
        ]
        rewards = torch.cat(rewards, 1) if rewards else candidates.float()  # of no position
        shape = (*ids.shape, k)
        states = {
            "candidates": candidates.new_zeros(shape).index_copy(1, scored, candidates),
            "rewards": torch.zeros(shape, device=ids.device).index_copy(1, scored, rewards),
        }
        return {**states, "base_logits": base} if new else states  # of a whole prompt they would be kept for nothing

    def _rewards(
        self, candidates: Tensor, scored: Tensor, new: int, cache: PrefixCache, past: Any, features: Features
    ) -> Tensor:
        """r(x, y_<t, v) of candidates [B, n, k] that follow the positions `scored` [n]: [B, n, k] in fp32.

        The first `new` tokens are read along, before the candidates.

            a step, new = 1           of a prompt, new = 0
            tokens     [ y | v v v ]  [ v v v | v v v ]        k = 3 candidates v
            anchors    [ 5 | 5 5 5 ]  [ 4 4 4 | 5 5 5 ]        the position of each token, or of the one it follows
            ahead      [ 0 | 1 1 1 ]  [ 1 1 1 | 1 1 1 ]        how far behind its anchor it stands
        """
        assert features.input_ids is not None
        rows, n, k = candidates.shape
        ahead = F.pad(torch.ones_like(candidates[0].flatten()), (new, 0))
        anchors = torch.cat([scored[:new], scored.repeat_interleave(k)])
        positions = (anchors + past).expand(rows, -1) if features.positions is None else features.positions[:, anchors]
        output = self._decoder(
            input_ids=torch.cat([features.input_ids[:, :new], candidates.flatten(1)], 1),
            attention_mask=self._mask(anchors + past, ahead, new, cache, features.padding, rows),
            position_ids=positions + ahead,
            past_key_values=cache,
            use_cache=True,
        )
        hidden = output.last_hidden_state[:, new:].to(self._score.weight.dtype)
        return self._score(hidden).float().view(rows, n, k)

    def _mask(
        self, columns: Tensor, ahead: Tensor, new: int, cache: PrefixCache, padding: Tensor | None, rows: int
    ) -> Any:
        """What each may look at: the prefix up to its column [m], and, if it follows it, itself; [B, 1, m, K + n k].

        keys          [prefix 0 1 2 | v v v]         v: candidates, of the tokens 2, 2 and 1
        v after 2      x      x x x   x
        v after 1      x      x x         . . x      itself, and no other candidate
        """
        width, device = cache.width(), columns.device
        keys = torch.arange(width, device=device)
        prefix = (keys <= columns[:, None])[None].expand(rows, -1, -1)
        if padding is not None:
            prefix = prefix & F.pad(padding.bool(), (0, width - padding.shape[1]))[:, None]
        itself = torch.eye(len(columns), dtype=torch.bool, device=device)[:, new:].expand(rows, -1, -1)
        config = self._decoder.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None)
        full = self._additive(torch.cat([prefix, itself], -1))
        if window is None:
            return full
        window_prefix = prefix & (keys > (columns + ahead)[:, None] - window)
        sliding = self._additive(torch.cat([window_prefix, itself], -1))
        # Models that mix both kinds of layers take a mask of each.
        layer_types = getattr(config, "layer_types", None)
        return {"full_attention": full, "sliding_attention": sliding} if layer_types else sliding

    def _additive(self, allowed: Tensor) -> Tensor:
        return additive(allowed, self._decoder.dtype)[:, None]

    # ---- vocabulary part -------------------------------------------------------------------------------

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """r at the candidates, 0 elsewhere: [n, V]."""
        del base
        rewards, ids = states["rewards"], states["candidates"]
        return rewards.new_zeros(*ids.shape[:-1], self.shape.vocab_size).scatter(-1, ids, rewards)

    def candidates(self, states: States, base: Tensor) -> Tensor:
        """Only the k candidates are allowed: bool [n, V]."""
        ids = states["candidates"]
        return torch.zeros(base.shape, dtype=torch.bool, device=base.device).scatter(-1, ids, True)


def _load(name: str, backbone: Backbone) -> Any:
    with reading(
        f"Could not load a reward model from '{name}'", f"Give a sequence classifier with one label. {OWN_PLACE}"
    ):
        require_unaltered(Path(name))
        load_config(name)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=backbone.lm.dtype, output_loading_info=True
        )
    model, info = loaded
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise DualHeadError(f"'{name}' is not a reward model: it needs one label and a score head on a decoder.")
    if info["missing_keys"]:
        keys = sorted(info["missing_keys"])
        raise DualHeadError(
            f"'{name}' is not a whole reward model: it lacks {len(keys)} weights, the first is '{keys[0]}'. {OWN_PLACE}"
        )
    return model.requires_grad_(False).eval().to(backbone.output_device)


GUIDE = RewardModel
