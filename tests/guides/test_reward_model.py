"""ARGS against the naive reference: a whole forward of the reward model per position and per candidate."""

import pytest
import torch
from models import ARCHITECTURES, BOS, EOS, HIDDEN, LAYERS, VOCAB, guided_lm, tiny_lm
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from dual_head import AlignedModel, DualHeadError, PairCollator
from dual_head.guides import reward_model as module
from dual_head.guides.linear import LinearConfig
from dual_head.guides.reward_model import RewardModelConfig
from dual_head.losses.kl import Kl
from dual_head.methods import Method
from dual_head.train.step import GuidedLoss

K = 4
CLOSE = {"atol": 2e-4, "rtol": 2e-4}
RULED_OUT = torch.finfo(torch.float32).min
GREEDY = {"do_sample": False, "max_new_tokens": 6}

every_kind_of_attention = pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gemma2", "gpt2"])


def args_lm(architecture: str = "llama", *, tune: str = "none", k: int = K, **options) -> AlignedModel:
    """A tiny backbone with a reward model that is a part of it, every trained weight random."""
    return guided_lm({"g": RewardModelConfig(tune=tune, k=k, **options)}, architecture, spread=0.3)


def on_disk(folder, architecture: str = "llama", *, labels: int = 1, seed: int = 5) -> str:
    config = ARCHITECTURES[architecture]()
    config.num_labels = labels
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def prompts(rows: int, length: int = 12) -> Tensor:  # longer than the windows of 8
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(7))


def reward_of(classifier, ids: Tensor) -> float:
    """r(text), of one text [T] without padding and without a cache."""
    hidden = classifier.base_model(input_ids=ids[None], use_cache=False).last_hidden_state
    return classifier.score(hidden[0, -1]).item()


@torch.no_grad()
def naive(lm, classifier, ids: Tensor, *, alpha: float = 1.0, k: int = K) -> Tensor:
    """ARGS' logits after every position of one text [T]: [T, V]."""
    base = lm(ids[None]).logits[0]
    out = torch.full_like(base, RULED_OUT)
    for t in range(len(ids)):
        for v in base[t].topk(k).indices:
            out[t, v] = base[t, v] + alpha * reward_of(classifier, torch.cat([ids[: t + 1], v[None]]))
    return out


def alike(given: Tensor, expected: Tensor) -> None:
    allowed = expected > RULED_OUT
    assert torch.equal(given > RULED_OUT, allowed)
    assert torch.equal(given[~allowed], expected[~allowed])
    torch.testing.assert_close(given[allowed], expected[allowed], **CLOSE)


# ---- delta(v) = r(x, y_<t, v) -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tune", ["none", "lora"])
@every_kind_of_attention
def test_every_candidate_at_every_position_is_scored_as_a_forward_of_its_own_would(architecture, tune):
    model, ids = args_lm(architecture, tune=tune), prompts(2)
    logits = model(ids, alpha=[1.0, -0.5]).logits
    lm, classifier = tiny_lm(architecture).eval(), model.guide("g").tuned
    for row, alpha in enumerate((1.0, -0.5)):
        alike(logits[row], naive(lm, classifier, ids[row], alpha=alpha))
    assert (logits > RULED_OUT).sum(-1).unique().tolist() == [K]


@torch.no_grad()
@every_kind_of_attention
def test_left_padding_of_a_row_changes_none_of_its_rewards(architecture):
    model, ids = args_lm(architecture), prompts(2)
    alone = [ids[0], ids[1, :9]]
    padded = torch.stack([alone[0], torch.cat([torch.zeros(3, dtype=torch.long), alone[1]])])
    mask = torch.tensor([[1] * 12, [0] * 3 + [1] * 9])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = model(padded, attention_mask=mask, position_ids=positions, alpha=1.0).logits
    lm, classifier = tiny_lm(architecture).eval(), model.guide("g").tuned
    alike(logits[0], naive(lm, classifier, alone[0]))
    alike(logits[1, 3:], naive(lm, classifier, alone[1]))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_greedy_decoding_picks_the_best_of_the_candidates_at_every_step(architecture):
    model, ids = args_lm(architecture), prompts(1)
    lm, classifier, text = tiny_lm(architecture).eval(), model.guide("g").tuned, ids[0]
    for _ in range(GREEDY["max_new_tokens"]):
        base = lm(text[None]).logits[0, -1]
        scores = {v: base[v] + 2 * reward_of(classifier, torch.cat([text, v[None]])) for v in base.topk(K).indices}
        text = torch.cat([text, max(scores, key=scores.get)[None]])
    assert torch.equal(model.generate(ids, alpha=2.0, **GREEDY)[0], text)
    assert not torch.equal(model.generate(ids, alpha=0.0, **GREEDY)[0], text)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_row_at_alpha_0_keeps_all_its_tokens_and_bits(architecture):
    model, ids = args_lm(architecture), prompts(2)
    logits, base = model(ids, alpha=[0.0, 1.0]).logits, tiny_lm(architecture).eval()(ids).logits
    assert torch.equal(logits[0], base[0])
    assert (logits[1] == RULED_OUT).sum(-1).unique().tolist() == [VOCAB - K]


