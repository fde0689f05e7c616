"""An aligned model over pages: the tokens of plain generate, whatever guides, strengths, chunks and evictions."""

from pathlib import Path

import pytest
import torch
from engines import GREEDY, GUIDES, TOKENIZER, generated, ids, prompts, small_engine, tiny_model, unequal_to_generate
from models import config_of, guided_lm, tiny_lm
from transformers import AutoConfig, AutoModelForCausalLM

from dual_head import AlignedModel
from dual_head.errors import DualHeadError
from dual_head.guides import kinds
from dual_head.guides.hidden import HiddenConfig
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.guides.reward_head import RewardHeadConfig
from dual_head.guides.reward_model import RewardModelConfig
from dual_head.model.alpha import LinearDecay
from dual_head.serve import batch, paged, pages, versions
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings
from dual_head.serve.types import GenerationRequest

SEVERAL = ("hidden", "linear", "gate")


KINDS = [("hidden",), ("linear", "multilayer"), ("gate",), ("even_gate",), SEVERAL]


@pytest.mark.parametrize("names", KINDS, ids="+".join)
def test_tokens_are_those_of_generate_one_by_one(names):
    with small_engine(tiny_model(*names)) as engine:
        assert unequal_to_generate(engine) == []
        assert engine.stats().prefix_hit_tokens >= 100  # the second round read pages of other strengths


@pytest.mark.parametrize("against", [None, "backbone"])
def test_companions_on_the_backbone_are_served(against):
    companion = LanguageModelConfig(rank=4, against=against)
    model = guided_lm({"companion": companion, "gate": GUIDES["gate"]}, spread=0.1)
    with small_engine(model) as engine:
        assert unequal_to_generate(engine, rounds=1) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_guides_in_another_precision_than_the_backbone_keep_it(dtype):
    model = tiny_model(*SEVERAL, "even_gate")
    for name in model.config.guides:
        model.guide(name).to(dtype)
    with small_engine(model) as engine:
        assert unequal_to_generate(engine, rounds=1) == []


def test_a_guide_in_float32_on_a_backbone_in_bfloat16_is_served():
    model = tiny_model("gate")
    model.backbone.lm.to(torch.bfloat16)
    assert {x.dtype for x in model.guide("gate").parameters()} == {torch.float32}
    prompt = prompts()[5]
    with small_engine(model) as engine:
        (piece,) = engine.generate([GenerationRequest(prompt, 8, {"gate": 1.0}, GREEDY)])
    assert ids(piece) == generated(model, prompt, {"gate": 1.0}, 8)


@pytest.mark.parametrize(
    ("given", "stored", "width"),
    [(torch.float32, torch.bfloat16, 10), (torch.float16, torch.bfloat16, 5), (torch.bfloat16, torch.float32, 5)],
)
def test_pages_of_another_precision_round_nothing(given, stored, width):
    x = torch.randn(2, 3, 4, 5).to(given)
    kept = pages.as_stored(x, stored)
    assert kept.dtype == stored
    assert kept.shape == (2, 3, 4, width)
    assert torch.equal(pages._as_given(kept, given), x)


# ---- steering vectors, whose pages are of one strength -------------------------------------------------------


@pytest.mark.parametrize("names", [("vectors",), ("reply_vectors", "gate"), ("vectors", "reply_vectors", "hidden")])
def test_vectors_at_a_strength_for_each_request_are_served(names):
    with small_engine(tiny_model(*names, spread=0.5)) as engine:
        assert unequal_to_generate(engine) == []


def asked_twice(alpha: dict, *, spread: float = 0.5, name: str = "vectors", again: dict | None = None) -> int:
    """Tokens that the second of two requests of one prompt of 61 tokens reads from the pages of the first."""
    model, prompt = tiny_model(name, "hidden", spread=spread), prompts()[6]
    with small_engine(model) as engine:
        for strengths in (alpha, alpha if again is None else again):
            before = engine.stats().prefix_hit_tokens
            (piece,) = engine.generate([GenerationRequest(prompt, 6, strengths, GREEDY)])
            assert ids(piece) == generated(model, prompt, strengths, 6)
        return engine.stats().prefix_hit_tokens - before


def test_pages_are_shared_where_the_strength_of_vectors_is_equal():
    assert asked_twice({"vectors": 0.7}) == 56  # whole pages of 8
    assert asked_twice({"vectors": 0.7, "hidden": 1.0}, again={"vectors": 0.7, "hidden": -1.0}) == 56
    assert asked_twice({"vectors": LinearDecay(1.0, 0.0, 4)}) == 56
    assert asked_twice({"hidden": 1.0}, again={}) == 56


