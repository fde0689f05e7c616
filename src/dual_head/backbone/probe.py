"""What a model says of a few fixed tokens: small enough for a config, and alike in every precision of one model.

It knows a decoder's logits, and nothing of guides.
"""

from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dual_head.options import build

if TYPE_CHECKING:
    from dual_head.backbone.decoder import Decoder

ROWS, LENGTH, PROBED, TOP = 4, 16, 8, 8
LEAST = 1e-6  # of a probability


@dataclass(frozen=True)
class Probe:
    """The likeliest next tokens at the last M of T fixed tokens.

    ids [B, T]; tokens [B, M, K] and their log_probs [B, M, K] in nats.
    """

    ids: list[list[int]]
    tokens: list[list[list[int]]]
    log_probs: list[list[list[float]]]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Probe":
        """Read back what `as_dict` wrote. Errors: values that are missing, or of other types."""
        return build(cls, values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON config."""
        return asdict(self)

    def divergence(self, decoder: "Decoder") -> float:
        """Mean KL(recorded || decoder) in nats, over the recorded tokens and one class for all others."""
        recorded = torch.tensor(self.log_probs)
        current = _log_probs(decoder, torch.tensor(self.ids), recorded.shape[1])
        current = current.gather(-1, torch.tensor(self.tokens))
        p, q = (torch.cat([x, _others(x)], -1) for x in (recorded, current))
        return (p.exp() * (p - q)).sum(-1).mean().item()


def probe(decoder: "Decoder") -> Probe:
    """Probe a decoder, in one pass over few tokens."""
    ids = _ids(decoder.shape.vocab_size)
    top = _log_probs(decoder, torch.tensor(ids), PROBED).topk(min(TOP, decoder.shape.vocab_size))
    log_probs = [[[round(x, 5) for x in token] for token in row] for row in top.values.tolist()]
    return Probe(ids, top.indices.tolist(), log_probs)


def _ids(vocabulary: int) -> list[list[int]]:
    """Ids [B, T] that are the same everywhere, small ones often: special tokens, and what a tokenizer merged first."""
    rng = Random(0)
    return [[int(vocabulary ** rng.random()) for _ in range(LENGTH)] for _ in range(ROWS)]


@torch.no_grad()
def _log_probs(decoder: "Decoder", ids: Tensor, probed: int) -> Tensor:
    """Log-probabilities [B, M, V] of what follows each of the last M tokens, in fp32 on the CPU."""
    embedding: Any = decoder.lm.get_input_embeddings()
    hidden = decoder(ids.to(embedding.weight.device))[0].last_hidden_state[:, -probed:]
    return decoder.logits(hidden).float().log_softmax(-1).cpu()


def _others(log_probs: Tensor) -> Tensor:
    """Log-probability [..., 1] of all tokens but these [..., K]."""
    return (1 - log_probs.exp().sum(-1, keepdim=True)).clamp_min(LEAST).log()