@torch.no_grad()
def test_it_is_off_beside_a_guide_that_acts_and_on_beside_one_too():
    model, ids = guided_lm({"g": RewardModelConfig(k=K), "iav": LinearConfig()}), prompts(1)
    assert (model(ids, alpha={"iav": 1.0}).logits > RULED_OUT).all()
    both = model(ids, alpha={"g": 1.0, "iav": 1.0}).logits[0]
    delta = model(ids, alpha={"iav": 1.0}).logits[0] - model(ids, alpha=0.0).logits[0]
    expected = naive(tiny_lm("llama").eval(), model.guide("g").tuned, ids[0])
    alike(both, torch.where(expected > RULED_OUT, expected + delta, expected))


@torch.no_grad()
def test_more_candidates_than_tokens_are_all_tokens():
    model = args_lm(k=VOCAB + 50)
    assert (model(prompts(1, 3), alpha=1.0).logits > RULED_OUT).all()


# ---- what it costs ------------------------------------------------------------------------------------------


def shapes_seen(model: AlignedModel) -> list[tuple[int, int]]:
    """The shapes of the ids that the reward model's decoder is given from now on."""
    seen: list[tuple[int, int]] = []
    decoder = model.guide("g").tuned.base_model
    decoder.register_forward_pre_hook(
        lambda _, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize(("rows", "k"), [(1, 2), (3, 2), (3, 7)])
def test_a_step_is_one_forward_whatever_k_and_rows_and_the_prompt_is_read_once(rows, k):
    model = args_lm(k=k)
    seen = shapes_seen(model)
    model.generate(prompts(rows), alpha=1.0, do_sample=False, max_new_tokens=3)
    # The prompt, then only the continuations of its last token; then each new token with its continuations.
    assert seen == [(rows, 12), (rows, k), (rows, 1 + k), (rows, 1 + k)]
    assert model.guide("g").extra_forwards == 1


def test_candidates_come_from_the_logits_that_a_step_needs_anyway():
    model, calls = args_lm(k=2), []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    model.generate(prompts(2), alpha=1.0, do_sample=False, max_new_tokens=3)
    assert len(calls) == 2 + 1 + 1  # a prompt's candidates are found first, and its last token is decoded after


@torch.no_grad()
def test_chunks_of_continuations_change_nothing(monkeypatch):
    model, ids = args_lm("mistral"), prompts(2)
    whole = model(ids, alpha=1.0).logits
    seen = shapes_seen(model)
    monkeypatch.setattr(module, "BATCH_TOKENS", 5 * 2 * K)
    alike(model(ids, alpha=1.0).logits, whole)
    assert seen == [(2, 12), (2, 5 * K), (2, 5 * K), (2, 2 * K)]
    monkeypatch.setattr(module, "BATCH_TOKENS", 1)  # never fewer than one position at a time
    alike(model(ids, alpha=1.0).logits, whole)


@torch.no_grad()
def test_samples_stay_within_the_candidates():
    model, ids = args_lm(), prompts(1)
    torch.manual_seed(0)
    texts = model.generate(ids, alpha=0.1, do_sample=True, temperature=5.0, num_return_sequences=8, max_new_tokens=8)
    assert len({tuple(text) for text in texts.tolist()}) > 4
    candidates = model.backbone.lm(texts).logits.topk(K).indices
    for text, allowed in zip(texts, candidates, strict=True):
        assert all(text[t + 1] in allowed[t] for t in range(11, len(text) - 1))


# ---- reward models of one's own -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_classifier_from_a_folder(architecture, tmp_path):
    folder = on_disk(tmp_path / "reward", architecture)
    model, ids = args_lm(model=folder), prompts(2)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = model(ids, alpha=1.0).logits
    for row in range(2):
        alike(logits[row], naive(tiny_lm("llama").eval(), classifier, ids[row]))
    guide = model.guide("g")
    assert (guide.stored(), list(guide.parameters()), guide.cache_layers) == ({}, [], LAYERS)
    model.save_pretrained(tmp_path / "saved")
    again = AlignedModel.from_pretrained(tmp_path / "saved", backbone=tiny_lm("llama"))
    assert torch.equal(again(ids, alpha=1.0).logits, logits)


@pytest.mark.parametrize("tune", ["none", "lora", "full"])
def test_what_a_trainer_trains_is_what_decodes(tune):
    model, ids = args_lm(tune=tune), prompts(1)
    guide, before = model.guide("g"), model(ids, alpha=1.0).logits
    trained = {id(p) for p in guide.tuned.parameters() if p.requires_grad}
    assert trained == {id(p) for p in guide.parameters()}
    decoder = {p.data_ptr() for p in guide.tuned.base_model.parameters()}
    backbone = {p.data_ptr() for p in model.backbone.lm.base_model.parameters()}
    assert (backbone <= decoder) if tune != "full" else not backbone & decoder
    optimizer = torch.optim.SGD([p for p in guide.tuned.parameters() if p.requires_grad], lr=1.0)
    guide.tuned(ids).logits.sum().backward()
    optimizer.step()
    with torch.no_grad():
        alike(model(ids, alpha=1.0).logits[0], naive(tiny_lm("llama").eval(), guide.tuned, ids[0]))
        assert not torch.equal(model(ids, alpha=1.0).logits, before)
        assert torch.equal(model(ids, alpha=0.0).logits, tiny_lm("llama").eval()(ids).logits)
    score = HIDDEN
    stored = sum(x.numel() for x in guide.stored().values())
    assert stored == sum(p.numel() for p in guide.parameters()) >= score
    assert (stored == score) == (tune == "none")


# ---- what is refused ----------------------------------------------------------------------------------------


def test_no_objective_trains_it_and_the_remedy_is_named():
    a_method = Method(name="g", guide=RewardModelConfig(k=K), objectives=(Kl(),))
    batch = PairCollator(0)([{"prompt_ids": [BOS, 5], "chosen_ids": [6, EOS], "rejected_ids": [7, EOS]}])
    with pytest.raises(DualHeadError, match=r"only acts during decoding.*'dual-head train reward'"):
        GuidedLoss(args_lm(), a_method, guide="g")(**batch)


def test_embeddings_alone_are_refused():
    with pytest.raises(DualHeadError, match="reads token ids, so inputs_embeds are not enough"):
        args_lm()(inputs_embeds=torch.randn(1, 3, HIDDEN), alpha=1.0)


@pytest.mark.parametrize("architecture", ["cohere", "granite"])
def test_an_architecture_without_a_classifier_is_refused_for_training_only(architecture):
    model = args_lm(architecture)
    assert model(prompts(1, 4), alpha=1.0).logits.isfinite().all()
    with pytest.raises(DualHeadError, match=f"no sequence classifier for {architecture}. Train the reward model on"):
        _ = model.guide("g").tuned


def test_what_is_no_reward_model_is_refused_with_the_remedy(tmp_path):
    def refused(said: str, **options) -> None:
        with pytest.raises(DualHeadError, match=said):
            args_lm(**options)

    folder = on_disk(tmp_path / "reward")
    refused("needs one label and a score head", model=on_disk(tmp_path / "two", labels=2))
    refused("used as it is: leave out tune", model=folder, tune="lora")
    refused("k must be at least 1, not 0", k=0)
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), model=str(tmp_path / "empty"))


