"""The aligned model: a frozen backbone, named guides, and a strength for each.

    z = lm_head(h + sum_k alpha_k g_k hidden_delta_k) + sum_k alpha_k g_k logit_delta_k

alpha = 0 gives the backbone's own bits.

A `PreTrainedModel` that generates with transformers' own `generate`: the guides' keys and values are more
layers of the same cache, so beams, cropping, static caches, batching, streaming and assisted decoding need
nothing from us. It knows guides only through `Guide`, and nothing of training.
"""

import copy
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import TransformersKwargs

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.decoder import Backbone
from dual_head.backbone.features import Features, TokenStrength
from dual_head.backbone.load import load_backbone
from dual_head.backbone.probe import probe
from dual_head.config import AlignedConfig
from dual_head.data import Prompt
from dual_head.errors import DualHeadError
from dual_head.guides import Guide, GuideConfig, States
from dual_head.model import build, pretrained
from dual_head.model.alpha import Alpha, Strengths, requested, require_default, resolve_alpha, strengths_of
from dual_head.model.costs import recorded_costs
from dual_head.model.decode_step import Encoded
from dual_head.model.generate import generate_ids, generate_text
from dual_head.model.generation_steps import GenerationSteps
from dual_head.model.guide_set import GuideSet, require_guide_name
from dual_head.model.policy import ActiveGuide, distributions
from dual_head.model.rewards import ReplyScore, score_replies
from dual_head.model.switch import move_guides
from dual_head.model.transfer import Transfer
from dual_head.model.vocabulary import Comparison
from dual_head.ops.token_scores import map_tokens


