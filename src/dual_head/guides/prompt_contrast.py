"""Another prompt as a guide: what the backbone says under one system prompt, less what it says under another.

    positive             negative            delta                                        method
    None                 "You are rude."     z(request) - z(under the negative prompt)    negative prompts
    "You are polite."    "You are rude."     z(under one) - z(under the other)            contrast of prompts
    None                 "" (no prompt)      z(request) - z(without its system turn)      context-aware decoding, CFG

A request's system turn is replaced: its tokens are read, and nothing may look at them. What stands in its place is
read once, and its keys are shared by all rows.

    the request       [ system turn of the request | user ... | reply ... ]
    its other prompt  [ negative prompt | . . . .  | user ... | reply ... ]      . : no key of anything

No weights of its own: it runs the backbone itself, all its prompts as rows of one forward. Every token's place in it
follows from the tokens before, so a request can be read whole, in pieces or token by token. It knows token ids alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from dual_head.backbone.cache import CacheSlot, KeysValues, LayerView, PromptedCache
from dual_head.backbone.decoder import BRANCH_TOLERANCE, Backbone, BackboneShape
from dual_head.backbone.features import Features
from dual_head.backbone.joint import JointPart, Prompted
from dual_head.data.system_turn import header, layout
from dual_head.errors import DualHeadError
from dual_head.guides.base import Guide, GuideConfig, Parameters, States
from dual_head.ops.masks import layer_masks, position_mask

POSITIVE, NEGATIVE = "positive", "negative"


@dataclass(frozen=True, kw_only=True)
class PromptContrastConfig(GuideConfig):
    """Options of the contrast of prompts.

    positive: the system prompt of the first term; None: the request as it is; negative: that of the second; "": none,
    as the chat template writes a conversation without one. Token ids instead of a text go before the whole request.
    ids: what `with_tokenizer` makes of the texts.
    """

    positive: str | list[int] | None = None
    negative: str | list[int] | None = ""
    ids: dict[str, list[int]] | None = None

    def __post_init__(self):
        if self.positive == self.negative:
            raise DualHeadError("Both prompts are the same, so nothing would change. Give another positive or negative.")
        if [] in (self.positive, self.negative):
            raise DualHeadError("A prompt of token ids has at least one. For no system prompt, give an empty text.")

    @property
    def prompts(self) -> dict[str, str | list[int]]:
        """The prompts that are not the request as it is: {"positive" or "negative": text or ids}."""
        sides = {POSITIVE: self.positive, NEGATIVE: self.negative}
        return {name: prompt for name, prompt in sides.items() if prompt is not None}

    def with_tokenizer(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> "PromptContrastConfig":
        """Write texts as token ids. Errors: a chat template that takes no system prompt; nothing to leave out."""
        texts = {name: prompt for name, prompt in self.prompts.items() if isinstance(prompt, str)}
        if not texts:
            return replace(self, ids=None)
        reader = tokenizer()
        ids = {name: header(text, reader) for name, text in texts.items()}
        for name, tokens in ids.items():
            if not tokens or not (texts[name] or reader.chat_template):
                raise DualHeadError(
                    f"The {name} prompt is empty, and without a chat template a request has no system turn to leave "
                    "out. Give it a text."
                )
        return replace(self, ids=ids | layout(reader))


class Prompt(NamedTuple):
    """What stands before every row: for each layer, keys and values [prompts, heads, P, width]; lengths [prompts].

    patterns: the token ids of `system_turn.layout`, those that there are.
    """

    layers: list[KeysValues]
    lengths: Tensor
    patterns: dict[str, Tensor]

    @property
    def width(self) -> int:
        """P, the tokens of the longest; shorter ones are padded on the left."""
        return self.layers[0][0].shape[-2]


class PromptContrast(Guide):
    """delta_t = z_t(positive prompt) - z_t(negative prompt), of one frozen backbone.

    Sources: classifier-free guidance and negative prompts (Sanchez et al. 2023), context-aware decoding (Shi et al.
    2023).
    """

    Config = PromptContrastConfig
    config: PromptContrastConfig
    reads_tokens = True
    trainable = False

    def __init__(self, config: PromptContrastConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self._backbone: tuple[Backbone, ...] = ()  # borrowed, so no submodule
        self._prompt: tuple[Any, Prompt] | None = None

    def attach(self, backbone: Backbone) -> None:
        """Take the backbone, which it runs. Errors: prompts of text that were not written as token ids."""
        written = self.config.ids or {}
        if any(isinstance(prompt, str) and name not in written for name, prompt in self.config.prompts.items()):
            raise DualHeadError("Prompts of text need a tokenizer. Build the model with tokenizer=..., or give token ids.")
        self._backbone = (backbone,)

    # ---- what it needs ---------------------------------------------------------------------------------

    @property
    def cache_layers(self) -> int:
        """One for the tokens it has read, and those of the backbone for each prompt."""
        return 1 + self.shape.num_layers * len(self.config.prompts)

    @property
    def prompt_tokens(self) -> int:
        """The longest of its prompts."""
        return max(map(len, self._ids))

    @property
    def reads_base(self) -> bool:
        """Whether one of the terms is the request as it is."""
        return len(self.config.prompts) == 1

    @property
    def shares_prompts(self) -> bool:
        """Not tried."""
        return False

    @property
    def why_not_paged(self) -> str:
        """Pages hold tokens of the sequence alone."""
        return "a contrast of prompts reads every sequence behind other prompts, whose keys are in no page"

    @property
    def extra_forwards(self) -> float:
        """One, which has the rows of both prompts."""
        return 1

    def executed(self, stored: int, backbone: Parameters) -> int:
        """The backbone, read once for both prompts."""
        del stored
        return backbone.whole

    @property
    def joint_parts(self) -> tuple[JointPart, ...]:
        """The backbone as it is, once for each prompt; none where layers look back through a window."""
        layers = self.shape.num_layers
        if getattr(self._backbone[0].config.get_text_config(decoder=True), "sliding_window", None):
            return ()
        return tuple(JointPart({}, 1 + i * layers) for i in range(len(self.config.prompts)))

    @property
    def _ids(self) -> list[list[int]]:
        """The token ids of each prompt."""
        written = self.config.ids or {}
        return [written[name] if isinstance(x, str) else x for name, x in self.config.prompts.items()]

    # ---- sequence part ---------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Run the backbone under each prompt: its last hidden states, each [B, T, d]."""
        if features.input_ids is None:
            raise DualHeadError("A contrast of prompts reads token ids, so inputs_embeds are not enough for it.")
        (backbone,), ids, prompt = self._backbone, features.input_ids, self._shared_prompt()
        layers, count = backbone.num_layers, len(self.config.prompts)
        parts = [
            LayerView(DynamicCache(), 0, layers) if cache is None else cache.view(layers, 1 + i * layers)
            for i in range(count)
        ]
        places = self._places(ids, features.padding, cache, prompt)
        front = [partial(tuple, layer) for layer in prompt.layers]
        hidden = _run(backbone, ids.repeat(count, 1), *places, PromptedCache(parts, front))
        return dict(zip(self.config.prompts, hidden.chunk(count), strict=True))

    @torch.no_grad()
    def prompted(self, input_ids: Tensor, padding: Tensor | None, cache: CacheSlot) -> Prompted:
        """Say where the new tokens of a joint step stand behind each prompt."""
        prompt = self._shared_prompt()
        positions, _, visible = self._places(input_ids, padding, cache, prompt)
        return Prompted(positions, visible, prompt.layers)

    def from_joint_step(self, hidden: Tensor, logits: Tensor, base_logits: Tensor) -> States:
        """Keep the logits, which came out of one product with the backbone's."""
        del hidden
        names = [f"{name}_logits" for name in self.config.prompts]
        return dict(zip(names, logits.chunk(len(names)), strict=True)) | {"base_logits": base_logits}

    def _places(
        self, new: Tensor, padding: Tensor | None, cache: CacheSlot | None, prompt: Prompt
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the new tokens [prompts B, T] and of all behind each prompt [prompts B, P + K]; which are seen.

            tokens      [ . s s s u u ]    . : padding, s: the system turn, u: the user's
            positions   [ - - - - 3 4 ]    behind a prompt of 3 tokens
        """
        ids, real, columns = _history(new, padding, cache)
        kept = real & ~_header(ids, real, prompt.patterns)
        count, rows, device = len(self.config.prompts), len(ids), ids.device
        # Of every token behind each prompt [prompts, B, K], and of the tokens of the prompts [prompts, B, P].
        places = prompt.lengths[:, None, None] - 1 + kept.cumsum(1)
        width = prompt.width
        front = torch.arange(width, device=device) + prompt.lengths[:, None] - width
        front = front[:, None].expand(-1, rows, -1)
        keys = torch.cat([front, places], -1).flatten(0, 1)
        visible = torch.cat([front >= 0, kept.expand(count, -1, -1)], -1).flatten(0, 1)
        return places.index_select(-1, columns).flatten(0, 1), keys, visible

    def _shared_prompt(self) -> Prompt:
        """The keys of the prompts: read once, and again where the backbone is in another place or precision."""
        (backbone,) = self._backbone
        weight: Any = backbone.lm.get_input_embeddings().weight
        place = (weight.device, backbone.lm.dtype)
        if self._prompt is None or self._prompt[0] != place:
            self._prompt = (place, self._read(backbone, weight.device))
        return self._prompt[1]

    def _read(self, backbone: Backbone, device: torch.device) -> Prompt:
        with torch.inference_mode(False):  # what is kept may be read in any mode
            ids = [torch.tensor(ids, device=device) for ids in self._ids]
            written = {name: x for name, x in (self.config.ids or {}).items() if x and name not in self.config.prompts}
            patterns = {name: torch.tensor(x, device=device) for name, x in written.items()}
            lengths = torch.tensor([len(x) for x in ids], device=device)
            return Prompt(_keys_of(ids, backbone), lengths, patterns)

    # ---- vocabulary part -------------------------------------------------------------------------------

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """z(positive) - z(negative): [n, V]."""
        (backbone,), names = self._backbone, self.config.prompts
        if any(f"{name}_logits" in states for name in names):
            logits = {name: states[f"{name}_logits"] for name in names}
        else:
            products = backbone.logits(torch.stack([states[name] for name in names]).contiguous())
            logits = dict(zip(names, products, strict=True))
        terms = [logits.get(side, base) for side in (POSITIVE, NEGATIVE)]
        positive, negative = (x for x in terms if x is not None)
        return positive - negative


# ---- tokens and their places -------------------------------------------------------------------------------


def _history(new: Tensor, padding: Tensor | None, cache: CacheSlot | None) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens so far [B, K], which are real, bool [B, K], and the columns [T] of the new ones [B, T].

    A static cache has room for more tokens, which are not real yet.
    """
    columns = torch.arange(new.shape[1], device=new.device)
    if cache is not None:  # a static one hands out its counter itself, and moves it on
        columns = columns + cache.cache.get_seq_length(cache.first_layer)
    real = torch.ones_like(new) if padding is None else padding.index_select(1, columns).to(new.dtype)
    if cache is None:
        return new, real.bool(), columns
    ids, marks = cache.update(new[:, None, :, None], real[:, None, :, None])
    return ids[:, 0, :, 0], marks[:, 0, :, 0].bool(), columns


def _header(ids: Tensor, real: Tensor, patterns: Mapping[str, Tensor]) -> Tensor:
    """bool [B, K]: the tokens of what precedes the user's text, each told by itself and the tokens before it.

        opening [1 2], closing [8 9]    ids [ . 1 2 5 6 8 9 5 1 2 ]    header [ . x x x x x x . . . ]
    """
    # How far each token stands behind the first real one of its row.
    offsets = torch.arange(ids.shape[1], device=ids.device) - real.int().argmax(1, keepdim=True)
    result = torch.zeros_like(real)
    for name in ("bare", "first"):
        if name in patterns:
            result |= _agrees(ids, offsets, patterns[name]) & (offsets < len(patterns[name]))
    if "opening" in patterns:
        opening, closing = patterns["opening"], patterns["closing"]
        closed = (_ends(ids, closing) & (offsets >= len(opening) + len(closing) - 1)).cumsum(1) > 0
        before = F.pad(closed[:, :-1], (1, 0))
        result |= _agrees(ids, offsets, opening) & ~before
    return result & real & (offsets >= 0)


def _agrees(ids: Tensor, offsets: Tensor, pattern: Tensor) -> Tensor:
    """bool [B, K]: whether the row up to each token begins as the pattern does, as far as both reach."""
    expected = pattern[offsets.clamp(0, len(pattern) - 1)]
    different = (ids != expected) & (offsets >= 0) & (offsets < len(pattern))
    return different.cumsum(1) == 0


def _ends(ids: Tensor, pattern: Tensor) -> Tensor:
    """bool [B, K]: whether the pattern ends at each token."""
    windows = F.pad(ids, (len(pattern) - 1, 0), value=-1).unfold(1, len(pattern), 1)
    return (windows == pattern).all(-1)


# ---- the keys of prompts -----------------------------------------------------------------------------------


@torch.no_grad()
def _keys_of(prompts: Sequence[Tensor], backbone: Backbone) -> list[KeysValues]:
    """Run the backbone over prompts [P], each; for each layer, keys and values [prompts, heads, P, width].

    Errors: a backbone that does not keep to our masks and positions. Tried rather than looked up, since no list of
    architectures would stay true.
    """
    if places := backbone.special_layers.recurrent:
        why = f"its layer {places[0]} carries a state past every mask"
        raise DualHeadError(_REFUSED.format(type(backbone.lm).__name__, why))
    width = max(map(len, prompts))
    ids = torch.stack([F.pad(x, (width - len(x), 0)) for x in prompts])
    positions = torch.stack([torch.arange(-(width - len(x)), len(x), device=x.device) for x in prompts])
    cache, layers = LayerView(DynamicCache(), 0, backbone.num_layers), []
    try:
        _run(backbone, ids, positions, positions, positions >= 0, cache)
        filled: list[Any] = cache.layers
        layers = [(layer.keys, layer.values) for layer in filled]
        # A prompt, and behind it two of its own tokens that another, which nothing may see, stands between.
        first, tail = prompts[0], prompts[0][[0, -1]]
        plain, _ = backbone(torch.cat([first, tail])[None])
        front = [partial(tuple, (k[:1], v[:1])) for k, v in layers]
        behind = PromptedCache([LayerView(DynamicCache(), 0, backbone.num_layers)], front)
        places = torch.cat([positions[0], len(first) + torch.tensor([0, 0, 1], device=first.device)])[None]
        visible = torch.cat([positions[0] >= 0, torch.tensor([True, False, True], device=first.device)])[None]
        tried = _run(backbone, tail[None, [0, 0, 1]], places[:, -3:], places, visible, behind)[0, [0, 2]].float()
        expected = plain.last_hidden_state[0, -2:].float()
        why = "it does not keep to masks and positions" if _apart(tried, expected, backbone) else None
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AttributeError, IndexError) as error:
        why = f"its attention takes no mask of our own ({str(error).splitlines()[0]})"
    if why:
        raise DualHeadError(_REFUSED.format(type(backbone.lm).__name__, why))
    return layers


def _run(backbone: Backbone, ids: Tensor, queries: Tensor, keys: Tensor, visible: Tensor, cache: Any) -> Tensor:
    """The hidden states [B, T, d] of tokens at their positions, see `position_mask`."""
    mask = lambda window=None: position_mask(queries, keys, visible, window)  # noqa: E731
    output, _ = backbone(
        ids,
        attention_mask=layer_masks(backbone.config, backbone.lm.dtype, mask),
        position_ids=queries.clamp_min(0),
        past_key_values=cache,
    )
    return output.last_hidden_state


def _apart(tried: Tensor, expected: Tensor, backbone: Backbone) -> bool:
    return bool((tried - expected).norm() > BRANCH_TOLERANCE[backbone.lm.dtype.itemsize] * expected.norm())


_REFUSED = "{} cannot be read behind other prompts: {}. Use another backbone, or leave the contrast of prompts out."

GUIDE = PromptContrast
