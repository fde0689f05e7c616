"""An aligned model under transformers' continuous batching, whose side of it only this file and batch.py know.

    tokens of a step   [ p p p p | c | c | p p ]        chunks of prompts and single new tokens, of four requests
    rows                       0   1   2                where a token is chosen: the last chunk does not end its prompt

A request's strengths travel with the scheduler's own record of it. What guides keep of a sequence lies in the same
pages, cut to the backbone's shape. Only steering vectors put a strength into keys and values: requests share pages
whatever their strengths are, and where vectors act, if theirs are equal (`Row.key`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.modeling_outputs import CausalLMOutput

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.decoder import layer_types
from dual_head.backbone.features import Features, TokenStrength
from dual_head.errors import DualHeadError
from dual_head.guides import States
from dual_head.model import AlignedModel
from dual_head.model.alpha import LinearDecay, Strengths
from dual_head.ops.token_scores import map_tokens
from dual_head.serve.pages import FULL, PagedSlot, Pages, Shape, as_stored


@dataclass(eq=False)
class Row:
    """One request as the scheduler carries it: `strengths` [guides][start, slope, tokens], see `strength_numbers`."""

    id: str
    prompt_length: int
    strengths: tuple[tuple[float, float, float], ...]
    acts: tuple[bool, ...] = field(init=False)

    def __post_init__(self):
        self.acts = tuple(start != 0 or slope != 0 for start, slope, _ in self.strengths)

    def key(self, steering: Sequence[tuple[int, bool]]) -> tuple[Any, ...]:
        """What its pages depend on besides tokens: strengths of steering guides, and where its reply begins for some.

        steering: the place of each such guide among the strengths, and whether it leaves the prompt as it is.
        """
        acting = [(i, reply_alone) for i, reply_alone in steering if self.acts[i]]
        placed = any(reply_alone or self.strengths[i][1] for i, reply_alone in acting)  # it depends on the place
        return (*((i, self.strengths[i]) for i, _ in acting), *([self.prompt_length] if placed else []))

    def __deepcopy__(self, memo: dict) -> "Row":
        return self  # the scheduler copies a request that it puts off; what was counted of it stays with it


def strength_numbers(alpha: float | LinearDecay) -> tuple[float, float, float]:
    """Start, slope and tokens of a strength: start + slope min(t / tokens, 1) at new token t."""
    if isinstance(alpha, LinearDecay):
        return alpha.start, alpha.end - alpha.start, max(1, alpha.tokens)
    return float(alpha), 0.0, 1.0


@dataclass(frozen=True)
class Step:
    """The n rows of a step: guided logits [n, V] in fp32, and what they were made of.

    hidden [n, d]; states of the acting guides, each [n, *]; alpha [n, acting guides]; positions [n] of the last token.
    """

    rows: Sequence[Any]
    logits: Tensor
    hidden: Tensor
    states: dict[str, States]
    alpha: Tensor
    positions: Tensor


@dataclass(frozen=True)
class StepTokens:
    """The tokens of a step [B, T], one row of all or a row for each request, and the pages they look at.

    mask: of the backbone, added to its scores; full: of what looks at everything; at: where the rows' last tokens lie
    in the one row, None where each has a row.
    """

    input_ids: Tensor
    positions: Tensor
    mask: Any
    full: Tensor | None
    pages: Pages
    at: Tensor | None

    def at_rows(self, x: Tensor) -> Tensor:
        """Of [B, T, *] the rows' last tokens, [n, *]."""
        return x[:, 0] if self.at is None else x[0, self.at]


