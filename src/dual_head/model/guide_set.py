"""The guides beside a backbone: what they are built from, and their part of the cache, the masks and a step.

    layers of one cache   [ backbone 0 .. n - 1 | guide "a" | guide "b" | ... ]        in the order of the entries

It knows how many layers each guide needs and which of the backbone's it reads, and nothing of what guides add.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate

from dual_head.backbone.cache import CacheSlot, counting_layer
from dual_head.backbone.checkpoint import load_strictly
from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.backbone.features import Features, Rows, TokenStrength
from dual_head.backbone.load import context_length
from dual_head.errors import DualHeadError, did_you_mean
from dual_head.guides import Guide, GuideConfig, States, build_guide, kind_of
from dual_head.model.alpha import Strengths
from dual_head.model.decode_step import Encoded, JointStep, growing_cache
from dual_head.model.policy import ActiveGuide
from dual_head.model.transfer import UNMAPPED, Transfer
from dual_head.ops.masks import additive, branch_mask, causal_mask

# Keys beside the backbone's own masks, when masks are made ahead: the guides' mask, and the padding it came from.
GUIDES_MASK, PADDING = "guides", "padding"
BACKBONE_MASK = "backbone"


class Masks(NamedTuple):
    """Of one pass: the backbone's as it takes it, bool [B, 1, T, K] of guides that look back, padding [B, past + T]."""

    backbone: Any = None
    guides: Tensor | None = None
    padding: Tensor | None = None


def require_guide_name(name: str) -> None:
    """Refuse what cannot name a guide."""
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise DualHeadError(f"'{name}' cannot name a guide. Use letters, digits and underscores.")


def entry_of(config: GuideConfig, shape: BackboneShape) -> dict[str, Any]:
    """Describe a fresh guide as config.json has it."""
    entry = {"kind": kind_of(config), "config": config.as_dict(), "shape": asdict(shape)}
    with torch.device("meta"):  # only to ask how many cache layers it needs
        return entry | {"cache_layers": build_guide(entry, shape).cache_layers}


