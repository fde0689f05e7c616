"""Whatever transformers' `generate` calls the model for runs at the strength of the request, or is refused by name."""

import pytest
import torch
from models import guided_lm, tiny_lm
from transformers import GenerationConfig
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from dual_head import AlignedModel, DualHeadError, LinearConfig, LinearDecay, RewardHeadConfig

PROMPTS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
NEGATIVE = torch.tensor([[13, 14], [15, 16]])
NEW, SCALE = 6, 1.7
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
SCORED = {**GREEDY, "output_scores": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model() -> AlignedModel:
    """Two guides, one of which looks back and keeps keys of its own."""
    return guided_lm({"head": RewardHeadConfig(num_heads=2, head_dim=8), "map": LinearConfig()})


def same(ours, theirs) -> bool:
    return torch.equal(ours.sequences, theirs.sequences) and all(map(torch.equal, ours.scores, theirs.scores))


# ---- classifier-free guidance ------------------------------------------------------------------------------


@torch.no_grad()
def free_guidance(model: AlignedModel, negative: torch.Tensor, alphas) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and scores of b + scale (a - b), both branches at alphas(t) for new token t, without a cache."""
    ids, others, scores = PROMPTS, negative, []
    for t in range(NEW):
        a, b = (model(x, alpha=alphas(t), use_cache=False).logits[:, -1].log_softmax(-1) for x in (ids, others))
        scores.append(b + SCALE * (a - b))
        token = scores[-1].argmax(-1, keepdim=True)
        ids, others = torch.cat([ids, token], 1), torch.cat([others, token], 1)
    return ids, torch.stack(scores)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("negative", [NEGATIVE, None], ids=["negative", "none"])
@pytest.mark.parametrize(
    ("alpha", "at"),
    [
        (0.4, lambda _: 0.4),
        ([0.4, -1.5], lambda _: [0.4, -1.5]),
        ({"head": 0.8, "map": [-0.5, 2.0]}, lambda _: {"head": 0.8, "map": [-0.5, 2.0]}),
        (
            {"head": LinearDecay(3.0, -1.0, NEW), "map": 0.3},
            lambda t: {"head": 3.0 - 4.0 * t / NEW, "map": 0.3},
        ),
    ],
    ids=["number", "rows", "guides", "schedule"],
)
def test_both_branches_of_classifier_free_guidance_run_at_the_strength_of_the_request(
    model, alpha, at, negative, use_cache
):
    options = {**SCORED, "guidance_scale": SCALE, "negative_prompt_ids": negative, "use_cache": use_cache}
    ours = model.generate(PROMPTS, alpha=alpha, **options)
    tokens, scores = free_guidance(model, PROMPTS[:, -1:] if negative is None else negative, at)
    assert torch.equal(ours.sequences, tokens)
    torch.testing.assert_close(torch.stack(ours.scores), scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"negative_prompt_ids": NEGATIVE}], ids=str)
def test_classifier_free_guidance_at_alpha_0_gives_the_bits_of_the_model_loaded_by_itself(model, more):
    lm = tiny_lm("llama").eval()
    lm.generation_config.eos_token_id = None
    options = {**SCORED, "guidance_scale": SCALE, **more}
    assert same(model.generate(PROMPTS, alpha=0.0, **options), lm.generate(PROMPTS, **options))


def test_a_processor_of_the_callers_own_is_bound_to_the_request_and_left_as_it_was(model):
    theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(SCALE, model, unconditional_ids=NEGATIVE)
    ours = model.generate(PROMPTS, alpha=[0.4, -1.5], logits_processor=[theirs], **SCORED)
    options = {"guidance_scale": SCALE, "negative_prompt_ids": NEGATIVE}
    assert same(ours, model.generate(PROMPTS, alpha=[0.4, -1.5], **options, **SCORED))
    assert theirs.model is model


def test_negative_prompts_of_other_rows_than_the_prompts_are_refused(model):
    with pytest.raises(DualHeadError, match="strengths for 2 rows, and 3 rows"):
        model.generate(PROMPTS, alpha=[0.4, 1.0], guidance_scale=2.0, negative_prompt_ids=NEGATIVE[[0, 1, 0]], **GREEDY)


# ---- other ways of decoding --------------------------------------------------------------------------------


def test_a_prompt_read_in_chunks_is_read_at_the_strength_of_the_request(model):
    whole = model.generate(PROMPTS, alpha=[0.4, -1.5], **GREEDY)
    assert torch.equal(model.generate(PROMPTS, alpha=[0.4, -1.5], prefill_chunk_size=3, **GREEDY), whole)


def says_no_alpha(model, input_ids, **_):
    for _ in range(NEW):
        input_ids = torch.cat([input_ids, model(input_ids).logits[:, -1:].argmax(-1)], 1)
    return input_ids


def generates_within(model, input_ids, alpha, guides, **_):
    return model.generate(input_ids, alpha=alpha, guides=guides, **GREEDY)


def asks_for_copies(model, input_ids, alpha, guides, **_):
    """As contrastive search does: several rows for each."""
    for _ in range(NEW):
        logits = model(input_ids.repeat_interleave(3, 0), alpha=alpha, guides=guides).logits[1::3, -1:]
        input_ids = torch.cat([input_ids, logits.argmax(-1)], 1)
    return input_ids


@pytest.mark.parametrize("how", [says_no_alpha, generates_within, asks_for_copies])
def test_a_decoding_of_the_callers_own_runs_at_the_strength_of_the_request(model, how):
    ours = model.generate(PROMPTS, alpha=[0.4, -1.5], custom_generate=how, **GREEDY)
    assert torch.equal(ours, model.generate(PROMPTS, alpha=[0.4, -1.5], **GREEDY))
    assert not torch.equal(ours, model.generate(PROMPTS, **GREEDY))


def test_a_decoding_from_a_folder_runs_at_the_strength_of_the_request(model, tmp_path):
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(
        "from transformers import GenerationMixin\n\n\n"
        "def decode(model, input_ids, **inputs):\n    return model._sample(input_ids, **inputs)\n\n\n"
        "def generate(model, *args, **options):\n"
        "    return GenerationMixin.generate(model, *args, custom_generate=decode, **options)\n"
    )
    options = {"custom_generate": str(tmp_path), "trust_remote_code": True}
    ours = model.generate(PROMPTS, alpha=[0.4, -1.5], **options, **GREEDY)
    assert torch.equal(ours, model.generate(PROMPTS, alpha=[0.4, -1.5], **GREEDY))


def test_the_strength_of_a_request_ends_with_it(model):
    default = model(PROMPTS).logits

    def breaks(model, input_ids, **_):
        assert not torch.equal(model(input_ids).logits, default)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS, alpha=-1.0, custom_generate=breaks, **GREEDY)
    assert torch.equal(model(PROMPTS).logits, default)


def test_another_model_inside_a_request_runs_at_its_own_strength(model):
    other = guided_lm({"map": LinearConfig()}, seed=1)
    expected = other(PROMPTS).logits

    def asks_another(model, input_ids, **_):
        return other(input_ids).logits

    assert torch.equal(model.generate(PROMPTS, alpha=-1.0, custom_generate=asks_another, **GREEDY), expected)


def test_a_schedule_is_not_guessed_for_a_call_that_says_no_alpha(model):
    with pytest.raises(DualHeadError, match=r"alpha follows a schedule.*Hand on the alpha and guides"):
        model.generate(PROMPTS, alpha=LinearDecay(), custom_generate=says_no_alpha, **GREEDY)


def test_a_model_can_be_its_own_assistant(model):
    ours = model.generate(PROMPTS[:1], alpha=0.4, assistant_model=model, **GREEDY)
    assert torch.equal(ours, model.generate(PROMPTS[:1], alpha=0.4, **GREEDY))


@pytest.mark.parametrize("option", [{"assistant_early_exit": 1}, {"use_mtp": True}], ids=str)
def test_drafts_of_the_models_own_are_refused_by_name(model, option):
    with pytest.raises(DualHeadError, match=f"{next(iter(option))} .*Use assistant_model"):
        model.generate(PROMPTS[:1], alpha=0.4, **option, **GREEDY)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate(PROMPTS, cache_implementation="paged"),
        lambda model: model.generate(PROMPTS, GenerationConfig(cache_implementation="paged")),
        lambda model: model.continuous_batching_context_manager().__enter__(),
    ],
    ids=["argument", "config", "manager"],
)
def test_the_paged_cache_is_refused_however_it_is_asked_for(model, call):
    with pytest.raises(DualHeadError, match=r"no paged cache.*use generate_batch\(\)"):
        call(model)
