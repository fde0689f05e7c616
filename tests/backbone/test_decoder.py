"""A backbone gives its own logits from its own hidden states, and stays as it was."""

import copy

import pytest
import torch
from models import ARCHITECTURES, HIDDEN, VOCAB, tiny_lm
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MiniMaxConfig,
    RecurrentGemmaConfig,
    RoFormerConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutput

from dual_head import AlignedConfig, DualHeadError
from dual_head.backbone.decoder import Backbone, BackboneShape

TINY = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}
ATTENTION = {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}

every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))


def some_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))


# ---- logits ------------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_hidden_are_the_models_own_bit_for_bit(name, dtype):
    lm = tiny_lm(name).to(dtype).eval()
    with torch.no_grad():
        expected = lm(some_ids()).logits
    backbone = Backbone(lm)
    hidden = backbone(some_ids())[0].last_hidden_state
    assert torch.equal(backbone.logits(hidden), expected)


@every_architecture
def test_picked_positions_have_the_logits_they_had_in_their_sequence(name):
    backbone = Backbone(tiny_lm(name))
    hidden = backbone(some_ids())[0].last_hidden_state
    torch.testing.assert_close(backbone.logits(hidden[:, 3]), backbone.logits(hidden)[:, 3])
    assert backbone.logits(hidden[0, 0]).shape == (VOCAB,)


