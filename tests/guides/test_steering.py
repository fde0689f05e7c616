"""Steering vectors: the backbone with alpha v between its layers, against layers that add it themselves."""

import re

import pytest
import torch
from models import LAYERS, VOCAB, tiny_lm
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedModel

from dual_head import AlignedModel, DualHeadError, HiddenConfig, LinearDecay, SteeringConfig
from dual_head.backbone.decoder import BackboneShape
from dual_head.evaluate.sweep import shared_prompt_replies
from dual_head.guides.steering import Steering
from dual_head.model.score import reply_scalars

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
EVERY = SteeringConfig(layers=[1, 2])
REPLY = SteeringConfig(layers=[1], tokens="reply")
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def prompts(rows: int = 2, length: int = 8) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(7))


def steered(config: SteeringConfig = EVERY, **others) -> AlignedModel:
    lm = tiny_lm("llama")
    lm.generation_config.eos_token_id = None
    model = AlignedModel.from_backbone(lm, {"g": config, **others})
    torch.manual_seed(1)
    for parameter in model.guides.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


class Adding(nn.Module):
    """A decoder layer, and what is added to what it gives."""

    def __init__(self, layer: nn.Module, added: Tensor):
        super().__init__()
        self.layer, self.added = layer, added

    def forward(self, hidden: Tensor, **inputs) -> Tensor:
        return self.layer(hidden, **inputs) + self.added


def adding(model: AlignedModel, alpha: Tensor) -> PreTrainedModel:
    """The plain model whose layers add alpha [rows, tokens] times the guide's vectors."""
    lm, guide = tiny_lm("llama").eval(), model.guide("g")
    for layer, vector in zip(guide.layers, guide.vectors, strict=True):
        lm.model.layers[layer - 1] = Adding(lm.model.layers[layer - 1], alpha[..., None] * vector)
    return lm


# ---- the equation ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_layer_adds_alpha_times_its_vector_in_rows_of_several_alphas():
    model, ids, alphas = steered(), prompts(3), [0.7, 0.0, -2.0]
    expected = adding(model, torch.tensor(alphas)[:, None])(ids).logits
    torch.testing.assert_close(model(ids, alpha=alphas).logits, expected, **CLOSE)
    assert (expected[0] - model(ids, alpha=0.0).logits[0]).abs().max() > 0.1


@torch.no_grad()
def test_a_schedule_is_followed_token_by_token():
    model, ids = steered(SteeringConfig(layers=[-1])), prompts()
    decay = LinearDecay(start=1.0, end=-1.0, tokens=4)
    # The logits at a token belong to the next one, and a forward counts from its first token.
    alpha = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0, -1.0, -1.0, -1.0, -1.0])[1:]
    expected = adding(model, alpha.expand(2, -1))(ids).logits
    torch.testing.assert_close(model(ids, alpha=decay).logits, expected, **CLOSE)


@torch.no_grad()
def test_of_the_reply_alone_the_prompt_is_read_as_it_is():
    model, ids = steered(REPLY), prompts()
    new = model.generate(ids, alpha=1.5, **GREEDY)[:, ids.shape[1] :]
    alpha = torch.zeros(2, ids.shape[1] + new.shape[1])
    alpha[:, ids.shape[1] - 1 :] = 1.5  # from what predicts the first new token on
    logits = adding(model, alpha)(torch.cat([ids, new], 1)).logits[:, ids.shape[1] - 1 : -1]
    assert torch.equal(logits.argmax(-1), new)
    everywhere = steered(SteeringConfig(layers=[1])).generate(ids, alpha=1.5, **GREEDY)[:, ids.shape[1] :]
    assert not torch.equal(new, everywhere)


@torch.no_grad()
def test_its_delta_adds_to_that_of_another_guide_whose_states_stay_the_backbones():
    model, ids = steered(h=HiddenConfig(rank=4)), prompts()
    base = model(ids, alpha=0.0).logits
    alone = [model(ids, alpha=alpha).logits - base for alpha in ({"g": 0.7}, {"h": 1.2})]
    both = model(ids, alpha={"g": 0.7, "h": 1.2}).logits
    torch.testing.assert_close(both, base + alone[0] + alone[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_its_reward_and_divergence_are_from_the_backbone_that_is_not_steered():
    model, ids = steered(), prompts()
    reply = torch.full((2,), 3)
    options = {"alpha": -1.0, "lengths": reply, "needs": ("kl", "policy_logps", "base_logps")}
    at = reply_scalars(model, ids, torch.ones(2, 5, dtype=torch.long), **options)
    logits = {"policy": adding(model, torch.full((2, 1), -1.0))(ids).logits, "base": tiny_lm("llama").eval()(ids).logits}
    logps = {name: z[:, 4:7].log_softmax(-1) for name, z in logits.items()}
    picked = {name: x.gather(-1, ids[:, 5:, None]).sum((1, 2)) for name, x in logps.items()}
    torch.testing.assert_close(at["policy_logps"], picked["policy"], **CLOSE)
    torch.testing.assert_close(at["base_logps"], picked["base"], **CLOSE)
    kl = (logps["policy"].exp() * (logps["policy"] - logps["base"])).sum((1, 2))
    torch.testing.assert_close(at["kl"], kl, **CLOSE)


# ---- what rests on one alpha -------------------------------------------------------------------------------


def test_replies_to_one_prompt_at_several_alphas_share_no_cache():
    model, ids = steered(), prompts(1)
    alphas = [0.0, 1.0, -1.0]
    together = shared_prompt_replies(model, ids, {"g": alphas}, **GREEDY)
    for row, alpha in zip(together, alphas, strict=True):
        assert torch.equal(row, model.generate(ids, alpha=alpha, **GREEDY)[0])


def test_encoding_without_its_alpha_is_refused():
    with pytest.raises(DualHeadError, match="its alpha is needed"):
        steered().encode(prompts(), guides=["g"])


def test_a_mixture_of_distributions_is_refused():
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"g": EVERY}, fusion="probabilities")
    with pytest.raises(DualHeadError, match="has no share of a mixture"):
        model(prompts(), alpha=0.5)


# ---- which layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "indices"), [(None, (6,)), ([-1, 3], (3, 12)), ([1], (1,))])
def test_layers_count_from_either_end(layers, indices):
    assert SteeringConfig(layers=layers).indices(12) == indices


@pytest.mark.parametrize("layers", [[0], [13], [-13], [2, -11]])
def test_a_layer_that_is_not_there_or_twice_is_refused(layers):
    with pytest.raises(DualHeadError, match=re.escape(f"not {layers}")):
        SteeringConfig(layers=layers).indices(12)


@pytest.mark.parametrize(("options", "message"), [({"layers": []}, "empty list"), ({"tokens": "new"}, "'all' or 'reply'")])
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(DualHeadError, match=message):
        SteeringConfig(**options)


def test_layers_of_another_width_than_the_lm_heads_input_are_refused():
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    lm = AutoModelForCausalLM.from_config(OPTConfig(**sizes, vocab_size=97, word_embed_proj_dim=16))
    with pytest.raises(DualHeadError, match="32 wide and its lm_head reads 16"):
        AlignedModel.from_backbone(lm, {"g": SteeringConfig()})


def test_it_stores_a_vector_for_each_layer_and_nothing_else():
    guide = Steering(EVERY, BackboneShape(hidden_size=32, vocab_size=97, num_layers=LAYERS))
    assert {name: tuple(x.shape) for name, x in guide.stored().items()} == {"vectors": (2, 32)}