class Rows(ContinuousBatchingLogitsProcessorList):
    """Stands where transformers keeps processors of logits: it is told of every step's requests, and edits nothing."""

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.current: list[Any] = []
        self.spans: list[tuple[Any, int]] = []  # every request of the step, and how many tokens it has there

    def check_kwargs(self, kwargs: dict) -> None:
        """Take what a request brings as it is: rows are made here, and not by users."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Tensor) -> Tensor:
        """Remember the requests of this step in the order of its tokens, and those that get one, of its logits."""
        self.spans = [(x.state.logit_processor_kwargs["row"], x.query_length) for x in requests_in_batch]
        self.current = [x.state.logit_processor_kwargs["row"] for x in requests_in_batch if x.has_new_token]
        return arg_storage


class PagedModel(nn.Module):
    """What transformers' manager needs of a model, around an aligned model that it leaves as it is.

    choose: from the rows of a step to scores [n, V], whose largest is the next token.
    Errors: guides and backbones that pages cannot hold, with the reason.
    """

    _supports_flash_attn = False  # guides look back through a mask, which it has none of

    def __init__(self, model: AlignedModel, choose: Callable[[Step], Tensor]):
        super().__init__()
        self.aligned, self.choose, self.rows = model, choose, Rows()
        self.names = tuple(model.config.guides or {})
        require_servable(model)
        guides = [model.guide(name) for name in self.names]
        self.steering = [(i, guide.spares_prompts) for i, guide in enumerate(guides) if guide.steers_layers]
        text = model.backbone.config.get_text_config(decoder=True)
        layers = self._layers_of_a_token()
        self._page = _shape_of_all(layers[: model.backbone.num_layers], model)
        kinds = layer_types(text)
        self._kind = kinds[0] if len(set(kinds)) == 1 else None
        self._places = self._placed(text.num_hidden_layers, layers[model.backbone.num_layers :])
        self.config = copy.deepcopy(text)
        for name, size in zip(("num_key_value_heads", "head_dim"), self._page, strict=True):
            if getattr(self.config, name, None) != size:  # else pages would have the shape of what it tells instead
                setattr(self.config, name, size)
        if added := sum(self._cuts(shape) for _, shapes in self._places.values() for shape in shapes):
            self.config.num_hidden_layers += added
            self.config.layer_types = [*kinds, *[FULL] * added]

    def _layers_of_a_token(self) -> list[Any]:
        """What backbone and guides put into a cache at one token, looked up rather than declared."""
        model = self.aligned
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            acting = Strengths(self.names, (None,) * len(self.names)), torch.ones(1, len(self.names))
            model.encode(token, past_key_values=cache, guides=self.names, strengths=acting)
        return list(cache.layers)

    def _placed(self, layer: int, layers: list[Any]) -> dict[str, tuple[list[int], list[Shape]]]:
        """For each guide that keeps something of a sequence, where its layers begin and the shapes of their keys."""
        places, cached = {}, iter(layers)
        for name, entry in self.aligned.guides.entries.items():
            count = entry["cache_layers"]
            keys = [as_stored(next(cached).keys, self.dtype) for _ in range(count)]
            shapes = [(x.shape[1], x.shape[3]) for x in keys]
            first = []
            for shape in shapes:
                first.append(layer)
                layer += self._cuts(shape)
            if count:
                places[name] = (first, shapes)
        return places

    def _cuts(self, shape: Shape) -> int:
        return ceil(shape[0] * shape[1] / (self._page[0] * self._page[1]))

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.aligned.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.aligned.device

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Let transformers believe what it needs to make masks; the backbone reads them with the attention it has."""
        self.config._attn_implementation = attn_implementation

    def _supports_logits_to_keep(self) -> bool:
        return True

    def _get_logits_processor(self, generation_config: Any) -> LogitsProcessorList:
        del generation_config
        return LogitsProcessorList()

    def bytes_per_token(self) -> int:
        """What the pages hold of a token."""
        return 2 * self.config.num_hidden_layers * self._page[0] * self._page[1] * self.dtype.itemsize

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | dict[str, Tensor],
        logits_indices: Tensor,
        cache: Any,
        **options: Any,
    ) -> CausalLMOutput:
        """Scores [1, n, V] of the rows of a step; input_ids [1, T]; options are the paged cache's own."""
        rows, model = self.rows.current, self.aligned
        tokens = self._tokens(input_ids, position_ids, attention_mask, logits_indices, Pages(cache, options))
        active = [name for i, name in enumerate(self.names) if any(row.acts[i] for row in rows)]
        with tokens.pages.attention():
            output, layers = model.backbone(
                tokens.input_ids,
                attention_mask=tokens.mask,
                position_ids=tokens.positions,
                past_key_values=tokens.pages,
                layers=model.guides.layers_read({*active, *self._places}),
            )
            hidden = output.last_hidden_state
            guide_states = self._looking_back(tokens, hidden, layers)
        kept, states = map_tokens(tokens.at_rows, hidden, guide_states)
        layers_kept = {i: tokens.at_rows(x) for i, x in layers.items()}
        if not rows:
            return CausalLMOutput(logits=kept.new_zeros(1, 0, model.backbone.shape.vocab_size))  # pyright: ignore
        states |= self._of_tokens([name for name in active if name not in self._places], kept, layers_kept)
        states = {name: states[name] for name in active}
        positions = position_ids[0, logits_indices[: len(rows)]]
        alpha = self._strengths(rows, positions)[:, [self.names.index(name) for name in active]]
        logits = model.distributions(kept, states, alpha)["policy"].float()
        scores = self.choose(Step(rows, logits, kept, states, alpha, positions))
        return CausalLMOutput(logits=scores[None])  # pyright: ignore[reportArgumentType]

    def _tokens(
        self, input_ids: Tensor, positions: Tensor, attention_mask: Any, logits_indices: Tensor, pages: Pages
    ) -> "StepTokens":
        """A row for each request where each has one token and looks at everything; else one row of all tokens."""
        at = logits_indices[: len(self.rows.current)]
        if input_ids.shape[1] == len(at) and pages.have_rows:
            pages = pages.by_row()
            mask = pages.mask(self.dtype)
            return StepTokens(input_ids.T, positions.T, mask, mask, pages, None)
        masks = attention_mask if isinstance(attention_mask, dict) else {self._kind or FULL: attention_mask}
        mask = masks if self._kind is None else masks[self._kind]
        return StepTokens(input_ids, positions, mask, masks.get(FULL), pages, at)

    def _looking_back(self, tokens: "StepTokens", hidden: Tensor, layers: dict[int, Tensor]) -> dict[str, States]:
        """States of every guide that looks back, acting or not: other requests will read its pages."""
        if not self._places:
            return {}
        slots: dict[str, CacheSlot] = {
            name: PagedSlot(tokens.pages, first, shapes, self._page, self.dtype)
            for name, (first, shapes) in self._places.items()
        }
        full: Any = tokens.full
        keep = slice(None) if tokens.at is None else tokens.at
        features = Features(
            hidden, layers, full == 0, tokens.positions, tokens.input_ids, full, keep, self.aligned.backbone.logits
        )
        strengths = self._at_tokens(tokens) if self.steering else {}
        return self.aligned.encode_features(features, tuple(self._places), slots, strengths)

    def _at_tokens(self, tokens: "StepTokens") -> dict[str, TokenStrength]:
        """The strength of every steering guide at all tokens of the step [B, T]."""
        shape, positions = tokens.positions.shape, tokens.positions.flatten()
        rows = [row for row, _ in self.rows.spans]
        counts = torch.tensor([count for _, count in self.rows.spans])
        counts[-1] += len(positions) - counts.sum()  # a step may be filled up
        of = torch.arange(len(rows)).repeat_interleave(counts).to(positions.device)  # the row of each token
        alphas = self._strengths(rows, positions, of)
        new = (positions + 1 >= _prompt_lengths(rows, positions)[of]).view(shape)
        return {self.names[i]: TokenStrength(alphas[:, i].view(shape), new) for i, _ in self.steering}

    def _of_tokens(self, names: list[str], kept: Tensor, layers: dict[int, Tensor]) -> dict[str, States]:
        """States [n, *] of guides that say of a token what it says by itself: computed at the rows only."""
        hidden = kept[None]
        features = Features(hidden, {i: x[None] for i, x in layers.items()}, logits=self.aligned.backbone.logits)
        states = self.aligned.encode_features(features, names)
        return {name: {key: kept if x is hidden else x[0] for key, x in each.items()} for name, each in states.items()}

    def _strengths(self, rows: Sequence[Row], positions: Tensor, of: Tensor | slice = slice(None)) -> Tensor:
        """Strengths [n, guides] of what the tokens at these positions predict; of: the row of each, else one a row."""
        numbers = torch.tensor([row.strengths for row in rows], device=positions.device).view(len(rows), -1, 3)[of]
        t = (positions + 1 - _prompt_lengths(rows, positions)[of]).clamp_min(0)[:, None]
        start, slope, tokens = numbers.unbind(-1)
        return start + slope * (t / tokens).clamp(max=1.0)


