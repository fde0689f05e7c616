"""What an exported classifier is held to: the classifier's own logits on a few random rows, padded on either side.

It knows ids and logits, and no files.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dual_head.backbone.decoder import Decoder
from dual_head.classify.head import last_tokens
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.errors import DualHeadError

LENGTHS = (7, 1, 12, 4)  # tokens of the rows
SIDES = ("right", "left")
# Of the largest logit, in fp32; in a shorter format, so many of its roundings. Sums that are taken in another order
# differ more the deeper the model, and a wrong weight shows in the first or second digit.
TOLERANCE = 1e-4
FOLDED = 1e-3
ROUNDINGS = 16


class Pooled(nn.Module):
    """What is exported: a decoder without its lm_head, and a class head in fp32 at each row's last token."""

    def __init__(self, lm: PreTrainedModel, head: nn.Module):
        super().__init__()
        self.decoder, self.head = Decoder(lm), copy.deepcopy(head).cpu().requires_grad_(False)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, K] of ids and mask [B, T]."""
        positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        hidden = self.decoder(input_ids, attention_mask=attention_mask, position_ids=positions)[0].last_hidden_state
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self.head(hidden[rows, last_tokens(input_ids, attention_mask)])


@torch.no_grad()
def check_merged(model: DualHeadReasoningModel, pooled: Pooled) -> None:
    """Hold a decoder with its adapters folded in to the classifier it is from. Errors: more than rounding explains."""
    for ids, mask in tried(model, pad=0):
        expected = scored(model, ids, mask)
        difference = largest(pooled(ids, mask) - expected)
        if not difference <= allowance(expected, model.dtype, tolerance=FOLDED):
            raise DualHeadError(
                f"With its adapters folded in, the classifier gives other logits: they differ by {difference:.2g}. "
                "Load it with dtype='float32', which rounds less; if that does not help, please report this."
            )


def tried(model: DualHeadReasoningModel, *, pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random rows of several lengths, one of which ends in the end-of-sequence token: ids and mask [B, T], twice.

    pad: the id of padding, which is on the right the first time, and then on the left.
    """
    vocabulary, longest = model.decoder.shape.vocab_size, max(LENGTHS)
    end = model.decoder.config.eos_token_id
    for side in SIDES:
        draw = torch.Generator().manual_seed(0)
        ids, mask = torch.full((len(LENGTHS), longest), pad), torch.zeros(len(LENGTHS), longest, dtype=torch.long)
        for row, length in enumerate(LENGTHS):
            tokens = torch.randint(vocabulary, (length,), generator=draw)
            tokens = torch.where(tokens == pad, (tokens + 1) % vocabulary, tokens)
            if row == 0 and isinstance(end, int) and end != pad:
                tokens[-1] = end
            at = slice(longest - length, longest) if side == "left" else slice(0, length)
            ids[row, at], mask[row, at] = tokens, 1
        yield ids, mask


@torch.no_grad()
def scored(model: DualHeadReasoningModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The classifier's own logits [B, K], on the CPU; padding by its mask, whatever its id."""
    readable = torch.where(mask.bool(), ids, 0)
    return model(readable.to(model.device), attention_mask=mask.to(model.device)).logits.float().cpu()


def largest(values: Tensor) -> float:
    """The largest absolute value; NaN where there is one."""
    return values.float().abs().max().item()


def allowance(logits: Tensor, *dtypes: torch.dtype, tolerance: float = TOLERANCE) -> float:
    """How far rounding may move logits."""
    roundings = [ROUNDINGS * torch.finfo(dtype).eps for dtype in dtypes]
    return max(1.0, largest(logits)) * max(tolerance, *roundings)
