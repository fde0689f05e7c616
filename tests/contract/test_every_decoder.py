"""Every decoder that transformers has and that can be made tiny: guides act on it as it acts, or are refused."""

import contextlib
from functools import cache
from typing import Any

import pytest
import torch
from models import VOCAB, config_of
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dual_head import AlignedModel, DualHeadError

pytestmark = pytest.mark.slow

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# What sizes are called: those of most models, and those of some.
COMMON = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
SOME = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 128, "d_model": 32, "n_layers": 2,
    "n_heads": 4, "num_heads": 4, "num_layers": 2, "ffn_dim": 48, "ffn_hidden_size": 48, "embedding_size": 32,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "word_embed_proj_dim": 32,
    "rotary_dim": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 64, "mamba_d_state": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 8, "mamba_dt_rank": 4, "linear_num_value_heads": 2,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
# Names that some models compute, or that do not go together with the others.
LEFT_OUT = [(), ("head_dim",), ("layer_types",), ("head_dim", "layer_types"), ("head_dim", "num_key_value_heads")]
LARGEST = 30_000_000  # parameters
GREEDY = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}

IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0


@cache
def tiny_config(model_type: str) -> PreTrainedConfig | None:
    """A config of two narrow layers whose model decodes; None where these sizes do not make one."""
    for left_out in LEFT_OUT:
        with contextlib.suppress(Exception):
            config = _tiny(CONFIG_MAPPING[model_type], left_out)
            with torch.device("meta"):
                size = sum(x.numel() for x in AutoModelForCausalLM.from_config(config).parameters())
            if size < LARGEST:
                lm_of(config).generate(IDS, attention_mask=MASK, **GREEDY)
                return config
    return None


def _tiny(kind: Any, left_out: tuple[str, ...]) -> PreTrainedConfig:
    usual = kind()
    sizes: dict[str, Any] = {name: value for name, value in {**COMMON, **SOME}.items() if hasattr(usual, name)}
    kinds = getattr(usual, "layer_types", None)
    if isinstance(kinds, list):
        sizes["layer_types"] = (list(dict.fromkeys(kinds)) * 2)[:2]
    return kind(**{name: value for name, value in (sizes | TOKENS).items() if name not in left_out})


def lm_of(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    lm.generation_config.eos_token_id = None
    return lm


def farthest_from_one_pass(model: Any, **options: Any) -> float:
    """How far the logits of decoding with a cache are from those of one pass over the same tokens, relatively."""
    out = model.generate(IDS, attention_mask=MASK, **GREEDY, **options)
    mask = torch.cat([MASK, torch.ones(2, 4, dtype=torch.long)], 1)
    inputs = {"attention_mask": mask, "use_cache": False, **options}
    with torch.no_grad():
        try:
            whole = model(out.sequences, position_ids=(mask.cumsum(1) - 1).clamp_min(0), **inputs).logits
        except TypeError:  # it takes none
            whole = model(out.sequences, **inputs).logits
    decoded = torch.stack(out.logits, 1)
    return ((decoded - whole[:, 8:-1]).abs().max() / decoded.abs().max()).item()


def test_most_types_are_tried():
    assert sum(tiny_config(model_type) is not None for model_type in TYPES) >= 120


@pytest.mark.parametrize("kind", ["hidden", "reward_head", "multilayer", "steering"])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_guide_acts_as_the_model_does_or_is_refused(model_type, kind):
    config = tiny_config(model_type)
    if config is None:
        pytest.skip("these sizes do not make one")
    lm = lm_of(config)
    plain = lm(IDS, attention_mask=MASK, use_cache=False).logits
    apart = farthest_from_one_pass(lm)
    try:
        model = AlignedModel.from_backbone(lm, {"g": config_of(kind)})
        for parameter in model.guides.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
        unguided = model(IDS, attention_mask=MASK, alpha=0.0).logits
        guided = farthest_from_one_pass(model, alpha=1.0)
    except DualHeadError:
        return
    assert unguided[MASK.bool()].equal(plain[MASK.bool()])
    assert guided < 1e-3 or apart > 1e-3  # a model that reads both ways decodes otherwise than it reads