def _prompt_lengths(rows: Sequence[Row], like: Tensor) -> Tensor:
    return torch.tensor([row.prompt_length for row in rows], device=like.device)


def require_servable(model: AlignedModel) -> None:
    """Refuse, by name and with the reason, what pages cannot hold."""
    attention = model.backbone.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise DualHeadError(f"Attention '{attention}' cannot be served. Load it with attn_implementation='sdpa'.")
    kinds = {*layer_types(model.backbone.config)}
    if others := kinds - {FULL, "sliding_attention"}:
        raise _unservable(model, f"pages hold no layers of {', '.join(sorted(others))}")
    for name in model.config.guides or {}:
        if reason := model.guide(name).why_not_paged:
            raise DualHeadError(f"The guide '{name}' cannot be served: {reason}. Detach it, or use generate.")
    # A step is one row of many requests. Windows have masks of their own, of which what is tried there knows nothing.
    if kinds == {FULL} and (reason := model.backbone.why_no_shared_prompts(longest=0)):
        raise _unservable(model, reason)


def _shape_of_all(layers: list[Any], model: AlignedModel) -> Shape:
    """The shape that keys and values of a token have in all layers. Errors: they have several."""
    shapes = {(x.shape[1], x.shape[3]) for layer in layers for x in (layer.keys, layer.values)}
    if len(shapes) > 1:
        several = ", ".join(f"{heads} x {width}" for heads, width in sorted(shapes))
        raise _unservable(model, f"its keys and values are {several}, and pages have one shape")
    return shapes.pop()


def _unservable(model: AlignedModel, reason: str) -> DualHeadError:
    name = type(model.backbone.lm).__name__
    return DualHeadError(f"{name} cannot be served: {reason}. Use generate, or another backbone.")
