"""A language model as a guide: GenARM, tuned models, proxy tuning and guided guides, by hand; and what is shared."""

import sys
import warnings

import pytest
import torch
from models import ARCHITECTURES, BOS, HIDDEN, LAYERS, VOCAB, guided_lm, tiny_lm
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dual_head import AlignedModel, DualHeadError, method
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.linear import LinearConfig

IDS = torch.tensor([[BOS, 5, 6, 7], [BOS, 40, 41, 42]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
peft = pytest.importorskip("peft")


def with_lora(model: AlignedModel, name: str = "g") -> PreTrainedModel:
    """The backbone's own copy with W + (lora_alpha / rank) B A written into its weights."""
    lm, guide = tiny_lm(model.backbone.config.model_type).eval(), model.guide(name)
    stored, scale = guide.stored(), guide.config.lora_alpha / guide.config.rank
    weights = dict(lm.named_parameters())
    for key, a in stored.items():
        if ".lora_A." in key:
            change = scale * stored[key.replace("lora_A", "lora_B")] @ a
            weight = weights[key.split(".lora_A")[0] + ".weight"]
            weight.data += change if change.shape == weight.shape and "attn.c" not in key else change.T  # GPT-2's
    return lm


def on_disk(folder, *, seed: int = 0, vocabulary: int = VOCAB) -> str:
    config = ARCHITECTURES["llama"]()
    config.vocab_size = vocabulary
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def loaded(folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def adapter_on(base: str, folder) -> tuple[str, PreTrainedModel]:
    """A PEFT adapter of random weights in a folder of its own, and the model that it makes of its base."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)  # PEFT's
        lm = peft.get_peft_model(loaded(base), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        for parameter in lm.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        lm.save_pretrained(folder, save_embedding_layers=False)
    return str(folder), lm.eval()


def places(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


def shares(model: AlignedModel, name: str = "g") -> bool:
    """Whether every weight of the backbone is, in memory, one of the guide's model."""
    return places(model.backbone.lm) <= places(model.guide(name).tuned)


# ---- GenARM -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("alpha", [1.0, 2.5, -0.5])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_genarm_decodes_log_pi_b_plus_alpha_log_pi_r(architecture, alpha):
    options = {} if architecture == "gpt2" else {"target_modules": ["q_proj", "k_proj", "v_proj"]}
    model = guided_lm({"g": LanguageModelConfig(**options)}, architecture)
    log_base, log_r = (lm(IDS).logits.log_softmax(-1) for lm in (tiny_lm(architecture).eval(), with_lora(model)))
    mixed = (log_base + alpha * log_r).log_softmax(-1)
    torch.testing.assert_close(model(IDS, alpha=alpha).logits.log_softmax(-1), mixed, atol=1e-4, rtol=1e-4)
    assert (log_base - log_r).abs().max() > 0.5


@torch.no_grad()
def test_two_rewards_add_up():
    model = guided_lm({"help": method("genarm").guide, "harm": method("genarm").guide})
    one, other = (with_lora(model, name)(IDS).logits.log_softmax(-1) for name in ("help", "harm"))
    mixed = tiny_lm("llama").eval()(IDS).logits.log_softmax(-1) + 0.7 * one + 0.4 * other
    logits = model(IDS, alpha={"help": 0.7, "harm": 0.4}).logits
    torch.testing.assert_close(logits.softmax(-1), mixed.softmax(-1), **CLOSE)


# ---- what is shared, and what is trained --------------------------------------------------------------------


def test_a_lora_on_the_backbone_adds_nothing_but_itself():
    model = guided_lm({"g": method("genarm").guide})
    assert shares(model)
    frozen, lora = (sum(p.numel() for p in m.parameters()) for m in (model.backbone.lm, model.guides))
    together = {p.data_ptr(): p.numel() for m in (model, model.guide("g").tuned) for p in m.parameters()}
    assert sum(together.values()) == frozen + lora
    width = {"q_proj": HIDDEN, "k_proj": HIDDEN // 2, "v_proj": HIDDEN // 2}
    assert lora == LAYERS * 8 * sum(HIDDEN + out for out in width.values())
    assert {id(p) for p in model.guides.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert model.guide("g").trainable


def test_training_moves_the_lora_and_no_bit_of_the_backbone():
    model = guided_lm({"g": method("genarm").guide}, spread=0.1)
    before = {name: value.clone() for name, value in model.guide("g").stored().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    states = model.encode(IDS, guides=("g",)).states["g"]
    model.guide("g").logit_delta(states, None).log_softmax(-1)[..., 3].sum().backward()
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in model.guide("g").stored().items())
    weights = tiny_lm("llama").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.backbone.lm.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(IDS, alpha=0.0).logits, tiny_lm("llama").eval()(IDS).logits)
    assert not any(p.requires_grad or p.grad is not None for p in model.backbone.parameters())


def switched_on(model: AlignedModel) -> set[str]:
    inside = model.guide("g").tuned.get_base_model().named_modules()
    return {name for name, module in inside if module.training}


@torch.no_grad()
def test_only_the_loras_dropout_acts_and_only_while_it_trains():
    model = guided_lm({"g": LanguageModelConfig(dropout=0.5)}, "gpt2")
    guided, base = (model(IDS, alpha=alpha).logits for alpha in (1.0, 0.0))
    model.train()
    assert {name for name in switched_on(model) if "lora_dropout" not in name} == set()
    one, other = (model.guide("g").logit_delta(model.encode(IDS, guides=("g",)).states["g"], None) for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(model(IDS, alpha=0.0).logits, base)  # GPT-2 has dropout of its own
    model.eval()
    assert torch.equal(model(IDS, alpha=1.0).logits, guided)


@torch.no_grad()
def test_eval_undoes_what_a_trainer_of_the_model_switched_on():
    model = guided_lm({"g": LanguageModelConfig(against="backbone")}, "gpt2")
    before = model(IDS, alpha=1.0).logits
    model.guide("g").tuned.train()
    model.eval()
    assert not switched_on(model)
    assert torch.equal(model(IDS, alpha=1.0).logits, before)


def test_what_is_stored_is_the_lora_alone(tmp_path):
    model = guided_lm({"g": method("genarm").guide})
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert len(stored) == LAYERS * 3 * 2
    assert all(name.startswith("g.") and "lora_" in name for name in stored)
    assert sum(x.numel() for x in stored.values()) == sum(p.numel() for p in model.guides.parameters())


@torch.no_grad()
def test_another_dtype_is_that_of_the_shared_weights_and_they_stay_shared():
    model = guided_lm({"g": method("genarm").guide}).to(torch.bfloat16).to("cpu")
    assert shares(model)
    assert {p.dtype for p in model.guide("g").tuned.parameters()} == {torch.bfloat16}
    lm, tuned = tiny_lm("llama").eval().to(torch.bfloat16), with_lora(model).to(torch.bfloat16)
    expected = lm(IDS).logits + tuned(IDS).logits
    error = (model(IDS, alpha=1.0).logits - expected).abs()
    assert error.mean() < 0.05 * expected.abs().mean()  # W + B A rounded, against W and B A rounded


# ---- full models, adapters, differences ---------------------------------------------------------------------


@torch.no_grad()
def test_another_model_from_a_folder_speaks_for_itself_and_moves_with_the_guide(tmp_path):
    other = on_disk(tmp_path / "other", seed=3)
    model = guided_lm({"g": LanguageModelConfig(model=other, tune="none")})
    expected = tiny_lm("llama").eval()(IDS).logits + 0.5 * loaded(other)(IDS).logits
    torch.testing.assert_close(model(IDS, alpha=0.5).logits, expected, **CLOSE)
    guide = model.guide("g")
    assert (guide.stored(), list(guide.parameters()), guide.trainable) == ({}, [], False)
    assert not places(model.backbone.lm) & places(guide.tuned)
    model.save_pretrained(tmp_path / "saved")
    again = AlignedModel.from_pretrained(tmp_path / "saved", backbone=tiny_lm("llama"))
    assert torch.equal(again(IDS, alpha=0.5).logits, model(IDS, alpha=0.5).logits)
    assert {p.dtype for p in model.to(torch.bfloat16).guide("g").tuned.parameters()} == {torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("where", ["the backbone", "another model"])
def test_a_peft_adapter_shares_the_base_it_was_made_on_where_that_is_the_backbone(where, tmp_path):
    backbone, other = on_disk(tmp_path / "backbone"), on_disk(tmp_path / "other", seed=3)
    is_backbone = where == "the backbone"
    adapter, tuned = adapter_on(backbone if is_backbone else other, tmp_path / "adapter")
    config = LanguageModelConfig(model=adapter, tune="none", against="backbone")
    model = AlignedModel.from_backbone(backbone, {"g": config})
    torch.testing.assert_close(model(IDS, alpha=1.0).logits, tuned(IDS).logits, **CLOSE)
    assert torch.equal(model(IDS, alpha=0.0).logits, loaded(backbone)(IDS).logits)
    assert shares(model) == is_backbone


@torch.no_grad()
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_against_the_backbone_alpha_1_is_the_tuned_model_and_less_lies_between(tune):
    model = guided_lm({"g": LanguageModelConfig(against="backbone", tune=tune)}, spread=0.2)
    base, tuned = tiny_lm("llama").eval()(IDS).logits, model.guide("g").tuned(IDS).logits
    if tune == "lora":
        torch.testing.assert_close(tuned, with_lora(model)(IDS).logits, atol=1e-4, rtol=1e-4)
    assert (model(IDS, alpha=1.0).logits - tuned).abs().max() <= 1e-5 * max(1, tuned.abs().max())
    torch.testing.assert_close(model(IDS, alpha=0.5).logits, 0.5 * (base + tuned), **CLOSE)
    assert (base - tuned).abs().max() > 0.5
    assert shares(model) == (tune == "lora")


@torch.no_grad()
def test_against_another_model_it_is_the_expert_less_the_antiexpert(tmp_path):
    expert, anti = on_disk(tmp_path / "expert", seed=3), on_disk(tmp_path / "anti", seed=4)
    model = guided_lm({"g": LanguageModelConfig(model=expert, tune="none", against=anti)})
    expected = tiny_lm("llama").eval()(IDS).logits + 0.5 * (loaded(expert)(IDS).logits - loaded(anti)(IDS).logits)
    torch.testing.assert_close(model(IDS, alpha=0.5).logits, expected, **CLOSE)
    assert model.guide("g").extra_forwards == 2


@torch.no_grad()
def test_a_guided_model_steers_by_all_it_says_or_by_what_its_guides_add(tmp_path):
    weak = AlignedModel.from_backbone(on_disk(tmp_path / "weak", seed=3), {"iav": LinearConfig(init_std=0.3)})
    weak.save_pretrained(tmp_path / "guides")
    guided, unguided = (weak(IDS, alpha=alpha).logits for alpha in (1.0, 0.0))
    base = tiny_lm("llama").eval()(IDS).logits
    for against, delta in ((None, guided), ("unguided", guided - unguided)):
        config = LanguageModelConfig(model=str(tmp_path / "guides"), tune="none", against=against)
        strong = guided_lm({"g": config})
        torch.testing.assert_close(strong(IDS, alpha=0.5).logits, base + 0.5 * delta, **CLOSE)


# ---- the cache, and vocabularies ----------------------------------------------------------------------------


@torch.no_grad()
def test_its_keys_and_values_are_more_layers_of_the_same_cache(tmp_path):
    expert, anti = on_disk(tmp_path / "expert", seed=3), on_disk(tmp_path / "anti", seed=4)
    for config, layers in (
        (method("genarm").guide, LAYERS),
        (LanguageModelConfig(model=expert, tune="none", against=anti), 2 * LAYERS),
    ):
        model = guided_lm({"g": config})
        cache = model(IDS, alpha=1.0, use_cache=True).past_key_values
        assert [layer.get_seq_length() for layer in cache.layers] == [4] * (LAYERS + layers)
        following = torch.tensor([[9], [10]])
        step = model(following, alpha=1.0, past_key_values=cache, use_cache=True).logits
        whole = model(torch.cat([IDS, following], 1), alpha=1.0).logits[:, -1:]
        torch.testing.assert_close(step, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("vocabulary", [VOCAB + 7, VOCAB - 7])
def test_padding_of_a_vocabulary_is_cut_or_never_chosen(vocabulary, tmp_path):
    other, anti = on_disk(tmp_path / "other", seed=3, vocabulary=vocabulary), on_disk(tmp_path / "anti", seed=4)
    shared = min(vocabulary, VOCAB)
    base, z = tiny_lm("llama").eval()(IDS).logits[..., :shared], loaded(other)(IDS).logits[..., :shared]
    z_anti = loaded(anti)(IDS).logits[..., :shared]
    for model, against, delta in ((other, None, z), (other, anti, z - z_anti), (anti, other, z_anti - z)):
        aligned = guided_lm({"g": LanguageModelConfig(model=model, tune="none", against=against)})
        logits = aligned(IDS, alpha=1.0).logits
        assert logits.shape[-1] == VOCAB
        torch.testing.assert_close(logits[..., :shared], base + delta, **CLOSE)
        deltas = aligned.guide("g").logit_delta(aligned.encode(IDS, guides=("g",)).states["g"], None)
        least = deltas[..., :shared].amin(-1)
        assert all(torch.equal(column, least) for column in deltas[..., shared:].unbind(-1))


# ---- what is refused ----------------------------------------------------------------------------------------


def test_embeddings_alone_are_refused():
    model = guided_lm({"g": method("genarm").guide})
    with pytest.raises(DualHeadError, match="reads token ids, so inputs_embeds are not enough"):
        model(inputs_embeds=torch.randn(1, 3, HIDDEN), alpha=1.0)


def refused(said: str, **options) -> None:
    with pytest.raises(DualHeadError, match=said):
        guided_lm({"g": LanguageModelConfig.from_dict(options)})


def test_options_that_do_not_fit_are_refused_with_the_remedy(tmp_path, monkeypatch):
    base = on_disk(tmp_path / "base")
    adapter, _ = adapter_on(base, tmp_path / "adapter")
    refused("An untrained copy of the backbone steers nothing: name another model, or tune it", tune="none")
    refused("must be one of 'lora', 'full', 'none', not 'lorra'", tune="lorra")
    refused("is an adapter that was trained before. Use it with tune=none", model=adapter)
    refused(r"dropout must lie in \[0, 1\), not 1", dropout=1.0)
    refused("rank must be at least 1", rank=0)
    refused("LoRA finds nothing to adapt.*target_modules, or use all-linear", target_modules="nothing.*")
    refused(r"^LlamaForCausalLM has no layer 'nothing' to adapt \(--guide.target_modules\)", target_modules=["nothing"])
    refused("no layer 'vproj' .*Did you mean 'v_proj'", target_modules=["q_proj", "vproj"])
    refused("against='unguided' needs a checkpoint of guides", model=base, tune="none", against="unguided")
    refused("needs the model '/nowhere', which cannot be read.*Put it back", model="/nowhere", tune="none")
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(r"'peft' is not installed. Install it with: pip install 'dual-head\[peft\]'")
