"""A frozen Hugging Face decoder, seen as hidden states first and logits on demand.

Everything that differs between architectures is dealt with here and nowhere else: tied embeddings, a bias
on the lm_head, Gemma's soft-capping, logit scales, quantised or LoRA-wrapped models. It gives hidden states
and turns any of them into the backbone's own logits. It knows no guides, and not what they read.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

from dual_head.backbone.cache import SpecialLayers
from dual_head.backbone.checkpoint import MODEL_TYPE
from dual_head.backbone.dtypes import is_plain
from dual_head.backbone.fingerprint import Fingerprint, sketch
from dual_head.backbone.head_only import does_nothing_but_its_head, without_decoder
from dual_head.backbone.layer_hooks import kept, layer_stack, shifted
from dual_head.backbone.load import context_length
from dual_head.errors import DualHeadError
from dual_head.ops.masks import additive, branch_mask
from dual_head.options import build

# How far hidden states may be from those of separate rows, relative to their norm, by bytes of a number: rounding,
# which is 0.04 in bf16 in a real chat model, where a wrong mask or position moves them by 0.15 to 0.47.
BRANCH_TOLERANCE = {8: 1e-6, 4: 1e-4, 2: 8e-2, 1: 8e-2}
# Types whose layers keep their state in themselves: no beam reorders it, and a guide's pass would write over it.
STATEFUL_LAYERS = {"recurrent_gemma"}
# What a decoder's forward takes of text; labels are of its loss, which is not computed here.
TEXT_INPUTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "labels",
    "kwargs",
}


@dataclass(frozen=True)
class BackboneShape:
    """The three sizes a guide is built from."""

    hidden_size: int
    vocab_size: int
    num_layers: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BackboneShape":
        """Read them from plain values. Errors: one that is missing, or no whole number."""
        return build(cls, values)


class Decoder(nn.Module):
    """A causal LM seen as hidden states first and logits on demand.

    `forward` gives the lm_head's input, `logits` turns any such hidden state into exactly the logits the
    model itself would give. Errors: a model without an lm_head, an encoder, and an encoder-decoder are refused.
    """

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        unwrap = getattr(lm, "get_base_model", None)  # a PEFT wrapper; its adapters live on in the model inside
        lm = unwrap() if unwrap else lm
        if lm.config.model_type == MODEL_TYPE:
            raise DualHeadError(
                f"'{lm.config._name_or_path}' holds guides, and guides need a plain model below them. Give the "
                "backbone that they go on; 'dual-head compose' puts several guides on one."
            )
        if getattr(lm.config, "is_encoder_decoder", False) or lm.get_output_embeddings() is None:
            raise DualHeadError(
                f"{type(lm).__name__} is not a decoder with an lm_head. Load the model with AutoModelForCausalLM "
                "or AutoModelForImageTextToText."
            )
        if not getattr(lm.config, "is_decoder", True) and hasattr(lm.config, "add_cross_attention"):  # BERT and its kin
            raise DualHeadError(
                f"{type(lm).__name__} reads a text in both directions, so it cannot continue one. Choose a decoder. "
                "If it was trained as one, set is_decoder in its config."
            )
        name_base_model(lm)
        accepted = inspect.signature(lm.base_model.forward).parameters
        self.lm = lm
        has_cache = "past_key_values" in accepted and lm._supports_default_dynamic_cache()  # pyright: ignore[reportCallIssue]
        if self.has_decoder and (not has_cache or lm.config.model_type in STATEFUL_LAYERS):
            raise DualHeadError(
                f"{type(lm).__name__} keeps a state of its own instead of keys and values, in which guides cannot look "
                "back. Choose a decoder with attention."
            )
        # Not a submodule: it shares every weight with `lm` and must not be saved or counted twice.
        self._head_only = (without_decoder(lm),)
        self._only_head = does_nothing_but_its_head(lm)
        self._takes_positions = "position_ids" in accepted
        # Images, their sizes, types of tokens: by what names the model takes them, and none of a model of text.
        self.other_inputs = frozenset(accepted) - TEXT_INPUTS
        self.num_layers: int = lm.config.get_text_config(decoder=True).num_hidden_layers
        self.special_layers = SpecialLayers.of(lm.config)

    @property
    def config(self):
        """The model's own configuration."""
        return self.lm.config

    @property
    def shape(self) -> BackboneShape:
        """Hidden size d, vocabulary V (rows of the lm_head) and number of layers."""
        text = self.lm.config.get_text_config(decoder=True)
        head: Any = self.lm.get_output_embeddings()
        # What reaches the lm_head may be narrower than the layers, as in OPT-350m.
        width = getattr(head, "in_features", text.hidden_size)
        return BackboneShape(width, head.weight.shape[0], self.num_layers)

    @property
    def has_decoder(self) -> bool:
        """Whether it can be run; what a feature cache keeps of a model cannot."""
        return next(self.lm.base_model.parameters(), None) is not None

    @property
    def output_device(self) -> torch.device:
        """Where hidden states leave the decoder: the lm_head's device."""
        head: Any = self.lm.get_output_embeddings()
        return head.weight.device

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Whether there are images among these inputs of a forward: sizes and types are whole numbers, pixels not."""
        return any(name in self.other_inputs and _is_content(x) for name, x in inputs.items())

    def forward(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        layers: tuple[int, ...] = (),
        shifts: Mapping[int, Tensor] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[int, Tensor]]:
        """Run the decoder: (its output, {layer: [B, T, d]}), with no logits.

        Layer 0 is the embedding, layer i what decoder layer i - 1 gives; the last is the output after the
        final norm. Only those in `layers` are kept. shifts: {layer: what is added to it [B or 1, T or 1, d]}, of layers
        1 to the last, there before the final norm.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": past_key_values is not None,
            "return_dict": True,
            **({"position_ids": position_ids} if self._takes_positions else {}),
            **(options or {}),
        }
        if not shifts:
            return self._run(inputs, layers)
        with shifted(self._stack(), shifts):
            return self._run(inputs, layers)

    def _run(self, inputs: dict[str, Any], layers: tuple[int, ...]) -> tuple[Any, dict[int, Tensor]]:
        if not layers:
            return self.lm.base_model(**inputs), {}
        cache = inputs["past_key_values"]
        if cache is not None and cache.is_compileable:
            # Hooks cannot come and go inside a graph, where layers that are not read cost nothing.
            output = self.lm.base_model(**inputs, output_hidden_states=True)
            return output, {i: output.hidden_states[i] for i in layers}
        with self.keeping([i for i in layers if i != self.num_layers]) as states:
            output = self.lm.base_model(**inputs)
        return output, {i: output.last_hidden_state if i == self.num_layers else states[i] for i in layers}

    def keeping(self, layers: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """Keep what some layers give while the block runs; of the last, before the final norm."""
        count = self.num_layers
        if layers and (min(layers) < 0 or max(layers) > count):
            raise DualHeadError(f"The backbone has hidden states 0 to {count}, not {sorted(set(layers))}.")
        return kept(self._stack() if layers else nn.ModuleList(), layers)

    def _stack(self) -> nn.ModuleList:
        return layer_stack(self.lm.get_decoder(), self.num_layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., d] into the model's logits [..., V], soft-capping and scales included."""
        # Of strided rows and a frozen weight torch makes a batched product, slower and rounded otherwise than the one
        # that a model loaded by itself, whose weights want a gradient, makes of the same rows. It reads the stride of a
        # dimension of size 1 too, which is contiguous whatever it is; a view sets that stride again.
        rows = hidden if hidden.dim() == 3 else hidden.reshape(1, -1, hidden.shape[-1])
        rows = rows.contiguous().view(rows.shape)
        if self._only_head:  # the model's own forward costs a token as much as a small product
            logits = self.lm.get_output_embeddings()(rows)  # pyright: ignore[reportOptionalCall]
        else:
            logits = self._head_only[0](input_ids=None, inputs_embeds=rows, use_cache=False, return_dict=True).logits
        return logits if hidden.dim() == 3 else logits.view(*hidden.shape[:-1], logits.shape[-1])

    def matrix(self) -> Tensor | None:
        """W [V, d] where logits are W h and nothing else; None where there is a bias, a scale or soft-capping."""
        head: Any = self.lm.get_output_embeddings()
        plain = self._only_head and type(head) is nn.Linear and head.bias is None and is_plain(head.weight)
        return head.weight.detach() if plain else None

    def fingerprint(self) -> Fingerprint:
        """Name this model by its sizes and a few values of every weight; the same in any floating dtype."""
        weights = {name: p for name, p in self.lm.named_parameters() if is_plain(p) and not p.is_meta}
        return Fingerprint(
            architecture=type(self.lm).__name__,
            **asdict(self.shape),
            sketch={name: sketch(weight) for name, weight in weights.items()},
        )


def name_base_model(lm: PreTrainedModel) -> None:
    """Let `base_model` be the model below the lm_head where its class names it by what it is part of, as Llama 4's."""
    if lm.base_model is lm:
        embedding = lm.get_input_embeddings()
        names = (name for name, part in lm.named_children() if any(module is embedding for module in part.modules()))
        lm.base_model_prefix = next(names, lm.base_model_prefix)


def layer_types(config: Any) -> list[str]:
    """What each layer of a model looks at, as transformers names it: "full_attention", "sliding_attention", ..."""
    return list(get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0])


