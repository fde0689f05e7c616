"""The strengths of running requests: from the sampler's bookkeeping to a table that the model reads.

    table [slots, K]    a row per request, written when a request comes or moves, never per token
    runner V1           rows in batch order, kept by `AlphaControl`, told of every change before a forward
    runner V2           rows by slot, kept by `AlphaState`, which hands them to forward as one more argument

vLLM finds `AlphaControl` by its entry point, as a logits processor; it never edits a logit.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as ProcessorV2

from dual_head.errors import DualHeadError
from dual_head.serve.vllm import GUIDES
from dual_head_vllm.strengths import guides_here, guides_of, of_request

_CONTROLS: dict[str, "AlphaControl"] = {}


class AlphaControl(ProcessorV1, ProcessorV2):
    """Checks the strengths of requests, and under runner V1 keeps those of the batch, [requests, K]."""

    def __init__(self, vllm_config: Any, *runner: Any):
        # V1 gives (device, whether memory is pinned), V2 its state of requests, of which nothing is needed.
        self.guides = guides_of(vllm_config)
        self.device = runner[0] if len(runner) == 2 else torch.device("cpu")
        slots = vllm_config.scheduler_config.max_num_seqs
        width = len(self.guides.entries) if self.guides else 0
        self.rows = torch.zeros(slots, width)
        # One tensor for as long as the engine lives: a CUDA graph reads its address.
        self.table = torch.zeros(slots, width, device=self.device)
        _CONTROLS[vllm_config.instance_id] = self

    @staticmethod
    def of(vllm_config: Any) -> "AlphaControl | None":
        """The one of an engine in this process."""
        return _CONTROLS.get(vllm_config.instance_id)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse strengths that cannot be, which vLLM answers with 400."""
        guides = guides_here()
        if guides is not None:
            of_request(sampling_params, guides)
        elif "alpha" in (getattr(sampling_params, "extra_args", None) or {}):
            raise DualHeadError(f"This model has no guide, so that alpha does nothing. {GUIDES} names their folder.")

    def is_argmax_invariant(self) -> bool:
        """Logits stay as they are."""
        return True

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Runner V2: there is nothing to apply."""
        del req_idx, sampling_params
        return False

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Return the logits."""
        del ctx
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests of the batch: come, moved or swapped; rows of those that left are never read."""
        if batch_update is None or self.guides is None:
            return
        for row, params, *_ in batch_update.added:
            self.rows[row] = torch.tensor(of_request(params, self.guides))
        for source, target, direction in batch_update.moved:
            if direction == MoveDirectionality.SWAP:
                self.rows[[source, target]] = self.rows[[target, source]]
            else:
                self.rows[target] = self.rows[source]
        self.table.copy_(self.rows)


def of_tokens(table: Tensor, starts: Tensor, count: int, slots: Tensor | None = None) -> Tensor:
    """Strengths [tokens, K] from a table [slots, K]: the token at i belongs to the request with starts <= i.

    starts [requests + 1]: where each request's tokens begin; slots [requests]: its row, None where rows are in order.
    Padding behind the last request gets some request's strengths, and is never read.
    """
    places = torch.arange(count, dtype=starts.dtype, device=starts.device)
    requests = torch.searchsorted(starts[1:].contiguous(), places, right=True).clamp_(max=len(starts) - 2)
    return table[requests if slots is None else slots[requests]]
