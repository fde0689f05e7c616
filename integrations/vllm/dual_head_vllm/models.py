"""vLLM's models with guides beside them, and nothing of vLLM changed.

    forward           rows [h | alpha | gate logits, fused layers, ...]     fp32 bits in columns of h's dtype
    compute_logits    z = lm_head(h + sum_k w_k hidden_delta_k) + sum_k w_k logit_delta_k

A runner of vLLM chooses among rows and never looks into them, so each row carries its request's strengths and what its
guides made of the sequence; nothing has to be matched up afterwards. The guides are the library's own modules, and so
is their sum. Only `CausalGate` is another one, see `gate`.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.transformers import TransformersForCausalLM

from dual_head.backbone.checkpoint import load_strictly
from dual_head.backbone.decoder import BackboneShape
from dual_head.backbone.features import Features
from dual_head.backbone.fingerprint import Fingerprint, sketch
from dual_head.errors import DualHeadError
from dual_head.guides import States
from dual_head.model.guide_set import GuideSet
from dual_head.model.policy import distributions
from dual_head.serve.vllm import OTHER_PRECISION, ServedGuides, build_all
from dual_head_vllm import require_tested_vllm
from dual_head_vllm.control import AlphaControl, of_tokens
from dual_head_vllm.gate import PagedGate
from dual_head_vllm.strengths import guides_of

GUIDES_PREFIX = "dual_head_guides."
PLAIN = (torch.float32, torch.float16, torch.bfloat16)  # weights that a fingerprint can be compared with


class VllmBackbone:
    """What guides ask of a backbone, answered by a model of vLLM; on several GPUs by this one's share of the tokens."""

    def __init__(self, shape: BackboneShape, device: torch.device, logits: Any):
        self.shape, self.num_layers, self.output_device, self.logits = shape, shape.num_layers, device, logits

    def matrix(self) -> None:
        """Rewards are not served."""