class Backbone(Decoder):
    """A decoder frozen in place: no gradient and no dropout, in any mode."""

    def __init__(self, lm: PreTrainedModel):
        super().__init__(lm)
        self.lm.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode: a frozen model has no dropout and no statistics to learn."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[int, Tensor]]:
        """Run the decoder without a gradient; see `Decoder.forward`."""
        return super().forward(*args, **kwargs)

    def why_no_shared_prompts(self, longest: int) -> str | None:
        """Say why one row cannot hold prompts and two continuations of each, kept apart by masks; None where it can.

        longest: tokens of a sequence. Tried on a few tokens rather than looked up, since no list of
        architectures that honour masks and positions would stay true.
        """
        text = self.config.get_text_config(decoder=True)
        window = getattr(text, "sliding_window", None)
        if window and getattr(text, "use_sliding_window", True) and window < longest:
            return f"its layers look back {window} tokens only, fewer than the {longest} of a sequence"
        if not self._takes_positions:
            return "it takes no positions"
        context = context_length(self.config)
        if any(x.shape[-2:] == (context, context) for name, x in self.lm.base_model.named_buffers() if "." in name):
            # As GPT-Neo has it: what a window of it leaves out in a row is not what it leaves out in a sequence. One
            # beside its layers, as GPT-BigCode has it, is not read.
            return "its layers mask tokens by their places in a row"
        embedding: Any = self.lm.get_input_embeddings()
        device = embedding.weight.device
        # Tokens from all of the vocabulary: the first ones are often special, hardly trained, and magnify rounding.
        ids = torch.arange(1, 20, device=device)[None] * max(1, self.shape.vocab_size // 20) % self.shape.vocab_size
        # Two prompts of 5 and 3 tokens, with continuations of 4 and 3, and of 2 and 2, all in one row:
        #   parts       [ 0 0 0 0 0 | 1 1 1 1 | 2 2 2 | 3 3 3 | 4 4 | 5 5 ]
        #   positions   [ 0 1 2 3 4 | 5 6 7 8 | 5 6 7 | 0 1 2 | 3 4 | 3 4 ]
        # Each of the four sequences must then have the hidden states that it has in a row by itself.
        parts = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3 + [3] * 3 + [4] * 2 + [5] * 2], device=device)
        positions = torch.tensor([[*range(9), *range(5, 8), *range(5), *range(3, 5)]], device=device)
        try:
            mask = additive(branch_mask(parts), self.lm.dtype)
            row = self(ids, attention_mask=mask, position_ids=positions)[0].last_hidden_state[0].float()
        except (ValueError, RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            return f"its attention takes no mask of our own ({str(error).splitlines()[0]})"
        for tokens in ([*range(9)], [*range(5), *range(9, 12)], [*range(12, 17)], [*range(12, 15), 17, 18]):
            branch = torch.tensor(tokens, device=device)
            sequence = self(ids[:, branch], position_ids=positions[:, branch])[0].last_hidden_state[0].float()
            if (row[branch] - sequence).norm() > BRANCH_TOLERANCE[self.lm.dtype.itemsize] * sequence.norm():
                return "it does not keep continuations of one prompt apart"
        return None


def _is_content(x: Any) -> bool:
    return x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, Mapping | list | tuple) and len(x) > 0