def test_no_picked_positions_have_no_logits():
    assert Backbone(tiny_lm("llama")).logits(torch.zeros(0, 32)).shape == (0, VOCAB)


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("gemma2", lambda lm, z: 8 * torch.tanh(z / 8)),  # final_logit_softcapping = 8
        ("gemma3", lambda lm, z: 8 * torch.tanh(z / 8)),
        ("cohere", lambda lm, z: z * 0.25),  # logit_scale
        ("granite", lambda lm, z: z / 4),  # logits_scaling
        ("phi", lambda lm, z: z + lm.lm_head.bias),
    ],
)
def test_what_an_architecture_does_to_its_logits_is_done_and_matters(name, reads):
    lm = tiny_lm(name)
    hidden = torch.randn(1, 5, 32)
    product = hidden @ lm.get_output_embeddings().weight.T
    torch.testing.assert_close(Backbone(lm).logits(hidden), reads(lm, product), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(product, reads(lm, product), atol=0.1)


@every_architecture
def test_shape_is_read_from_the_model(name):
    assert Backbone(tiny_lm(name)).shape == BackboneShape(hidden_size=32, vocab_size=VOCAB, num_layers=2)


@every_architecture
def test_hidden_layers_asked_for_come_back_and_the_last_is_the_heads_input(name):
    backbone = Backbone(tiny_lm(name))
    output, layers = backbone(some_ids(), layers=(0, 2))
    hidden = output.last_hidden_state
    assert sorted(layers) == [0, 2]
    assert layers[0].shape == hidden.shape
    torch.testing.assert_close(layers[2], hidden)


@every_architecture
@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_layer_is_the_models_own_hidden_state(name, index):
    backbone = Backbone(tiny_lm(name))
    with torch.no_grad():
        hidden_states = backbone.lm(some_ids(), output_hidden_states=True).hidden_states
    _, layers = backbone(some_ids(), layers=(index,))
    assert len(hidden_states) == 3
    assert list(layers) == [index]
    assert torch.equal(layers[index], hidden_states[index])


def test_only_the_layers_asked_for_are_kept_and_nothing_after_the_pass():
    backbone = Backbone(tiny_lm("llama"))

    def hooks() -> list[str]:
        modules = backbone.lm.named_modules()
        return [name for name, m in modules for _ in (*m._forward_hooks, *m._forward_pre_hooks)]

    before = hooks()
    with backbone.keeping((1,)) as kept:
        assert sorted(set(hooks()) - set(before)) == ["model.layers.0"]
        assert len(hooks()) == len(before) + 1
        backbone.lm.base_model(some_ids())
        assert list(kept) == [1]
    with backbone.keeping(()):
        assert hooks() == before
    seen = []
    backbone.lm.model.layers[1].register_forward_hook(lambda *_: seen.append([*hooks()]))
    before = hooks()
    assert list(backbone(some_ids(), layers=(2,))[1]) == [2]  # the last is the output anyway
    assert seen == [before]
    with pytest.raises(RuntimeError), backbone.keeping((0, 1)):
        raise RuntimeError
    assert hooks() == before
    assert backbone(some_ids())[1] == {}


@pytest.mark.parametrize("index", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(index):
    with pytest.raises(DualHeadError, match=rf"The backbone has hidden states 0 to 2, not \[{index}\]"):
        Backbone(tiny_lm("llama"))(some_ids(), layers=(index,))


# ---- frozen ------------------------------------------------------------------------------------------------


@every_architecture
def test_a_backbone_stays_frozen_and_in_eval_mode_after_train(name):
    backbone = Backbone(tiny_lm(name).train())
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_dropout_never_acts():
    lm = AutoModelForCausalLM.from_config(GPT2())
    backbone = Backbone(lm.train()).train()
    assert torch.equal(*(backbone(some_ids())[0].last_hidden_state for _ in range(2)))


def GPT2():
    config = ARCHITECTURES["gpt2"]()
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    return config


def test_the_second_view_of_the_head_shares_weights_and_is_counted_once():
    lm = tiny_lm("llama")
    parameters = sum(p.numel() for p in lm.parameters())
    backbone = Backbone(lm)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    hidden = torch.randn(1, 2, 32)
    before = backbone.logits(hidden)
    with torch.no_grad():
        lm.lm_head.weight.mul_(2)
    torch.testing.assert_close(backbone.logits(hidden), 2 * before)


def test_a_gradient_passes_through_the_logits_to_hidden():
    hidden = torch.randn(1, 2, 32, requires_grad=True)
    lm = tiny_lm("llama")
    Backbone(lm).logits(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, lm.lm_head.weight.sum(0).expand(1, 2, 32))


def test_a_head_narrower_than_the_layers_is_read_at_its_own_width():
    from transformers import OPTConfig, OPTForCausalLM

    from dual_head import AlignedModel, LinearConfig

    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 2}
    lm = OPTForCausalLM(OPTConfig(vocab_size=VOCAB, num_attention_heads=4, max_position_embeddings=64, **sizes))
    assert Backbone(lm).shape.hidden_size == 16
    lm_copy = copy.deepcopy(lm).eval()
    model, ids = AlignedModel.from_backbone(lm, {"g": LinearConfig(init_std=0.5)}), torch.arange(5)[None] + 3
    assert torch.equal(model(ids, alpha=0.0).logits, lm_copy(ids).logits)
    assert not torch.equal(model(ids, alpha=1.0).logits, lm(ids).logits)


def test_a_config_is_rebuilt_from_its_dict():
    config = ARCHITECTURES["mistral"]()
    assert AlignedConfig(backbone_config=config.to_dict()).backbone_config.to_dict() == config.to_dict()


# ---- what is refused, and what reaches transformers --------------------------------------------------------


def test_an_encoder_decoder_is_refused():
    config = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
    with pytest.raises(DualHeadError, match=r"not a decoder with an lm_head\. Load the model with Auto"):
        Backbone(T5ForConditionalGeneration(config))


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(**TINY, state_size=4),
        MiniMaxConfig(**TINY, **ATTENTION),  # a cache of its own
        RecurrentGemmaConfig(**TINY, **ATTENTION, block_types=["attention"]),  # the state of a layer is in the layer
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_without_the_usual_cache_is_refused_by_name(config):
    lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(DualHeadError, match=f"{type(lm).__name__} keeps a state of its own"):
        Backbone(lm)


def test_an_encoder_is_refused_and_the_same_model_trained_as_a_decoder_is_not():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for config in (BertConfig(vocab_size=32, **sizes), RoFormerConfig(vocab_size=32, **sizes)):
        with pytest.raises(DualHeadError, match=r"reads a text in both directions.*set is_decoder"):
            Backbone(AutoModelForCausalLM.from_config(config))
        config.is_decoder = True
        assert Backbone(AutoModelForCausalLM.from_config(config)).shape.hidden_size == 16


def test_a_decoder_without_a_head_is_refused():
    with pytest.raises(DualHeadError, match="AutoModelForCausalLM"):
        Backbone(tiny_lm("llama").model)


# ---- two continuations of one prompt in a row ---------------------------------------------------------------

SHORT = 8  # tokens of a sequence; the tiny models with windows look back as far


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "qwen3", "phi", "gpt2", "cohere", "granite"])
def test_a_backbone_that_keeps_branches_apart_may_share_prompts(architecture):
    assert Backbone(tiny_lm(architecture)).why_no_shared_prompts(SHORT) is None
    assert Backbone(tiny_lm(architecture).to(torch.bfloat16)).why_no_shared_prompts(SHORT) is None


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gemma2", "gemma3", "phi3"])
def test_a_window_shorter_than_a_sequence_is_a_reason_not_to(architecture):
    assert "look back 8 tokens" in (Backbone(tiny_lm(architecture)).why_no_shared_prompts(SHORT + 1) or "")