class Guided:
    """Mixed into a model of vLLM, before it: guides beside the backbone, each request at strengths of its own."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any):
        super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
        require_tested_vllm()
        guides = guides_of(vllm_config)
        if guides is None:
            raise DualHeadError(f"{type(self).__name__} runs guides: start it with 'dual-head serve --backend vllm'.")
        _require_plain(vllm_config)
        self.served: ServedGuides = guides
        self.on_last_rank = get_pp_group().is_last_rank
        if not self.on_last_rank:
            return
        build_all(guides.entries)
        self._vllm_config = vllm_config
        text = vllm_config.model_config.hf_text_config
        whole = BackboneShape(text.hidden_size, text.vocab_size, text.num_hidden_layers)
        _require_sizes(guides, whole)
        self.kind = vllm_config.model_config.dtype
        device = vllm_config.device_config.device
        self.whole, self.share = whole, self._share(guides, whole)
        shape = whole if self.share is None else replace(whole, vocab_size=len(self.share))
        with torch.device("cpu"):
            entries = guides.entries
            if self.share is not None:
                entries = {name: {**entry, "shape": vars(shape)} for name, entry in entries.items()}
            backbone: Any = VllmBackbone(shape, device, self._backbone_logits)
            self.dual_head_guides = GuideSet(backbone, entries)
        self.dual_head_transfers = self.dual_head_guides.transfers
        # (guide, state, columns behind h and the strengths), 0 for one without a last dimension, None for h itself.
        self.layout: list[tuple[str, str, int | None]] = []
        first = text.num_hidden_layers
        for guide in self.dual_head_guides.values():
            if guide.causal_gate is not None:
                guide.causal_gate = PagedGate(guide.causal_gate, vllm_config, first)
                first += len(guide.causal_gate.parts)
        self.dual_head_guides.float().to(device)
        self.dual_head_transfers.float().to(device)
        self.names = tuple(guides.entries)
        self.last = text.num_hidden_layers
        self.inner = tuple(i for i in self.dual_head_guides.layers_read(self.names) if i < self.last)
        if self.inner:
            self._read_layers(self.inner)

    # ---- building ------------------------------------------------------------------------------------------

    def _share(self, guides: ServedGuides, whole: BackboneShape) -> range | None:
        """The tokens whose logits this GPU computes; None for all, where guides cannot be cut as the lm_head is."""
        fits = all(BackboneShape.from_dict(entry["shape"]) == whole for entry in guides.entries.values())
        moved = any(entry.get("adapter") or entry.get("vocab_map") for entry in guides.entries.values())
        if get_tensor_model_parallel_world_size() == 1 or not fits or moved or guides.fusion != "logits":
            return None
        rows = self._head().shard_indices  # padded to a multiple of the GPUs: not only those that are tokens
        return range(rows.padded_org_vocab_start_index, rows.padded_org_vocab_end_index)

    def _head(self) -> Any:
        return getattr(self, "lm_head", None) or self.model.embed_tokens

    def _read_layers(self, layers: tuple[int, ...]) -> None:
        """Have forward return hidden states of inner layers too, as vLLM's drafts of tokens have it."""
        if get_pp_group().world_size > 1:
            raise DualHeadError(
                "Guides that read inner layers are not served in pipeline parallel. Use --tensor-parallel-size alone."
            )
        if hasattr(self.model, "_set_aux_hidden_state_layers"):
            self.model._set_aux_hidden_state_layers(layers)
        elif layers[0] == 0:
            raise DualHeadError("The embedding (layer 0) is not to be had from vLLM's Transformers backend.")
        else:
            self.set_aux_hidden_state_layers(layers)

    # ---- weights -------------------------------------------------------------------------------------------

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the backbone, which must be the one that the guides were trained on, and then the guides."""
        seen: dict[str, list[float]] = {}
        loaded = set(super().load_weights(_sketched(weights, self.served, seen)))
        _require_same(self.served, seen)
        if self.on_last_rank:
            self._load_guides()
        return loaded | {name for name, _ in self.named_parameters() if name.startswith("dual_head_")}

    @torch.no_grad()
    def _load_guides(self) -> None:
        with torch.device("cpu"):
            backbone: Any = VllmBackbone(self.whole, torch.device("cpu"), None)
            stored = GuideSet(backbone, self.served.entries).float()
            stored.transfers.float()
        load_strictly(stored.stored(), self.served.tensors(), self.served.place)
        for name, guide in self.dual_head_guides.items():
            if isinstance(guide.causal_gate, PagedGate):
                guide.causal_gate.fill(stored[name].causal_gate)
            targets = guide.state_dict()
            for key, source in stored[name].state_dict().items():
                if not key.startswith("causal_gate."):
                    targets[key].copy_(self._own_rows(source, targets[key]))
            if name in self.dual_head_transfers:
                load_strictly(self.dual_head_transfers[name].state_dict(), stored.transfers[name].state_dict(), "")

    def _own_rows(self, source: Tensor, target: Tensor) -> Tensor:
        """The rows of a matrix over the vocabulary that belong to this GPU; anything else as it is."""
        if source.shape == target.shape:
            return source
        rows = source.new_zeros(target.shape)
        part = source[self.share.start : self.share.stop]
        rows[: len(part)] = part
        return rows

    # ---- running -------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        dual_head_alpha: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Rows [tokens, d + columns]; dual_head_alpha [tokens, K] under runner V2, else looked up."""
        output = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **options)
        if not self.on_last_rank:
            return output
        hidden, inner = output if isinstance(output, tuple) else (output, [])
        alpha = self._alpha(hidden) if dual_head_alpha is None else dual_head_alpha[: len(hidden)]
        layers = {i: x[None] for i, x in zip(self.inner, inner, strict=True)} | {self.last: hidden[None]}
        features = Features(hidden[None], layers)
        columns, self.layout = [alpha], []
        for name, states in self.dual_head_guides.encode(features, self.names).items():
            for key, state in states.items():
                if state is features.hidden:
                    self.layout.append((name, key, None))
                    continue
                columns.append(state[0].float().reshape(len(hidden), -1))
                self.layout.append((name, key, state.shape[2] if state.dim() == 3 else 0))
        bits = torch.cat(columns, -1).view(self.kind)
        return torch.cat([hidden, bits], -1)

    def _alpha(self, hidden: Tensor) -> Tensor:
        """Strengths [tokens, K] under runner V1, from where each request's tokens begin; zeros in a warm-up."""
        count, metadata = len(hidden), get_forward_context().attn_metadata
        if isinstance(metadata, list):
            raise DualHeadError("Two micro-batches at once (DBO) are not served with guides. Leave it off.")
        if not metadata:
            return torch.zeros(count, len(self.names), device=hidden.device)
        control = AlphaControl.of(self._vllm_config)
        starts = next((x.query_start_loc for x in metadata.values() if hasattr(x, "query_start_loc")), None)
        if control is None or starts is None:
            raise DualHeadError("This attention of vLLM does not say whose tokens it reads. Use FLASH_ATTN.")
        return of_tokens(control.table, starts, count)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits [n, V] of the policy, from rows that forward returned."""
        width, count = self.dual_head_guides.backbone.shape.hidden_size, len(self.names)
        hidden = hidden_states[:, :width].contiguous()
        numbers = hidden_states[:, width:].contiguous().view(torch.float32)
        alpha, at = numbers[:, :count], count
        states: dict[str, States] = {name: {} for name in self.names}
        for name, key, columns in self.layout:
            if columns is None:
                states[name][key] = hidden
                continue
            part = numbers[:, at : at + max(1, columns)]
            states[name][key] = part if columns else part[:, 0]
            at += max(1, columns)
        backbone: Any = self.dual_head_guides.backbone
        active = self.dual_head_guides.active(states, alpha)
        logits = distributions(backbone, active, hidden, fusion=self.served.fusion)["policy"]
        if self.share is not None:
            processor = self.logits_processor
            logits = processor._gather_logits(logits)[..., : processor.org_vocab_size]
        return logits

    def _backbone_logits(self, hidden: Tensor) -> Tensor:
        """The backbone's logits of this GPU's tokens, or of all."""
        if self.share is None:
            return super().compute_logits(hidden)
        return self.logits_processor(self._head(), hidden, getattr(self._head(), "bias", None), skip_gather=True)

    def compute_logits_local(self, hidden_states: Tensor) -> Tensor:
        """Refused: it would skip the guides."""
        del hidden_states
        raise DualHeadError("vLLM asked for logits without guides, as drafts of tokens need them. Leave drafts off.")

    get_top_tokens = compute_logits_local

    def get_model_state_cls(self) -> type:
        """Runner V2's state of requests."""
        from dual_head_vllm.state import AlphaState

        return AlphaState


