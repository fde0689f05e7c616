"""Runner V2's side of strengths: a table by slot on the device, and one row per token handed to forward."""

from typing import Any

import torch
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from dual_head_vllm.control import of_tokens
from dual_head_vllm.strengths import guides_of, of_request


class AlphaState(DefaultModelState):
    """vLLM's state of requests, with the strengths of each; slots are used again, so each is written when taken."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device):
        super().__init__(vllm_config, model, encoder_cache, device)
        guides = guides_of(vllm_config)
        assert guides is not None
        self.guides = guides
        width = len(guides.entries)
        self.table = StagedWriteTensor((self.max_num_reqs, width), torch.float32, device)
        # Written before a graph is replayed, and read in it: always at one address.
        self.alpha = torch.zeros(self.max_num_tokens, width, device=device)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Note the strengths of a request that takes a slot."""
        super().add_request(req_index, new_req_data)
        self.table.stage_write(req_index, 0, of_request(new_req_data.sampling_params, self.guides))

    def apply_staged_writes(self) -> None:
        """Write what was noted to the device, once a step."""
        super().apply_staged_writes()
        self.table.apply_write()

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """One more argument of forward: strengths [tokens, K]."""
        inputs = super().prepare_inputs(input_batch, req_states)
        count, requests = input_batch.num_tokens_after_padding, input_batch.num_reqs
        starts, slots = input_batch.query_start_loc[: requests + 1], input_batch.idx_mapping[:requests]
        self.alpha[:count] = of_tokens(self.table.gpu, starts, count, slots)
        return {**inputs, "dual_head_alpha": self.alpha[:count]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """The same argument while graphs are captured."""
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        return {**inputs, "dual_head_alpha": self.alpha[:num_tokens]}