def test_pages_are_not_shared_where_the_strength_of_vectors_differs():
    assert asked_twice({"vectors": 0.7}, again={"vectors": 0.8}) == 0
    assert asked_twice({"vectors": 0.7}, again={}) == 0
    assert asked_twice({"vectors": LinearDecay(1.0, 0.0, 4)}, again={"vectors": 1.0}) == 0


@pytest.mark.parametrize(("name", "alpha"), [("reply_vectors", 1.5), ("vectors", LinearDecay(1.5, -1.0, 9))])
def test_a_reply_that_becomes_a_prompt_shares_no_page_where_its_strength_was_of_the_reply(name, alpha):
    model, strengths = tiny_model(name, spread=0.5), {name: alpha}
    with small_engine(model) as engine:
        (first,) = engine.generate([GenerationRequest(prompts()[5], 24, strengths, GREEDY)])
        longer = prompts()[5] + ids(first)
        (second,) = engine.generate([GenerationRequest(longer, 8, strengths, GREEDY)])
        assert ids(second) == generated(model, longer, strengths, 8)
        assert engine.stats().prefix_hit_tokens == 0


def test_strengths_without_end_are_forgotten_and_their_pages_with_them(monkeypatch):
    monkeypatch.setattr(batch, "NUMBERED", 2)
    model, prompt = tiny_model("vectors", spread=0.5), prompts()[6]
    with small_engine(model) as engine:
        for i in (1, 2, 3, 4, 1):
            (piece,) = engine.generate([GenerationRequest(prompt, 6, {"vectors": i / 4}, GREEDY)])
            assert ids(piece) == generated(model, prompt, {"vectors": i / 4}, 6)
        assert engine.stats().prefix_hit_tokens == 0
        assert len(engine._batch._numbers) <= 3


def test_the_strengths_of_a_step_are_read_once_a_request(monkeypatch):
    of_tokens, counts = paged.PagedModel._strengths, []

    def seen(self, rows, *rest):
        counts.append(len(rows))
        return of_tokens(self, rows, *rest)

    monkeypatch.setattr(paged.PagedModel, "_strengths", seen)
    with small_engine(tiny_model("vectors")) as engine:
        engine.generate([GenerationRequest([3] * 40, 2, {"vectors": 1.0}, GREEDY)])
    assert set(counts) == {1}


def test_vectors_beside_windows_are_refused():
    with pytest.raises(DualHeadError, match="'vectors' cannot be served: its rows of the backbone look back through a"):
        small_engine(tiny_model("vectors", name="mistral"))


# ---- backbones -----------------------------------------------------------------------------------------------


# Windows, a mix of windows and none, capped scores, and learned positions.
@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "gemma2", "gpt2"])
def test_other_architectures_are_served(architecture):
    with small_engine(tiny_model("hidden", "gate", name=architecture)) as engine:
        assert unequal_to_generate(engine, rounds=1) == []


def test_eager_attention_is_served_as_it_is():
    model = tiny_model("gate")
    model.backbone.lm.set_attn_implementation("eager")
    with small_engine(model) as engine:
        assert unequal_to_generate(engine, rounds=1) == []
    assert model.backbone.lm.config._attn_implementation == "eager"


def test_other_attention_is_refused():
    model = tiny_model("hidden")
    model.backbone.lm.set_attn_implementation("flex_attention")
    with pytest.raises(DualHeadError, match="attn_implementation='sdpa'"):
        small_engine(model)


def test_steps_of_single_tokens_have_a_row_for_each_request(monkeypatch):
    shapes = []
    by_row = pages.Pages.by_row

    def seen(self):
        made = by_row(self)
        shapes.append(tuple(made.visible.shape))
        return made

    monkeypatch.setattr(pages.Pages, "by_row", seen)
    with small_engine(tiny_model("hidden", "gate")) as engine:
        engine.generate([GenerationRequest(prompt, 4, {}, GREEDY) for prompt in ([3] * 5, [4] * 20)])
    assert shapes == [(2, 21), (2, 22), (2, 23)]  # the step of prompts has one row; then each request has its own


def test_tokens_of_a_step_of_prompts_are_compared_with_keys_of_their_request(monkeypatch):
    sizes = []

    class Seen(pages.AttentionByRequest):
        def _attention(self, query, key, value, attn_mask=None, **options):
            sizes.append([(q.stop - q.start, k.stop - k.start) for q, k in self.slices])
            return super()._attention(query, key, value, attn_mask, **options)

    monkeypatch.setattr(pages, "AttentionByRequest", Seen)
    model = tiny_model("hidden", "gate")
    with small_engine(model) as engine:
        engine.generate([GenerationRequest(prompt, 4, {}, GREEDY) for prompt in ([3] * 5, [4] * 20)])
    assert sizes == [[(5, 5), (20, 20)]] * (model.backbone.num_layers + 1)  # a call of each layer, and of the gate