def _require_plain(config: Any) -> None:
    """Refuse what would skip the guides, or give them other hidden states than those they were trained on."""
    if config.speculative_config is not None:
        raise DualHeadError("Guides are not served with speculative decoding: drafts skip them. Leave it off.")
    if config.lora_config is not None:
        raise DualHeadError(
            "Guides are not served with LoRA adapters: they were trained on the backbone without one. Merge the "
            "adapter into the backbone, train guides on that, and leave --enable-lora off."
        )


def _require_sizes(guides: ServedGuides, shape: BackboneShape) -> None:
    recorded = guides.values.get("backbone_fingerprint")
    if recorded is None:
        return
    fingerprint = Fingerprint.from_dict(recorded)
    sizes = {name: getattr(shape, name) for name in ("hidden_size", "vocab_size", "num_layers")}
    if differences := fingerprint.size_differences(replace(fingerprint, **sizes)):
        raise DualHeadError(
            f"The guides in '{guides.place}' were trained on another backbone: {'; '.join(differences)}. Give the one "
            "they were trained on, or move them first with switch_backbone and save_pretrained."
        )


def _sketched(
    weights: Iterable[tuple[str, Tensor]], guides: ServedGuides, seen: dict[str, list[float]]
) -> Iterator[tuple[str, Tensor]]:
    """Hand weights on, and note a few values of each that the fingerprint has too."""
    recorded = (guides.values.get("backbone_fingerprint") or {}).get("sketch", {})
    for name, weight in weights:
        if name in recorded and weight.dtype in PLAIN:
            seen[name] = sketch(weight)
        yield name, weight


def _require_same(guides: ServedGuides, seen: dict[str, list[float]]) -> None:
    """Refuse a backbone whose weights are not those that the guides were trained on."""
    recorded = guides.values.get("backbone_fingerprint")
    if recorded is None or os.environ.get(OTHER_PRECISION):
        return
    fingerprint = Fingerprint.from_dict(recorded)
    if differences := fingerprint.differences(replace(fingerprint, sketch=seen)):
        raise DualHeadError(
            f"The guides in '{guides.place}' were trained on another backbone: {'; '.join(differences)}. Give the one "
            "they were trained on. If this is it in another precision, say --other_precision (or set "
            f"{OTHER_PRECISION}=1), and compare what it says."
        )


class DualHeadLlamaForCausalLM(Guided, LlamaForCausalLM):
    """Llama, and what has its architecture."""


class DualHeadMistralForCausalLM(Guided, MistralForCausalLM):
    """Mistral."""


class DualHeadQwen2ForCausalLM(Guided, Qwen2ForCausalLM):
    """Qwen 2 and 2.5."""


class DualHeadQwen3ForCausalLM(Guided, Qwen3ForCausalLM):
    """Qwen 3."""


class DualHeadGemma2ForCausalLM(Guided, Gemma2ForCausalLM):
    """Gemma 2: soft-capped logits, windows."""


class DualHeadGemma3ForCausalLM(Guided, Gemma3ForCausalLM):
    """Gemma 3: windows."""


# What a config may say of the logits behind the lm_head, which vLLM's backend leaves to us or does not know.
SCALES = ("logits_scaling", "lm_head_multiplier", "output_multiplier", "output_logit_soft_cap")


class DualHeadTransformersForCausalLM(Guided, TransformersForCausalLM):
    """Any other decoder, by vLLM's backend that runs transformers' own code up to the lm_head."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any):
        super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
        text = vllm_config.model_config.hf_text_config
        scales = {name: value for name in SCALES if (value := getattr(text, name, None)) not in (None, 1, 1.0)}
        if not self.on_last_rank:
            return
        if text.model_type.startswith("granite") and "logits_scaling" in scales:
            self.logits_processor.scale = 1.0 / scales.pop("logits_scaling")
        if scales:
            raise DualHeadError(
                f"vLLM's Transformers backend does not know what {', '.join(scales)} of {text.model_type} does to "
                "logits. Serve without --backend vllm."
            )
