"""A frozen Hugging Face decoder, seen as hidden states first and logits on demand.

Everything that differs between architectures is dealt with here and nowhere else: tied embeddings, a bias
on the lm_head, Gemma's soft-capping, logit scales, quantised or LoRA-wrapped models. This file knows
nothing of guides; it hands out `Features` and turns any hidden state into the backbone's own logits.
"""

import copy
import hashlib
import inspect
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from dual_head.errors import DualHeadError, did_you_mean

# bf16 keeps 8 bits of mantissa, so one rounding moves a value by at most 2^-9; a guide trained beside a
# bf16 copy must accept the fp32 original, and a fine-tuned sibling must still stand out.
SKETCH_TOLERANCE = 2**-8
SKETCH_VALUES = 4
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Features:
    """What the backbone says about a batch of tokens; guides read this and nothing else.

    hidden: [B, T, d] input of the lm_head; layers: {index: [B, T, d]} the hidden states a guide asked for
    (0 is the embedding); mask: bool [B, 1, T, K], True where query t may look at key k, or None where plain
    causal attention over the T tokens is right; positions: [B, T] or None.
    """

    hidden: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    positions: Tensor | None = None


@dataclass(frozen=True)
class BackboneShape:
    """The three sizes a guide is built from."""

    hidden_size: int
    vocab_size: int
    num_layers: int


@dataclass(frozen=True)
class Fingerprint:
    """What tells one backbone from another: its sizes, and a sketch of its weights that survives a dtype change."""

    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    sketch: dict[str, list[float]]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fingerprint":
        """Read back what `as_dict` wrote."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON config."""
        return asdict(self)

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits that name these sizes and weights on a screen."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Say, one sentence each, where `other` is not this backbone; empty when it is."""
        found = [
            f"{name} {getattr(self, name)} against {getattr(other, name)}"
            for name in ("architecture", "hidden_size", "vocab_size", "num_layers")
            if getattr(self, name) != getattr(other, name)
        ]
        if not found and (names := self._unlike(other)):
            found.append(f"the same sizes but other weights ({', '.join(names[:3])})")
        return found

    def _unlike(self, other: "Fingerprint") -> list[str]:
        # Quantised weights have no floats to compare: whatever both sides could sketch is compared.
        shared = self.sketch.keys() & other.sketch.keys()
        ours = {name: torch.tensor(self.sketch[name]) for name in shared}
        theirs = {name: torch.tensor(other.sketch[name]) for name in shared}
        return sorted(
            name for name in shared if not torch.allclose(ours[name], theirs[name], rtol=SKETCH_TOLERANCE, atol=1e-6)
        )


class _Hidden(BaseModelOutputWithPastAndCrossAttentions):
    """The output of a decoder that has nothing to say but its last hidden state."""

    # Read by the forward of mixture-of-experts and multimodal models, which only hand them on.
    router_logits = aux_loss = z_loss = image_hidden_states = rope_deltas = None