def test_a_step_of_tokens_and_prompts_has_the_keys_of_each(monkeypatch):
    sizes = set()

    class Seen(pages.AttentionByRequest):
        def __init__(self, queries, keys):
            super().__init__(queries, keys)
            sizes.add(tuple((q.stop - q.start, k.stop - k.start) for q, k in self.slices))

    monkeypatch.setattr(pages, "AttentionByRequest", Seen)
    with small_engine(tiny_model("hidden"), max_rows=2) as engine:
        assert unequal_to_generate(engine, rounds=1) == []
    # A token of a reply after its prompt, beside a chunk of another prompt that may have a beginning in the pages.
    assert any(len(step) == 2 and {q for q, _ in step} > {1} for step in sizes)
    assert any(1 < q < k for step in sizes for q, k in step)


def test_requests_that_are_put_off_go_on_as_they_were(monkeypatch):
    evicted = []
    with small_engine(tiny_model("hidden", "gate"), num_blocks=22) as engine:
        manager = engine._batch._processor.offloading_manager
        offload = manager.offload_requests
        monkeypatch.setattr(manager, "offload_requests", lambda *args: evicted.append(1) or offload(*args))
        assert unequal_to_generate(engine, count=24, rounds=1) == []
    assert evicted


def test_strength_zero_is_the_backbone():
    model = tiny_model(*SEVERAL)
    backbone = tiny_lm("llama")
    with small_engine(model) as engine:
        pieces = engine.generate([GenerationRequest(prompt, 8, {}, GREEDY) for prompt in prompts()])
    for prompt, piece in zip(prompts(), pieces, strict=True):
        output = backbone.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert ids(piece) == output[0, len(prompt) :].tolist()


def test_a_strength_that_decays_does_so_from_the_first_new_token():
    decay, model = LinearDecay(3.0, -1.0, 7), tiny_model("hidden", "gate")
    with small_engine(model) as engine:
        requests = [GenerationRequest(p, 12, {"hidden": decay, "gate": 1.0}, GREEDY) for p in prompts()]
        pieces = engine.generate(requests)
    tokens = [generated(model, x.prompt_ids, dict(x.alpha), 12) for x in requests]
    assert [ids(piece) for piece in pieces] == tokens
    assert tokens != [generated(model, x.prompt_ids, {"hidden": 3.0, "gate": 1.0}, 12) for x in requests]


def test_fused_probabilities_are_served():
    model = tiny_model("hidden", "linear", fusion="probabilities")
    requests = [
        GenerationRequest(p, 8, {"hidden": 0.9 - 0.1 * i, "linear": 0.1 * i}, GREEDY) for i, p in enumerate(prompts())
    ]
    with small_engine(model) as engine:
        pieces = engine.generate(requests)
    assert [ids(piece) for piece in pieces] == [generated(model, x.prompt_ids, x.alpha, 8) for x in requests]


# ---- the check itself catches what goes wrong --------------------------------------------------------------


def test_strengths_at_the_wrong_rows_are_caught(monkeypatch):
    right = paged.PagedModel._strengths
    monkeypatch.setattr(paged.PagedModel, "_strengths", lambda *args: right(*args).flip(0))
    with small_engine(tiny_model("hidden")) as engine:
        assert len(unequal_to_generate(engine, rounds=1)) >= 3


def test_a_gate_without_history_is_caught(monkeypatch):
    update = pages.PagedSlot.update

    def forgetful(self, keys, values, layer=0):
        kept = update(self, keys, values, layer)
        return tuple(torch.cat([torch.zeros_like(x[..., :-1, :]), x[..., -1:, :]], -2) for x in kept)

    monkeypatch.setattr(pages.PagedSlot, "update", forgetful)
    with small_engine(tiny_model("gate")) as engine:
        assert len(unequal_to_generate(engine, rounds=1)) >= 3


def test_layers_of_guides_that_clash_are_caught(monkeypatch):
    placed = paged.PagedModel._placed
    monkeypatch.setattr(
        paged.PagedModel,
        "_placed",
        lambda self, *args: {n: ([0], shapes) for n, (_, shapes) in placed(self, *args).items()},
    )
    with small_engine(tiny_model("gate")) as engine:
        assert len(unequal_to_generate(engine, rounds=1)) >= 3


# ---- what cannot be served ---------------------------------------------------------------------------------


def test_a_reward_model_is_refused_with_the_reason():
    model = guided_lm({"scores": RewardModelConfig()})
    with pytest.raises(DualHeadError, match=r"'scores' cannot be served: a reward model reads candidates ahead"):
        small_engine(model)


def test_layers_without_pages_are_refused_by_name():
    model = tiny_model("hidden")
    model.backbone.config.attention_chunk_size = 8
    model.backbone.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(DualHeadError, match=r"LlamaForCausalLM cannot be served: .* no layers of chunked_attention"):
        small_engine(model)


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "vocab_size": 97,
}