class AlignedModel(GenerationSteps, PreTrainedModel, GenerationMixin):
    """A frozen decoder steered by guides; build it with `from_backbone` or `from_pretrained`."""

    config: AlignedConfig
    config_class = AlignedConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    auto_classes: ClassVar = {  # transformers' class, and ours that it finds
        "AutoConfig": "dual_head.config.AlignedConfig",
        "AutoModelForCausalLM": "dual_head.model.AlignedModel",
    }
    _tokenizer: PreTrainedTokenizerBase | None = None  # of `from_backbone`, or found when text first needs one
    _source: str | None = None  # the checkpoint of the guides
    _other_precision: bool = False  # whether its guides may be of this backbone in another precision

    def __init__(self, config: AlignedConfig, lm: PreTrainedModel):
        config = copy.deepcopy(config)  # attach and switch_backbone change this one, and not the caller's
        config._attn_implementation = lm.config._attn_implementation
        super().__init__(config)
        self.backbone = Backbone(lm)
        self.guides = GuideSet(self.backbone, config.guides or {})
        self.transfers = self.guides.transfers  # their submodule nowhere else
        self.generation_config = copy.deepcopy(lm.generation_config)
        if device_map := getattr(lm, "hf_device_map", None):
            self.hf_device_map = device_map  # transformers reads it to decide about compiling
        self.eval()

    # ---- made, loaded, saved ---------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        guides: Mapping[str, GuideConfig],
        *,
        alpha: Mapping[str, float] | None = None,
        fusion: str = "logits",
        tokenizer: PreTrainedTokenizerBase | None = None,
        other_precision: bool = False,
        **load: Any,
    ) -> "AlignedModel":
        """Attach fresh guides to a backbone: a name, a folder or a loaded model, which is frozen in place.

        guides: {name: config}; alpha: default strengths, else 1; fusion: "logits" or "probabilities"; tokenizer:
        recorded, so that a wrong one is refused later; other_precision: `attach` takes guides of the same backbone in
        another precision; load: options of `load_backbone` (dtype, device_map, attn_implementation,
        quantization_config, trust_remote_code, revision). Errors: unknown fusion or options; strengths
        that the fusion does not take.
        """
        options: Any = {"alpha": alpha, "fusion": fusion, "tokenizer": tokenizer, "other_precision": other_precision}
        return build.fresh_model(cls, backbone, guides, load=load, **options)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backbone: str | Path | PreTrainedModel | None = None,
        config: AlignedConfig | None = None,
        revision: str | None = None,
        switch: bool = False,
        vocab_map: bool = False,
        adapter: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        other_precision: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Self:
        """Load guides and the backbone they were trained on.

        backbone: another place of the same backbone, or the loaded model; with `switch`, also another backbone, to
        which the guides then move: vocab_map, adapter and tokenizer as in `switch_backbone`. other_precision: the
        backbone may be the same model in another precision, see `require_other_precision`. revision: of the guides;
        output_loading_info: also return what transformers does then, which is always empty; options: those of
        `load_backbone` for the backbone (an explicit dtype is the guides' too), and the hub's for the guides. Errors:
        files that are absent, corrupt or do not fit; a backbone whose fingerprint is not the one trained on.
        """
        if (vocab_map or adapter) and not switch:
            raise DualHeadError("vocab_map and adapter say how guides move to another backbone: add switch=True.")
        if other_precision and switch:
            raise DualHeadError(
                "other_precision keeps guides on their own backbone, and switch moves them to another. Choose one."
            )
        source, load = str(pretrained_model_name_or_path), pretrained.load_options(options)
        hub = {**pretrained.hub_options(options, cls.from_pretrained, load_backbone), "revision": revision}
        move_options = {"vocab_map": vocab_map, "adapter": adapter, "tokenizer": tokenizer} if switch else None
        model = build.stored_model(
            cls, source, backbone, config, load=load, hub=hub, moving=move_options, other_precision=other_precision
        )
        info = {"missing_keys": set(), "unexpected_keys": set()}
        return (model, info) if output_loading_info else model  # pyright: ignore[reportReturnType] - as transformers

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: Any = None, push_to_hub: bool = False, **hub: Any
    ):
        """Write the guides and their config, whole or not at all; never the backbone nor its generation config.

        state_dict and the hub's options are transformers' protocol; only the guides' tensors are written.
        """
        del state_dict
        self.record_probe()
        self.config.costs = recorded_costs(self.config, {name: x.numel() for name, x in self.stored().items()})
        pretrained.save_checkpoint(self, save_directory, push_to_hub=push_to_hub, **hub)

    def record_probe(self) -> None:
        """Record what the backbone says of a few tokens, where that is not recorded and it can be run."""
        if self.config.backbone_probe is None and self.backbone.has_decoder:
            self.config.backbone_probe = probe(self.backbone).as_dict()

    def stored(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds, see `GuideSet.stored`."""
        return self.guides.stored()

    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer the model was built with, or that lies with the guides or the backbone. Errors: none does."""
        if self._tokenizer is None:
            # The backbone that is there, which may be a copy of the recorded one.
            places = (self._source, self.backbone.config._name_or_path, self.config.backbone_name_or_path)
            self._tokenizer = pretrained.find_tokenizer(places, self.config.tokenizer_fingerprint)
        if self._tokenizer is None:
            raise DualHeadError("Generating from text needs tokenizer=..., the one the guides were trained with.")
        return self._tokenizer

    def require_same_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer whose ids do not mean the tokens the guides were trained on."""
        pretrained.require_same_tokenizer(self.config, self.backbone.shape.vocab_size, tokenizer)

    # ---- guides ----------------------------------------------------------------------------------------

    def guide(self, name: str) -> Guide:
        """Return the guide of that name."""
        return self.guides[name]

    def transfer(self, name: str) -> Transfer | None:
        """Return what stands between the guide of that name and the backbone; None where nothing does."""
        return self.guides.transfer(name)

    def attach(
        self,
        name: str,
        guide: GuideConfig | str | Path,
        *,
        source_name: str | None = None,
        alpha: float | None = None,
    ) -> None:
        """Add a guide under `name`: a fresh one from its config, or a trained one from a checkpoint's folder.

        source_name: which of the checkpoint's guides, where it holds several; alpha: default strength, that of
        the checkpoint (or 1) where None. Errors: a name that is taken; another backbone, tokenizer or
        fusion than the guide was trained with; a strength that does not go with the others'.
        """
        require_guide_name(name)
        if name in self.guides:
            raise DualHeadError(f"There is a guide '{name}' already. Detach it first, or choose another name.")
        options: Any = {"tokenizer": self.own_tokenizer, "other_precision": self._other_precision}
        part = pretrained.guide_to_attach(self.config, self.backbone, guide, source_name, **options)
        alphas = {**(self.config.alpha or {}), name: part.alpha if alpha is None else alpha}
        require_default(alphas, names=alphas, fusion=self.config.fusion)
        self.guides.add(name, part.entry, part.tensors, "" if isinstance(guide, GuideConfig) else str(guide))
        self.config.guides = self.guides.entries
        self.config.alpha = {**alphas, name: float(alphas[name])}

    def detach(self, name: str) -> None:
        """Remove a guide. Errors: an unknown name."""
        self.guides.remove(name)
        self.config.guides = self.guides.entries
        self.config.alpha = {other: value for other, value in (self.config.alpha or {}).items() if other != name}

    def keep_guides(self) -> Callable[[], None]:
        """What puts back the guides of now, in their order and at their default strengths, when it is called."""
        restore, alpha = self.guides.keep(), self.config.alpha

        def put_back() -> None:
            restore()
            self.config.guides, self.config.alpha = self.guides.entries, alpha

        return put_back

    def switch_backbone(
        self,
        backbone: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        trained_tokenizer: PreTrainedTokenizerBase | None = None,
        vocab_map: bool = False,
        adapter: bool = False,
        **load: Any,
    ) -> Comparison:
        """Move all guides to another backbone, in place; returns how the tokenizers compare.

        Widths are pooled and layers matched by depth (`Transfer`); adapter: put a linear map there instead,
        which starts as that pooling and can be trained. tokenizer and trained_tokenizer: the new backbone's
        and the guides', else loaded from where the backbones are. vocab_map: where ids mean other tokens, map
        them by token string; unmapped tokens get delta 0. load: options of `load_backbone`.
        Errors: tokenizers that differ, with counts and examples; guides that cannot move.
        """
        lm = pretrained.load_lm(backbone, **load)
        tokenizers = {"tokenizer": tokenizer, "trained_tokenizer": trained_tokenizer}
        places = (self.config.backbone_name_or_path,)
        move = move_guides(self.config, lm, places, vocab_map=vocab_map, adapter=adapter, **tokenizers)
        model = build.moved_model(type(self), move, lm, self.stored())
        for part in ("backbone", "guides", "transfers", "config", "generation_config", "_tokenizer"):
            setattr(self, part, getattr(model, part))
        return move.comparison

    # ---- one pass --------------------------------------------------------------------------------------

    def encode(self, input_ids: Tensor | None, **inputs: Any) -> Encoded:
        """Run the backbone and the sequence part of guides, see `GuideSet.encode_tokens`."""
        return self.guides.encode_tokens(input_ids, **inputs)

    def encode_features(
        self,
        features: Features,
        guides: Collection[str],
        slots: Mapping[str, CacheSlot] | None = None,
        strengths: Mapping[str, TokenStrength] | None = None,
    ) -> dict[str, States]:
        """Run the sequence part of the named guides on features of the backbone, of now or kept of a run before."""
        return self.guides.encode(features, guides, slots, strengths)

    def active_guides(self, states: Mapping[str, States], strengths: Tensor) -> list[ActiveGuide]:
        """Every acting guide at n tokens: its states, and its column of strengths [n or 1, acting guides]."""
        return self.guides.active(states, strengths)

    def distributions(
        self,
        hidden: Tensor,
        states: Mapping[str, States],
        strengths: Tensor,
        names: Collection[str] = ("policy",),
        *,
        upcast: bool = False,
    ) -> dict[str, Tensor]:
        """Logits [n, V] of the named distributions, see `policy.distributions`.

        hidden [n, d] (or [B, T, d]) and the states of the acting guides, as `encode` gives them; strengths
        [n or 1, acting guides] in their order.
        """
        active = self.active_guides(states, strengths)
        return distributions(self.backbone, active, hidden, names, fusion=self.config.fusion, upcast=upcast)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        alpha: Alpha = None,
        guides: Strengths | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the aligned policy, [B, T, V] or the last `logits_to_keep` positions of them.

        alpha: as `resolve_alpha` takes it, schedules counting from the first token; or, with `guides` saying
        who acts, a tensor [B, guides] (that is how `generate` passes it, so that beams and returned sequences
        expand it like any input). options: transformers' own, and what else the backbone takes, as `pixel_values`.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None or tokens.dim() != (2 if input_ids is not None else 3):
            shape = "neither" if tokens is None else f"a tensor {tuple(tokens.shape)}"
            raise DualHeadError(f"The model needs input_ids [B, T] or inputs_embeds [B, T, d], not {shape}.")
        if guides is None:
            guides, alpha = self.resolve_alpha(alpha, tokens.shape[0])
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.get_text_config(decoder=True))
        for name in ("return_dict", "tokenizer"):  # transformers' generate hands them to every model
            options.pop(name, None)
        for name in options.keys() - TransformersKwargs.__optional_keys__ - self.backbone.other_inputs:
            raise TypeError(f"forward got an unexpected argument '{name}'")
        options = {name: value for name, value in options.items() if value is not None}
        keep = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        # Before the cache grows: a schedule counts from what it holds now.
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        values = strengths_of(torch.as_tensor(alpha, device=tokens.device), tokens.shape[0])
        alphas = guides.over(values, past, tokens.shape[1], keep)
        encoded = self.encode(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            guides=guides.names,
            strengths=(guides, values),
            keep=keep,
            options=options,
        )
        hidden, states = encoded.hidden, encoded.states
        if tokens.shape[1] > 1:  # of a single token all is kept
            hidden, states = map_tokens(lambda x: x[:, keep], hidden, states)
        output = encoded.output
        return CausalLMOutputWithPast(
            logits=self.distributions(hidden, states, alphas.to(hidden.device))["policy"],
            past_key_values=past_key_values,
            hidden_states=getattr(output, "hidden_states", None) if options.get("output_hidden_states") else None,
            attentions=getattr(output, "attentions", None),
        )

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's embeddings."""
        return self.backbone.lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The backbone's lm_head."""
        return self.backbone.lm.get_output_embeddings()

    def resolve_alpha(self, alpha: Alpha, rows: int, origin: int = 0) -> tuple[Strengths, Tensor]:
        """Which guides act, and how strongly: `alpha.resolve_alpha` with this model's defaults, or those of `generate`.

        A call inside `generate` that names no alpha, as a `custom_generate` may make it, gets the request's.
        """
        if alpha is None and (request := requested(self, rows)):
            return request
        return resolve_alpha(
            alpha, defaults=self.config.alpha or {}, rows=rows, fusion=self.config.fusion, origin=origin
        )

    def why_no_shared_prompts(self, names: Iterable[str], longest: int) -> str | None:
        """Say why pairs cannot share the run of their prompt, given the guides that act; None where they can."""
        return self.guides.why_no_shared_prompts(names, longest)

    def branch_masks(self, parts: Tensor) -> dict[str, Any]:
        """Ready-made masks for rows of [prompt | chosen | rejected], see `masks.branch_mask`; parts [R, T]."""
        return self.guides.branch_masks(parts)

    # ---- generation ------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | Prompt | Sequence[Prompt] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        alpha: Alpha = None,
        chat_template: bool = True,
        return_trace: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does, at a strength chosen per request.

        inputs: token ids as transformers takes them, a prompt, a conversation (a list of role/content
        dicts), or a list of either; text gives the new text back, as a `Cut` where it has no end. tokenizer: for text,
        the one saved with the guides or beside the backbone where none is given. With text, a temperature above 0 means
        sampling. chat_template: a text is a user's message where the tokenizer has a chat template; False continues it
        as it is. alpha: see `resolve_alpha`; 0 gives the backbone's own output, bit for bit. return_trace: also return
        one `Trace` per row (costs one pass over the finished sequences). Images go with token ids, as the backbone's
        processor makes both: generate(**processor(...)). Every other argument is transformers' own.
        Errors: an empty prompt, one longer than the context, a wrong tokenizer, a wrong alpha.
        """
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        request = {"tokenizer": tokenizer, "alpha": alpha, "return_trace": return_trace, **kwargs}
        if isinstance(inputs, Tensor) or inputs is None:
            return generate_ids(self, inputs, generation_config, **request)
        return generate_text(self, inputs, generation_config, chat_template=chat_template, **request)

    def generate_batch(self, inputs: Sequence[Prompt | Sequence[int]], **options: Any) -> list[Any]:
        """Generate for many prompts in one running batch, each at a strength of its own (continuous batching).

        inputs: texts, conversations or lists of token ids; returns a `Piece` (text, tokens, finish_reason) for each.
        alpha: as `generate` has it, or a list with one for each prompt, each a number, a `LinearDecay` or
        {guide: either}; max_new_tokens, tokenizer, chat_template: as `generate`; stop: strings before which a text
        ends; seed: one, or a list with one for each prompt; settings: an `EngineSettings`; progress: called with how
        many are done; any other: of `Sampling` (temperature, top_p, trace, ...), greedy where no temperature is given.
        Errors: guides that cannot be served.
        """
        # Serving stands above models, and is loaded where it is asked for.
        return importlib.import_module("dual_head.serve.offline").generate_batch(self, inputs, **options)

    def score(
        self,
        prompts: Sequence[Prompt],
        replies: Sequence[str],
        *,
        alpha: Alpha = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: bool = True,
        batch_size: int = 16,
    ) -> list[ReplyScore]:
        """Score one reply to each prompt by the guides as a reward model, token by token, see `rewards`.

        r(x, y) = sum_t log pi(y_t) - log pi_base(y_t)                                    nats; 0 at alpha = 0

        alpha: as `generate` takes it, one for all replies; tokenizer, chat_template: as `generate`. A reply that is a
        `Cut` has no end of its turn to score. Errors: a reply without tokens, or longer than the context; logits of
        NaN or infinity.
        """
        tokenizer = tokenizer or self.own_tokenizer()
        self.require_same_tokenizer(tokenizer)
        options = {"alpha": alpha, "chat_template": chat_template, "batch_size": batch_size}
        return score_replies(self, prompts, replies, tokenizer=tokenizer, **options)


AutoConfig.register(AlignedConfig.model_type, AlignedConfig)
AutoModelForCausalLM.register(AlignedConfig, AlignedModel)
