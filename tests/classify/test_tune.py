"""What of a backbone is trained is what the options say, or they are refused."""

import pytest
from models import tiny_lm

from dual_head.classify.model import DualHeadReasoningModel
from dual_head.errors import DualHeadError


def adapted(architecture: str, *targets: str) -> set[str]:
    """The names of the layers that get an adapter."""
    model = DualHeadReasoningModel.from_backbone(tiny_lm(architecture), 2, lora={"targets": list(targets)})
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in model.stored() if ".lora_" in name}


def test_an_adapter_is_put_into_the_layers_that_are_named_by_their_ends_too():
    assert adapted("llama", "q_proj", "1.mlp.down_proj") == {"q_proj", "down_proj"}
    assert adapted("gpt2", "c_attn") == {"c_attn"}


@pytest.mark.parametrize(
    ("architecture", "target", "message"),
    [
        ("llama", "vproj", r"no layer 'vproj' to adapt \(--lora_targets\)\. Did you mean 'v_proj'\?"),
        ("gpt2", "c_atn", "Did you mean 'c_attn'"),
    ],
)
def test_one_name_of_no_layer_among_others_is_not_left_out_silently(architecture, target, message):
    there = "c_attn" if architecture == "gpt2" else "q_proj"
    with pytest.raises(DualHeadError, match=message):
        adapted(architecture, there, target)


def test_layers_that_map_no_vector_to_one_get_no_adapter():
    layers = adapted("deepseek_v4", "q_a_proj", "o_a_proj", "o_b_proj")  # o_a_proj reads groups of heads
    assert layers == {"q_a_proj", "o_b_proj"}
