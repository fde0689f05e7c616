"""The equations of IAV by hand, I1 to I7 of docs/provenance/differences.md, and its trained base head."""

import pytest
import torch
from equations import PAIRS, Logits, expected, terms
from files import word_tokenizer
from models import BOS, guided_lm, tiny_lm
from torch import Tensor

from dual_head import AlignedModel, method
from dual_head.cli.training import build_parser
from dual_head.data.collate import PairCollator
from dual_head.guides.linear import LinearConfig
from dual_head.model import Encoded
from dual_head.model.papers import IAVModel
from dual_head.train.step import GuidedLoss

BATCH = PairCollator(0)(PAIRS)
IDS = torch.tensor([[BOS, 5, 6, 7]])
DEFAULTS = {"beta": 0.1, "lambda_kl": 0.1, "lambda_l2": 0.01}
# Weights with which every term is a good part of the sum, whatever the model.
BALANCED = {"lambda_kl": 2.0, "lambda_l2": 0.3}


def aligned(architecture: str = "llama", **options) -> tuple[AlignedModel, GuidedLoss]:
    """A tiny backbone with the guides of the method, every weight of them random, and its training step."""
    chosen = method("iav").with_options(options)
    model = guided_lm(chosen.guides(), architecture, spread=0.1)
    return model, GuidedLoss(model, chosen, guide="iav")


def logits_of(model: AlignedModel):
    """z_base, W_a h and (where there is one) the base head's logits of a text, in float64."""
    weights = {name: model.guide(name).head.up.weight.double() for name in model.guides}

    def of(ids: Tensor) -> Logits:
        lm = model.backbone.lm
        hidden = lm.base_model(ids).last_hidden_state[0].double()
        base = lm(ids).logits[0].double()
        head = base + hidden @ weights["base_head"].T if "base_head" in weights else None
        return Logits(base, hidden @ weights["iav"].T, head)

    return of


def matches(out: dict[str, Tensor], by_hand: dict[str, float]) -> None:
    assert out["loss"].item() == pytest.approx(by_hand["loss"], rel=1e-5)
    for name in ("preference", "kl", "norm"):
        assert out[name].mean().item() == pytest.approx(by_hand[name], rel=1e-4), name


# ---- L = L_pref + lambda_kl L_kl + lambda_l2 L_l2 ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.7, **BALANCED},
        {"reference_free": True, **BALANCED},
        {"train_base_head": True},
        {"train_base_head": True, **BALANCED},
        {"train_base_head": True, "reference_free": True, "beta": 0.7},
    ],
)
def test_the_full_loss(options):
    model, step = aligned(**options)
    known = {**DEFAULTS, **{key: value for key, value in options.items() if key != "train_base_head"}}
    matches(step(**BATCH), expected(logits_of(model), **known))


def test_a_fresh_head_says_nothing_yet():
    model = AlignedModel.from_backbone(tiny_lm("llama"), method("iav").guides())
    out = GuidedLoss(model, method("iav"), guide="iav")(**BATCH)
    assert out["loss"].item() == pytest.approx(0.693147, abs=1e-5)  # ln 2
    assert (out["kl"].abs().max() < 1e-6, out["norm"].tolist()) == (True, [0, 0])


def test_the_papers_numbers_are_the_defaults(tmp_path):
    parsed = build_parser(method("iav")).read(
        ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path)]
    )
    options, training, _ = parsed
    assert (training.learning_rate, training.per_device_train_batch_size, training.num_train_epochs) == (5e-5, 4, 1)
    assert (training.get_warmup_steps(100), options.max_length) == (10, 2048)
    chosen = dict(method("iav").options())
    assert {path: chosen[path] for path in ("preference.beta", "kl.weight", "norm.weight", "train_base_head")} == {
        "preference.beta": 0.1,
        "kl.weight": 0.1,
        "norm.weight": 0.01,
        "train_base_head": False,
    }
    assert (chosen["preference.through"], chosen["preference.reference_free"]) == ("policy", False)


def test_i2_the_divergence_is_over_the_whole_vocabulary():
    """Adding one number to all logits is no other policy, though any single logit has moved."""
    model, step = aligned()
    weight = model.guide("iav").head.up.weight
    weight.data = weight.data[:1].expand_as(weight).contiguous()
    out = step(**BATCH)
    assert out["kl"].abs().max() < 1e-5
    assert out["preference"].tolist() == pytest.approx([0.693147, 0.693147], abs=1e-5)
    assert out["norm"].min() > 0.1  # as the published squared error of one logit would have been


def test_i3_the_reference_is_the_backbone_of_the_same_forward():
    model, step = aligned()
    calls = []
    model.backbone.lm.base_model.register_forward_hook(lambda *_: calls.append(1))
    step(**BATCH)["loss"].backward()
    assert calls == [1]