@pytest.mark.parametrize("window", [24, 64])
def test_a_mask_kept_in_a_buffer_is_a_reason_not_to(window):
    """A window of 24 tokens is as wide as the sequences, and not as the rows that hold two of them."""
    sizes = {"hidden_size": HIDDEN, "num_layers": 2, "num_heads": 4, "intermediate_size": HIDDEN, "vocab_size": VOCAB}
    kinds = {"attention_types": [[["global", "local"], 1]], "window_size": window, "max_position_embeddings": 64}
    lm = GPTNeoForCausalLM(GPTNeoConfig(**sizes, **kinds, bos_token_id=1, eos_token_id=2))
    assert "by their places in a row" in (Backbone(lm).why_no_shared_prompts(20) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heeded", ["position_ids", "attention_mask"])
def test_a_backbone_that_does_not_heed_masks_or_positions_is_found_out(heeded, dtype):
    class Heedless(Backbone):
        def forward(self, input_ids, **inputs):
            return super().forward(input_ids, **{heeded: inputs.get(heeded)})

    assert "apart" in (Heedless(tiny_lm("llama").to(dtype)).why_no_shared_prompts(SHORT) or "")


def test_a_backbone_that_refuses_masks_is_asked_no_more():
    class Refusing(Backbone):
        def forward(self, *args, **kwargs):
            raise ValueError("flash attention takes no such mask")

    assert "flash attention takes no such mask" in (Refusing(tiny_lm("llama")).why_no_shared_prompts(SHORT) or "")


# ---- the lm_head as a matrix --------------------------------------------------------------------------------


def test_logits_that_are_a_product_and_nothing_else_have_a_matrix():
    backbone = Backbone(tiny_lm("llama"))
    assert torch.equal(backbone.matrix(), backbone.lm.get_output_embeddings().weight)


@pytest.mark.parametrize("architecture", ["gemma2", "granite", "cohere", "phi"])
def test_soft_capping_scales_and_biases_leave_no_matrix(architecture):
    assert Backbone(tiny_lm(architecture)).matrix() is None


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_run_for_its_head_alone_only_where_it_does_more(architecture, monkeypatch):
    backbone, hidden = Backbone(tiny_lm(architecture)), 30 * torch.randn(1, 3, HIDDEN)
    logits, (view,), calls = backbone.logits(hidden), backbone._head_only, []
    backbone._only_head = False
    assert torch.equal(logits, backbone.logits(hidden))  # by the model's own forward
    does_more = architecture in ("gemma2", "gemma3", "granite", "cohere")  # soft-capping, and scales
    assert Backbone(tiny_lm(architecture))._only_head != does_more
    backbone._only_head = not does_more
    monkeypatch.setattr(view, "forward", lambda **given: calls.append(given) or type(view).forward(view, **given))
    backbone.logits(hidden)
    assert bool(calls) == does_more


@torch.no_grad()
def test_what_a_model_does_before_its_head_is_done():
    class Halving(LlamaForCausalLM):
        def forward(self, inputs_embeds, **_):
            return CausalLMOutput(logits=self.lm_head(self.model(inputs_embeds=inputs_embeds)[0] / 2))

    lm = Halving(tiny_lm("llama").config)
    backbone, hidden = Backbone(lm), torch.randn(1, 3, HIDDEN)
    assert torch.equal(backbone.logits(hidden), lm.lm_head(hidden / 2))
    assert backbone.matrix() is None


def test_nothing_is_asked_of_a_head_to_find_out():
    lm, calls = tiny_lm("llama"), []
    lm.lm_head.register_forward_hook(lambda *_: calls.append(1))
    assert Backbone(lm).matrix() is not None
    assert not calls


def test_logits_of_a_step_do_not_depend_on_the_stride_of_its_one_token():
    """[B, 1, d] is contiguous whatever the stride of the middle, which `torch.where` may leave at anything."""
    decoder = Backbone(tiny_lm("llama"))
    hidden = torch.randn(2, 1, HIDDEN, generator=torch.Generator().manual_seed(0))
    strided = torch.empty_strided(hidden.shape, (HIDDEN, 2 * HIDDEN, 1)).copy_(hidden)
    assert strided.is_contiguous()
    assert strided.stride() != hidden.stride()
    assert torch.equal(decoder.logits(strided), decoder.logits(hidden))