@torch.no_grad()
def test_the_remedy_works_a_fully_tuned_one_is_a_classifier_and_a_lora_is_not(tmp_path):
    ids = prompts(1)
    for tune in ("full", "lora"):
        trained = args_lm(tune=tune)
        trained.guide("g").tuned.save_pretrained(tmp_path / tune)
        if tune == "lora":
            with pytest.raises(DualHeadError, match=r"not a whole reward model: it lacks .* weights"):
                args_lm(model=str(tmp_path / tune))
            continue
        torch.testing.assert_close(
            args_lm(model=str(tmp_path / tune))(ids, alpha=1.0).logits, trained(ids, alpha=1.0).logits, **CLOSE
        )


def test_a_score_that_was_never_trained_is_refused(tmp_path):
    lm = tiny_lm("llama")
    lm.config.num_labels = 1
    lm.save_pretrained(tmp_path)
    with pytest.raises(DualHeadError, match=r"lacks 1 weights, the first is 'score\.weight'"):
        args_lm(model=str(tmp_path))


def test_a_part_of_its_backbone_cannot_leave_it_and_a_model_of_its_own_can(tmp_path):
    with pytest.raises(DualHeadError, match=r"Only one in a folder or on the hub can move.*--guide.tune full"):
        RewardModelConfig().moved_from("somewhere")
    config = RewardModelConfig(model=on_disk(tmp_path / "reward"))
    assert config.moved_from("somewhere") is config


def test_a_fresh_score_head_is_small_and_random():
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"g": RewardModelConfig()})
    (score,) = model.guide("g").parameters()
    assert isinstance(score, nn.Parameter)
    assert score.shape == (1, HIDDEN)
    assert 0 < score.std() < 0.05