class _Passthrough(nn.Module):
    """Stands where the decoder stood and returns the hidden states it is given."""

    def forward(self, *_args, inputs_embeds: Tensor, **_kwargs) -> _Hidden:
        return _Hidden(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> "_Passthrough":
        return self  # OPT's head calls model.decoder rather than model


class Backbone(nn.Module):
    """A causal LM, frozen in place and kept in eval mode.

    `forward` gives the lm_head's input, `logits` turns any such hidden state into exactly the logits the
    model itself would give. Errors: a model without an lm_head or of the encoder-decoder kind is refused.
    """

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        unwrap = getattr(lm, "get_base_model", None)  # a PEFT wrapper; its adapters live on in the model inside
        lm = unwrap() if unwrap else lm
        if getattr(lm.config, "is_encoder_decoder", False) or lm.get_output_embeddings() is None:
            raise DualHeadError(
                f"{type(lm).__name__} is not a decoder with an lm_head. Load the model with AutoModelForCausalLM."
            )
        self.lm = lm.requires_grad_(False).eval()
        # Not a submodule: it shares every weight with `lm` and must not be saved or counted twice.
        self._head_only = (_without_decoder(lm),)
        accepted = inspect.signature(lm.base_model.forward).parameters
        self._takes_positions = "position_ids" in accepted

    @property
    def config(self):
        """The model's own configuration."""
        return self.lm.config

    @property
    def shape(self) -> BackboneShape:
        """Hidden size d, vocabulary V (rows of the lm_head) and number of layers."""
        text = self.lm.config.get_text_config(decoder=True)
        head: Any = self.lm.get_output_embeddings()
        return BackboneShape(text.hidden_size, head.weight.shape[0], text.num_hidden_layers)

    @property
    def output_device(self) -> torch.device:
        """Where hidden states leave the decoder: the lm_head's device."""
        head: Any = self.lm.get_output_embeddings()
        return head.weight.device

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode whatever is asked: a frozen model has no dropout and no statistics to learn."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        layers: tuple[int, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[int, Tensor]]:
        """Run the decoder: (its output, {layer: [B, T, d]}), with no logits and no gradient."""
        options = dict(options or {})
        wants_hidden = bool(options.pop("output_hidden_states", False)) or bool(layers)
        positions = {"position_ids": position_ids} if self._takes_positions else {}
        output = self.lm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=past_key_values is not None,
            output_hidden_states=wants_hidden,
            return_dict=True,
            **positions,
            **options,
        )
        return output, {i: output.hidden_states[i] for i in layers}

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., d] into the backbone's logits [..., V], soft-capping and scales included."""
        batched = hidden if hidden.dim() == 3 else hidden.reshape(1, -1, hidden.shape[-1])
        out = self._head_only[0](input_ids=None, inputs_embeds=batched, use_cache=False, return_dict=True).logits
        return out if hidden.dim() == 3 else out.view(*hidden.shape[:-1], out.shape[-1])

    def fingerprint(self) -> Fingerprint:
        """Name this backbone by its sizes and a few values of every weight; the same in any floating dtype."""
        named = [(n, p) for n, p in self.lm.named_parameters() if p.is_floating_point() and not p.is_meta]
        return Fingerprint(
            architecture=type(self.lm).__name__,
            **asdict(self.shape),
            sketch={name: _sample(parameter) for name, parameter in named},
        )


def _sample(parameter: Tensor) -> list[float]:
    flat = parameter.detach().flatten()
    picks = torch.linspace(0, flat.numel() - 1, SKETCH_VALUES, dtype=torch.float64).long()
    return flat[picks.to(flat.device)].float().tolist()


def _without_decoder(lm: PreTrainedModel) -> PreTrainedModel:
    """A second view of `lm` whose decoder is replaced by a pass-through.

    What the model's own forward does after the decoder (bias, soft-capping, scaling) then applies to any
    hidden state, for every architecture and without a table of them.
    """
    view = copy.copy(lm)
    view.__dict__.pop("forward", None)  # accelerate binds the original module's forward here
    view._modules = {**lm._modules, lm.base_model_prefix: _Passthrough()}
    return view


def load_backbone(
    name_or_path: str,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a causal LM with transformers; the options are transformers' own.

    Errors: a name that is neither a folder with a model nor a hub model is refused with what was tried.
    """
    chosen = {
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
        "revision": revision,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise DualHeadError(f"Unknown dtype '{dtype}'.{did_you_mean(dtype, DTYPES)}")
    if Path(name_or_path).is_absolute() and not Path(name_or_path).exists():
        raise DualHeadError(
            f"There is no backbone at '{name_or_path}'. Say where it is now: backbone=... in Python, --backbone or "
            "--model_name_or_path on the command line."
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name_or_path, error) from error


def load_context_length(name_or_path: str, *, trust_remote_code: bool = False) -> int | None:
    """Read a backbone's context length from its config alone, before anything large is loaded."""
    try:
        return context_length(AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code))
    except (OSError, ValueError) as error:
        raise _not_loaded(name_or_path, error) from error


def context_length(config: PreTrainedConfig) -> int | None:
    """How many positions a model was made for; None where its config does not say."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def _not_loaded(name_or_path: str, error: Exception) -> DualHeadError:
    return DualHeadError(
        f"Could not load the backbone '{name_or_path}': {str(error).splitlines()[0]} "
        "Give a folder that holds config.json and safetensors, or the name of a model on the hub."
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name a tokenizer by its token strings and their ids: equal exactly when ids mean the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