class GuideSet(nn.ModuleDict):
    """The named guides of one backbone: {name: guide}.

    entries: {name: {"kind", "config", "cache_layers", "shape", ...}}, as `AlignedConfig` has them; transfers: {name:
    what fits the guide to this backbone}, where it was trained beside another.
    """

    def __init__(self, backbone: Backbone, entries: Mapping[str, dict[str, Any]]):
        super().__init__()
        self.entries: dict[str, dict[str, Any]] = {}
        # No submodules, since the modules of this dict are guides: the model registers both of them.
        self._beside = (backbone, nn.ModuleDict())
        self._step = JointStep(backbone)
        for name, entry in entries.items():
            self.add(name, entry)

    @property
    def backbone(self) -> Backbone:
        """The backbone they are attached to."""
        return self._beside[0]

    @property
    def transfers(self) -> nn.ModuleDict:
        """What fits guides to this backbone, by the guide's name."""
        return self._beside[1]

    def __getitem__(self, name: str) -> Guide:
        guide = super().__getitem__(name)
        assert isinstance(guide, Guide)
        return guide

    def transfer(self, name: str) -> Transfer | None:
        """Return what stands between a guide and the backbone; None where nothing does."""
        transfer = self.transfers[name] if name in self.transfers else None  # noqa: SIM401 - ModuleDict has no get
        assert transfer is None or isinstance(transfer, Transfer)
        return transfer

    # ---- which there are -------------------------------------------------------------------------------

    def add(self, name: str, entry: dict[str, Any], tensors: dict[str, Tensor] | None = None, source: str = "") -> None:
        """Build a guide from its entry, and what fits it to the backbone; fill it with stored tensors where given.

        tensors: as the guide names them, of the checkpoint `source`. Errors: tensors that are not this guide's.
        """
        shape = BackboneShape.from_dict(entry["shape"])
        guide = build_guide(entry, shape)
        guide.attach(self.backbone)
        device = self.backbone.output_device
        self._modules[name] = guide.to(device).eval()  # not by add_module, which refuses the names of our methods
        self.entries = {**self.entries, name: entry}
        if shape != self.backbone.shape or entry.get("adapter") or entry.get("vocab_map"):
            # Filled from the checkpoint, or by switch_backbone.
            ids = torch.full((self.backbone.shape.vocab_size,), UNMAPPED) if entry.get("vocab_map") else None
            transfer = Transfer(shape, self.backbone.shape, adapter=bool(entry.get("adapter")), vocab_map=ids)
            self.transfers[name] = transfer.to(device)
        if tensors is None:
            return
        try:
            places = {key: x for key, x in self.stored().items() if key.startswith(f"{name}.")}
            load_strictly(places, {f"{name}.{key}": x for key, x in tensors.items()}, source)
        except DualHeadError:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Remove a guide. Errors: an unknown name."""
        if name not in self:
            raise DualHeadError(f"No guide is named '{name}'.{did_you_mean(name, self)}")
        del self[name]
        self.entries = {other: entry for other, entry in self.entries.items() if other != name}
        if name in self.transfers:
            del self.transfers[name]

    def keep(self) -> Callable[[], None]:
        """What puts back the guides of now, in their order, when it is called."""
        entries, parts = self.entries, [(part, dict(part._modules)) for part in (self, self.transfers)]

        def restore() -> None:
            self.entries = entries
            for part, modules in parts:
                part._modules.clear()
                part._modules.update(modules)

        return restore

    def stored(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds: of each guide, and of what fits it to this backbone."""
        tensors = {f"{name}.{key}": x for name in self for key, x in self[name].stored().items()}
        transfers = {f"{name}.transfer": part.state_dict() for name, part in self.transfers.items()}
        return tensors | {f"{name}.{key}": x for name, state in transfers.items() for key, x in state.items()}

    def context_length(self, names: Iterable[str]) -> int | None:
        """How many tokens of a sequence the backbone reads beside these guides; None where its config does not say."""
        context = context_length(self.backbone.config)
        return context and context - max((self[name].prompt_tokens for name in names), default=0)

    # ---- what they read --------------------------------------------------------------------------------

    def layers_read(self, names: Iterable[str]) -> tuple[int, ...]:
        """Which of the backbone's layers these guides read, besides the last."""
        layers: set[int] = set()
        for name in names:
            if read := self[name].hidden_layers:
                transfer = self.transfer(name)
                layers.update(read if transfer is None else map(transfer.layer, read))
        return tuple(sorted(layers))

    def encode(
        self,
        features: Features,
        names: Collection[str],
        slots: Mapping[str, CacheSlot] | None = None,
        strengths: Mapping[str, TokenStrength] | None = None,
    ) -> dict[str, States]:
        """Run the sequence part of these guides: {name: states, each [B, T, *]}.

        strengths: of those that steer layers.
        """
        slots, strengths = slots or {}, strengths or {}
        features_of = {name: self._seen_by(name, features, strengths.get(name)) for name in names}
        return {name: self[name].encode(features_of[name], slots.get(name)) for name in names}

    def steer_layers(self, names: Iterable[str]) -> bool:
        """Whether states of one of these guides are of one strength, so that no other can share them or their cache."""
        return any(self[name].steers_layers for name in names)

    def _seen_by(self, name: str, features: Features, strength: TokenStrength | None) -> Features:
        transfer, guide = self.transfer(name), self[name]
        if guide.steers_layers:
            return replace(features, strength=strength)
        if transfer is None or guide.reads_tokens:
            return features
        return transfer.features(features, guide.hidden_layers)

    def active(self, states: Mapping[str, States], strengths: Tensor) -> list[ActiveGuide]:
        """The guides of these states at n tokens, each with its column of strengths [n or 1, guides]."""
        alphas = strengths.unsqueeze(-1).unbind(-2)
        return [
            ActiveGuide(self[name], guide_states, alpha, self.transfer(name))
            for (name, guide_states), alpha in zip(states.items(), alphas, strict=True)
        ]

    # ---- one pass --------------------------------------------------------------------------------------

    def encode_tokens(
        self,
        input_ids: Tensor | None,
        *,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        guides: Collection[str] = (),
        strengths: tuple[Strengths, Tensor] | None = None,
        keep: slice | Tensor = slice(None),
        select: Rows | None = None,
        options: dict[str, Any] | None = None,
    ) -> Encoded:
        """Run the backbone and the sequence part of the named guides; nothing is as wide as the vocabulary.

        input_ids [B, T], or inputs_embeds [B, T, d]; attention_mask: of padding [B, past + T], or ready-made masks;
        strengths: of these guides and their values [B or 1, guides], which those that steer layers need here;
        keep: the positions whose logits are scored, others need no work of a guide that looks at logits; select: give
        the guides these rows of the same tokens, and return those; options: of the decoder's forward.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        assert tokens is not None
        self._require_read(guides, options or {})
        backbone, cache, layers = self.backbone, past_key_values, self.layers_read(guides)
        slots = self.cache_slots(cache, guides)
        masks = self.masks(tokens, attention_mask, cache, guides)
        at_tokens: dict[str, TokenStrength] = {}
        if strengths and self.steer_layers(guides):
            acting, values = strengths
            past = 0 if cache is None else cache.get_seq_length()
            at_tokens = acting.at_tokens(values.to(tokens.device), past, tokens.shape[1])
        step: Encoded | None = None
        if select is None and not options:
            joining = {name: self[name] for name in slots if self._joins(name, at_tokens)}
            inputs = {"input_ids": input_ids, "mask": masks.backbone, "position_ids": position_ids, "cache": cache}
            step = self._step.run(joining, slots, **inputs, layers=layers, strengths=at_tokens)
        if step is None:
            output, hidden_layers = backbone(
                input_ids,
                attention_mask=masks.backbone,
                position_ids=position_ids,
                past_key_values=growing_cache(backbone, input_ids, cache) if guides else cache,
                inputs_embeds=inputs_embeds,
                layers=layers,
                options=options,
            )
            step = Encoded(output.last_hidden_state, layers=hidden_layers, output=output)
        # Of a model with images, positions are [axes, B, T], those in the text first.
        positions = position_ids[0] if position_ids is not None and position_ids.dim() == 3 else position_ids
        features = Features(
            step.hidden, step.layers, masks.guides, positions, input_ids, masks.padding, keep, logits=backbone.logits
        )
        if select is not None:
            features = features.select(select)
        apart = [name for name in guides if name not in step.states]
        states = step.states | self.encode(features, apart, slots, at_tokens)
        return Encoded(features.hidden, {name: states[name] for name in guides}, step.layers, step.output)

    def _require_read(self, names: Iterable[str], options: Mapping[str, Any]) -> None:
        """Refuse images beside a guide that runs a model of its own: it would read their places as words."""
        for name in names:
            if self[name].reads_tokens and self.backbone.has_images(options):
                raise DualHeadError(
                    f"The guide '{name}' runs a model over the tokens, and that one is not given the images. Set its "
                    "alpha to 0, or use a guide that reads the backbone's hidden states."
                )

    def _joins(self, name: str, strengths: Mapping[str, TokenStrength]) -> bool:
        guide = self[name]
        known = not guide.steers_layers or name in strengths
        return bool(guide.joint_parts) and known and not guide.training and self.transfer(name) is None

    # ---- cache and masks -------------------------------------------------------------------------------

    @property
    def cache_layers(self) -> int:
        """How many layers they add to the generation cache."""
        return sum(entry["cache_layers"] for entry in self.entries.values())

    def cache_slots(self, cache: Cache | None, names: Collection[str]) -> dict[str, CacheSlot]:
        """Give each of these guides its layers of the cache. Errors: a cache that was filled while one was off."""
        if cache is None or not names:
            return {}
        slots, layer, length = {}, self.backbone.num_layers, cache.get_seq_length()
        for name, entry in self.entries.items():
            if name in names and entry["cache_layers"]:
                filled = cache.get_seq_length(counting_layer(cache, layer))
                if isinstance(length, int) and isinstance(filled, int) and filled != length:
                    raise DualHeadError(
                        f"This cache holds {length} tokens of the backbone and {filled} of the guide '{name}': it was "
                        "filled while the guide was off. Start from an empty cache to turn a guide on."
                    )
                slots[name] = CacheSlot(cache, layer)
            layer += entry["cache_layers"]
        return slots

    def masks(
        self,
        tokens: Tensor,
        attention_mask: Tensor | dict[str, Any] | None,
        cache: Cache | None,
        names: Collection[str],
    ) -> Masks:
        """Split ready-made masks, or build the guides' from the padding mask [B, past + T] of tokens [B, T, *]."""
        if isinstance(attention_mask, dict) and GUIDES_MASK in attention_mask:
            # Of layers of one kind the backbone takes a mask, of several kinds a dictionary of them, as it is.
            backbone = {key: mask for key, mask in attention_mask.items() if key not in (GUIDES_MASK, PADDING)}
            return Masks(backbone.get(BACKBONE_MASK, backbone), attention_mask[GUIDES_MASK], attention_mask[PADDING])
        if not names:
            return Masks(attention_mask)
        if attention_mask is not None and (isinstance(attention_mask, dict) or attention_mask.dim() != 2):
            raise DualHeadError("attention_mask must be a padding mask [B, past + T] of ones and zeros.")
        # Only a guide that looks back reads a mask, and such a guide has layers of the cache.
        looks_back = any(self.entries[name]["cache_layers"] for name in names)
        mask = self._mask(attention_mask, tokens.shape[1], cache, tokens.device) if looks_back else None
        return Masks(attention_mask, mask, attention_mask)

    def _mask(self, padding: Tensor | None, length: int, cache: Cache | None, device: torch.device) -> Tensor | None:
        if padding is None and not self.cache_layers:
            return None
        first = self.backbone.num_layers
        layer = first if cache is None else counting_layer(cache, first)
        return causal_mask(padding, length, cache, guide_layer=layer, device=device)

    def branch_masks(self, parts: Tensor) -> dict[str, Any]:
        """Ready-made masks for rows of [prompt | chosen | rejected], see `masks.branch_mask`; parts [R, T]."""
        visible = branch_mask(parts)
        mask = additive(visible, self.backbone.lm.dtype)
        return {BACKBONE_MASK: mask, GUIDES_MASK: visible, PADDING: mask}

    def masks_ahead(self, **inputs: Any) -> dict[str, Any]:
        """Make all masks ahead of a compiled step: the backbone's as it wants them, and the guides' own.

        inputs: transformers' protocol of `create_masks_for_generate`.
        """
        make = getattr(self.backbone.lm, "create_masks_for_generate", create_masks_for_generate)
        masks = make(config=self.backbone.config, **inputs)
        masks = dict(masks) if isinstance(masks, dict) else {BACKBONE_MASK: masks}
        embeds, padding = inputs["inputs_embeds"], inputs["attention_mask"]
        mask = self._mask(padding, embeds.shape[1], inputs["past_key_values"], embeds.device)
        if padding is not None and mask is not None:
            # As wide at every step, or a step would be compiled again for every token.
            padding = F.pad(padding, (0, mask.shape[-1] - padding.shape[1]))
        return masks | {GUIDES_MASK: mask, PADDING: padding}

    def why_no_shared_prompts(self, names: Iterable[str], longest: int) -> str | None:
        """Say why pairs cannot share the run of their prompt, given the guides that act; None where they can."""
        for name in names:
            if not self[name].shares_prompts:
                return f"the guide '{name}' runs a model of its own"
        obstacle = self.backbone.why_no_shared_prompts(longest)
        return obstacle and f"the backbone cannot, {obstacle}"