def other_model(model_type: str, **options) -> AlignedModel:
    """A random backbone of an architecture that no other test has, with a guide."""
    config = AutoConfig.for_model(model_type, **SIZES, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config)
        lm.generation_config.eos_token_id = None
        return AlignedModel.from_backbone(lm, {"hidden": HiddenConfig(rank=4, init_std=0.5)})


def test_pages_have_the_shape_of_the_keys_and_not_what_a_configuration_tells():
    # One head of keys for all queries, which its configuration calls otherwise.
    with small_engine(other_model("falcon", alibi=False, multi_query=True, new_decoder_architecture=False)) as engine:
        assert unequal_to_generate(engine, rounds=1) == []


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("bloom", {}, "it takes no positions"),
        ("falcon", {"alibi": True, "new_decoder_architecture": False}, "its attention takes no mask of our own"),
        (
            "gpt_neo",
            {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
            "its layers mask tokens by their places in a row",
        ),
        (
            "deepseek_v2",
            {
                "num_key_value_heads": 4,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "n_routed_experts": 2,
            }
            | {"qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 2, "num_experts_per_tok": 1},
            "its keys and values are 1 x 4, 1 x 8, and pages have one shape",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) and " " not in x else "",
)
def test_a_backbone_that_one_row_of_many_requests_would_change_is_refused(model_type, options, reason):
    with pytest.raises(DualHeadError) as refusal:
        small_engine(other_model(model_type, **options))
    assert f"cannot be served: {reason}" in str(refusal.value)
    assert str(refusal.value).endswith("Use generate, or another backbone.")


def test_the_page_on_serving_has_every_kind_where_it_belongs():
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "serving.md").read_text()
    table = text.split("| | served | refused |")[1].split("\n\n")[0]
    rows = [row.split("|")[2:4] for row in table.splitlines() if row.startswith(("| guides", "| second"))]
    for kind in kinds():
        try:
            paged.require_servable(guided_lm({"it": config_of(kind)}))
        except DualHeadError:
            column = 1
        else:
            column = 0
        assert any(f"`{kind}`" in row[column] for row in rows), kind
        assert column == 0 or not any(f"`{kind}`" in row[0] for row in rows), kind


def test_an_untested_transformers_is_refused_with_the_line_that_installs_a_tested_one(monkeypatch):
    for version in ("5.22.9", "5.24.0", "6.0.0.dev0"):
        monkeypatch.setattr(versions.transformers, "__version__", version)
        with pytest.raises(DualHeadError, match=rf"this is {version}.*pip install 'transformers>=5.23,<5.24'"):
            versions.require_tested_transformers()


# ---- sizes -------------------------------------------------------------------------------------------------


def test_pages_follow_from_the_context_where_the_memory_holds_more():
    model = AlignedModel.from_backbone(tiny_lm("llama"), {"gate": RewardHeadConfig(num_heads=2, head_dim=8)})
    engine = Engine(model, TOKENIZER, EngineSettings(max_rows=4))
    # 4 rows of a context of 128 tokens in pages of 32: 16, and one that is being filled.
    assert engine._batch._processor.cache.num_blocks == 17
    assert engine.context_length == 128


def test_pages_keep_to_their_share_of_the_memory(monkeypatch):
    memory = batch.psutil.virtual_memory()._replace(available=10_000_000)
    monkeypatch.setattr(batch.psutil, "virtual_memory", lambda: memory)
    engine = small_engine(tiny_model("hidden"), num_blocks=None, page_size=4, memory_share=0.01)
    # A token takes 2 layers x 2 x 16 x 4 bytes of pages and 2 x 48 x 4 of masks: 640. A hundredth holds 156, 39 pages.
    assert engine._batch._processor.cache.num_blocks == 39
    with pytest.raises(DualHeadError, match="Raise memory_share"):
        small_engine(tiny_model("hidden"), num_blocks=None, memory_share=0.0001)


def test_a_shorter_context_takes_fewer_pages():
    engine = Engine(tiny_model("hidden"), TOKENIZER, EngineSettings(max_rows=4, context_length=64))
    assert (engine.context_length, engine._batch._processor.cache.num_blocks) == (64, 9)
    longer = Engine(tiny_model("hidden"), TOKENIZER, EngineSettings(max_rows=4, context_length=1000))
    assert longer.context_length == 128


def test_a_context_wider_than_the_pages_ends_with_them():
    engine = small_engine(tiny_model("hidden"), num_blocks=4)
    assert engine.context_length == 32
    with pytest.raises(DualHeadError, match="context is 32"):
        engine.check(GenerationRequest(list(range(3, 36)), 1))