def test_i6_a_prompt_is_there_once_and_its_tokens_say_nothing_to_the_loss(monkeypatch):
    model, step = aligned()
    seen, encode = [], model.encode

    def leaf(*args, **kwargs) -> Encoded:
        hidden = encode(*args, **kwargs).hidden.detach().requires_grad_()
        seen.append(hidden)
        return Encoded(hidden, {"iav": {"hidden": hidden}})

    monkeypatch.setattr(model, "encode", leaf)
    step(**BATCH)["loss"].backward()
    (hidden,) = seen
    texts = [(pair["prompt_ids"], pair[f"{side}_ids"]) for pair in PAIRS for side in ("chosen", "rejected")]
    alone = [encode(torch.tensor([prompt + reply])).hidden[0, len(prompt) - 1 : -1] for prompt, reply in texts]
    # The loss reaches what predicts each token of the replies, and there is nothing else that it could reach.
    torch.testing.assert_close(hidden[0].detach(), torch.cat(alone))
    assert (hidden.grad[0].abs().amax(-1) > 0).all()


def test_i7_the_norm_is_squared_and_that_of_both_replies():
    model, step = aligned()
    norms = step(**BATCH)["norm"].tolist()
    for pair, norm in zip(PAIRS, norms, strict=True):
        chosen, rejected = (
            terms(logits_of(model), pair["prompt_ids"], pair[f"{side}_ids"])["l2"] for side in ("chosen", "rejected")
        )
        assert norm == pytest.approx((chosen + rejected) / 2, rel=1e-4)
        for published in (chosen**0.5, chosen, rejected):
            assert norm != pytest.approx(published, rel=1e-2)


# ---- I1: alpha = 0 is the backbone --------------------------------------------------------------------------


def trained(architecture: str, **options) -> AlignedModel:
    model, step = aligned(architecture, **options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        step(**BATCH)["loss"].backward()
        optimizer.step()
    return model


@torch.no_grad()
@pytest.mark.parametrize("train_base_head", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "llama_tied"])
def test_i1_training_leaves_the_backbone_and_alpha_0_as_they_were(architecture, train_base_head):
    own = tiny_lm(architecture).eval()
    with torch.enable_grad():
        model = trained(architecture, train_base_head=train_base_head)
    after = model.backbone.lm.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in own.state_dict().items())
    tied = model.backbone.lm.lm_head.weight is model.backbone.lm.get_input_embeddings().weight
    assert tied == (architecture == "llama_tied")
    assert torch.equal(model(IDS, alpha=0.0).logits, own(IDS).logits)
    assert (model(IDS, alpha=1.0).logits - own(IDS).logits).abs().max() > 0.1


# ---- train_base_head ----------------------------------------------------------------------------------------


def gradients(**weights) -> dict[str, Tensor | None]:
    model, step = aligned(train_base_head=True, **weights)
    step(**BATCH)["loss"].backward()
    return {name: model.guide(name).head.up.weight.grad for name in model.guides}


def moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def test_the_base_head_is_a_guide_of_its_own():
    assert method("iav").guides().keys() == {"iav"}
    both = method("iav").with_options({"train_base_head": True}).guides()
    assert list(both) == ["iav", "base_head"]
    assert both["base_head"] == LinearConfig()


@pytest.mark.parametrize(
    ("weights", "moved"),
    [
        ({"lambda_kl": 0.0, "lambda_l2": 0.0}, {"iav", "base_head"}),
        ({"preference.weight": 0.0, "lambda_l2": 0.0}, {"base_head"}),
        ({"preference.weight": 0.0, "lambda_kl": 0.0}, {"iav"}),
        ({"preference.weight": 0.0, "lambda_l2": 0.0, "kl.of": "policy"}, {"iav", "base_head"}),
    ],
)
def test_preferences_reach_both_heads_the_divergence_the_base_head_and_the_norm_the_vector(weights, moved):
    found = gradients(**weights)
    assert {name for name, gradient in found.items() if moves(gradient)} == moved


@torch.no_grad()
def test_the_seeds_alpha_0_is_the_trained_base_head_alone():
    model, _ = aligned(train_base_head=True)
    said = logits_of(model)(IDS)
    for alpha in (0.0, 0.5):
        given = model(IDS, alpha={"iav": alpha, "base_head": 1}).logits[0].double()
        torch.testing.assert_close(given, said.head + alpha * said.delta, atol=1e-5, rtol=1e-5)
    assert (said.head - said.base).abs().max() > 0.1


# ---- IAVModel -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_model_of_the_seed_generates_text_at_any_strength(backbone_folder):
    model, tokenizer = IAVModel.from_backbone(str(backbone_folder)), word_tokenizer()
    assert list(model.guides) == ["iav"]
    model.generation_config.eos_token_id = None
    torch.manual_seed(0)
    head = torch.nn.init.normal_(model.guide("iav").head.up.weight, std=0.03)
    texts = {}
    for alpha in (0.0, 1.0, 3.0):
        ids = tokenizer("ask1 how", return_tensors="pt").input_ids
        start = ids.shape[1]
        for _ in range(6):
            hidden = model.backbone.lm.base_model(ids).last_hidden_state[:, -1]
            z = hidden @ (model.backbone.lm.lm_head.weight + alpha * head).T
            ids = torch.cat([ids, z.argmax(-1, keepdim=True)], 1)
        texts[alpha] = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        given = model.generate("ask1 how", tokenizer=tokenizer, alpha=alpha, max_new_tokens=6, do_sample=False)
        assert given == texts[alpha]
    assert len(set(texts.values())) == 3
