"""What a guide is: a sequence part that encodes, and a token-local part that scores each token.

A guide turns the backbone's features into states (token by token, through a cache of its own), and states
into one of two deltas: a logit delta [V], added to the logits, or a hidden delta [d], added to the hidden state
before the lm_head. A gate may scale it: delta = gate * logit_delta, or gate * hidden_delta. This file knows no
particular guide and no training.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dual_head.backbone.cache import CacheSlot
from dual_head.backbone.decoder import Backbone, BackboneShape
from dual_head.backbone.features import Features, TokenStrength
from dual_head.backbone.joint import JointPart, Prompted, Shifts
from dual_head.errors import DualHeadError
from dual_head.guides.layers import CausalGate, LinearMap
from dual_head.options import build

States = dict[str, Tensor]  # each [B, T, *], or [n, *] once tokens have been picked


@dataclass(frozen=True)
class Parameters:
    """How many parameters a causal LM has: in all (tied ones once), in its decoder, and in its lm_head."""

    whole: int
    decoder: int
    head: int

    @classmethod
    def of(cls, lm: Any) -> "Parameters":
        """Count those of a model, of which nothing but sizes is read."""
        parts = (lm, lm.base_model, lm.get_output_embeddings())
        return cls(*(sum(p.numel() for p in part.parameters()) if part is not None else 0 for part in parts))


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """What a guide needs to be built again: plain values only."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GuideConfig":
        """Build from plain values. Errors: unknown keys and wrong types, see `options.build`."""
        return build(cls, values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        return asdict(self)

    def with_tokenizer(self, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> "GuideConfig":
        """Return the config with its texts as token ids too; the tokenizer is loaded only where there is one."""
        del tokenizer
        return self

    def moved_from(self, backbone: str | None) -> "GuideConfig":
        """Return the config with which the guide goes on beside another backbone than the one named."""
        del backbone
        return self


class Guide(nn.Module):
    """Something that steers a frozen backbone.

        z = lm_head(h + sum_k alpha_k g_k hidden_delta_k) + sum_k alpha_k g_k logit_delta_k

    A guide has a logit delta (space "vocabulary") or a hidden delta (space "hidden"), computed only at the positions
    that are scored. Subclasses say what they need besides the last hidden state. causal_gate: the attention that gives
    g_t, where the guide has one; its keys and values are a layer of the generation cache.
    """

    Config: ClassVar[type[GuideConfig]]
    space: ClassVar[Literal["vocabulary", "hidden"]] = "vocabulary"
    reads_tokens: ClassVar[bool] = False  # True for what reads token ids, not the backbone's hidden states
    trainable: bool = True  # False for what only acts during decoding; objectives refuse it
    # True for what adds alpha v to hidden states between layers: its states are of one alpha, and their weight is 1.
    steers_layers: ClassVar[bool] = False

    def __init__(self, config: GuideConfig, shape: BackboneShape):
        super().__init__()
        self.config = config
        self.shape = shape
        self.causal_gate: CausalGate | None = None

    # ---- what it needs ---------------------------------------------------------------------------------

    @property
    def cache_layers(self) -> int:
        """How many layers of the generation cache this guide fills."""
        return 0 if self.causal_gate is None else 1

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Which of the backbone's hidden states it reads besides the last (0 is the embedding)."""
        return ()

    @property
    def reads_base(self) -> bool:
        """Whether its logit delta depends on the backbone's logits."""
        return False

    @property
    def shares_prompts(self) -> bool:
        """Whether it reads rows that hold two continuations of one prompt, kept apart by the features' mask."""
        return True

    @property
    def spares_prompts(self) -> bool:
        """Of a guide that steers layers, whether it leaves what precedes the reply as it is."""
        return False

    @property
    def why_not_paged(self) -> str | None:
        """Why the pages of continuous batching cannot hold what it keeps of a sequence; None where they can."""
        return None

    @property
    def extra_forwards(self) -> float:
        """How many whole language models it runs per token, besides the backbone."""
        return 0

    @property
    def prompt_tokens(self) -> int:
        """How many tokens it reads before every prompt, which take room of the backbone's context."""
        return 0

    @property
    def joint_parts(self) -> tuple[JointPart, ...]:
        """The models that it runs, where all are the backbone with changes of linear layers; else none.

        While decoding, such a guide runs as more rows of the backbone's own forward, and `from_joint_step` follows.
        """
        return ()

    def executed(self, stored: int, backbone: "Parameters") -> int:
        """How many parameters it reads per token, beyond those that the backbone reads by itself.

        stored: how many it stores. What runs twice is read twice.
        """
        del backbone
        return stored

    def attach(self, backbone: Backbone) -> None:
        """Take what it shares with the backbone it now belongs to; called once, when a model takes it in."""

    # ---- what it computes ----------------------------------------------------------------------------------

    def encode(self, features: Features, cache: CacheSlot | None) -> States:
        """Do what depends on the sequence: features [B, T, d] to token-local states, each [B, T, *].

        Of a guide that reads h_t alone: "hidden", and "gate_logit" where it has a causal gate.
        """
        gate_states = {} if self.causal_gate is None else {"gate_logit": self.causal_gate(features, cache)}
        return {"hidden": features.hidden, **gate_states}

    def prompted(self, input_ids: Tensor, padding: Tensor | None, cache: CacheSlot) -> Prompted | None:
        """Say how its parts read new tokens [B, 1] of a joint step; None for as the backbone does."""
        del input_ids, padding, cache
        return None

    def shifts(self, strength: TokenStrength) -> Shifts:
        """What is added to layers' outputs in its rows at a strength, of a guide that steers layers."""
        del strength
        return {}

    def from_joint_step(self, hidden: Tensor, logits: Tensor, base_logits: Tensor) -> States:
        """Return the states of a step that was run with the backbone.

        hidden [parts B, 1, d] and logits [parts B, 1, V] of this guide's `joint_parts`; base_logits [B, 1, V] of the
        backbone.
        """
        raise NotImplementedError(f"{type(self).__name__} does not run with the backbone")

    def logit_delta(self, states: States, base: Tensor | None) -> Tensor:
        """Do what is as wide as the vocabulary: token-local states [n, *] to [n, V].

        base: the backbone's logits [n, V] where `reads_base` is True; else perhaps None.
        """
        raise NotImplementedError(f"{type(self).__name__} has no logit delta: it changes the hidden state")

    def hidden_delta(self, states: States) -> Tensor:
        """Return what is added to the hidden state: token-local states [n, *] to [n, d]."""
        raise NotImplementedError(f"{type(self).__name__} has no hidden delta: it adds to the logits")

    @property
    def hidden_delta_map(self) -> LinearMap | None:
        """The map of states["hidden"] that `hidden_delta` is; None where it is more. Maps of guides are summed."""
        return None

    def base_logits(self, states: States) -> Tensor | None:
        """Return the backbone's logits [n, V] where the guide has computed them, so that they are computed once."""
        return states.get("base_logits")

    def gate_logit(self, states: States) -> Tensor | None:
        """Return the gate's logit s [n] in fp32, gate = sigmoid(s); None for a gate that does not move."""
        s = states.get("gate_logit")
        return None if s is None else s.float()

    def gate(self, states: States) -> Tensor | float:
        """Return the gate [n] in (0, 1), or the constant it is."""
        s = self.gate_logit(states)
        return 1.0 if s is None else s.sigmoid()

    def reward(self, logit_delta: Tensor, base: Tensor) -> Tensor:
        """Logits [n, V] of the distribution the guide itself stands for, which preferences train."""
        return base + logit_delta

    def reward_logits(self, states: States, lm_head: Tensor) -> Tensor | None:
        """Those logits from one product with the lm_head's matrix [V, d], where h -> W h is all there is to it.

        None where there is no such product, or it would lose what the guide adds to rounding.
        """
        del states, lm_head
        return None

    def candidates(self, states: States, base: Tensor) -> Tensor | None:
        """bool [n, V], the tokens it allows at all; None for every token."""
        del states, base
        return None

    # ---- what is stored of it ----------------------------------------------------------------------------

    def stored(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds; what the guide borrows from elsewhere is not among them."""
        return self.state_dict()

    def linear_map(self) -> tuple[Tensor, Tensor | None]:
        """W and b of a logit delta W h + b (or hidden delta, W [d, d]) with the gate multiplied in.

        Errors: a guide that is not a linear map of h_t, with the reason.
        """
        raise DualHeadError(f"{type(self).__name__} is not a linear map of the hidden state, so it cannot be merged.")
