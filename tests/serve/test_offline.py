"""Many prompts in one running batch, called on the model."""

import gc
import logging

import numpy as np
import pytest
import torch
from engines import TOKENIZER, generated, ids, prompts, tiny_model
from models import guided_lm
from transformers import GenerationConfig

from dual_head.errors import DualHeadError
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.model.alpha import LinearDecay
from dual_head.serve import offline, paged, versions
from dual_head.serve.engine import Engine
from dual_head.serve.settings import EngineSettings

SETTINGS = EngineSettings(page_size=8, num_blocks=64, max_batch_tokens=48, max_rows=8)
OPTIONS = {"tokenizer": TOKENIZER, "max_new_tokens": 6, "settings": SETTINGS}
TEXTS = ["Once upon a time", "How can I", "The", "12 + 30 ="]


@pytest.fixture(scope="module")
def model():
    return tiny_model("hidden", "gate")


@pytest.mark.parametrize(
    ("alpha", "of_prompt"),
    [
        (None, lambda i: {"hidden": 1.0, "gate": 1.0}),
        (0.5, lambda i: 0.5),
        ([0.0, 0.5, 2.0, -1.0], lambda i: [0.0, 0.5, 2.0, -1.0][i]),
        (torch.tensor([0.0, 0.5, 2.0, -1.0]), lambda i: [0.0, 0.5, 2.0, -1.0][i]),
        (torch.tensor(0.5), lambda i: 0.5),
        (np.array([0.0, 0.5, 2.0, -1.0]), lambda i: [0.0, 0.5, 2.0, -1.0][i]),
        ({"hidden": [0.0, 1.0, 2.0, 3.0], "gate": 1.0}, lambda i: {"hidden": float(i), "gate": 1.0}),
        (
            [{"gate": 2.0}, 1.0, None, LinearDecay(2.0, 0.0, 3)],
            lambda i: [{"gate": 2.0}, 1.0, None, LinearDecay(2.0, 0.0, 3)][i],
        ),
    ],
)
def test_texts_are_those_of_generate_one_by_one(model, alpha, of_prompt):
    pieces = model.generate_batch(TEXTS, alpha=alpha, **OPTIONS)
    one_by_one = [
        model.generate(text, alpha=of_prompt(i), tokenizer=TOKENIZER, max_new_tokens=6) for i, text in enumerate(TEXTS)
    ]
    assert [piece.text for piece in pieces] == one_by_one


def test_ids_and_conversations_are_prompts_too(model):
    talking = tiny_model("hidden", "gate")
    tokenizer = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="</s>", bos_token="<s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    conversation = [{"role": "user", "content": "hi"}]
    pieces = talking.generate_batch(
        [prompts()[0], torch.tensor(prompts()[1]), conversation], **{**OPTIONS, "tokenizer": tokenizer}
    )
    assert [ids(piece) for piece in pieces[:2]] == [generated(talking, prompt, 1.0, 6) for prompt in prompts()[:2]]
    assert pieces[2].text == talking.generate(conversation, tokenizer=tokenizer, max_new_tokens=6)


@pytest.mark.parametrize(("frozen", "calls"), [(0, ["freeze", "unfreeze"]), (7, ["freeze"])])
def test_what_was_there_is_not_searched_for_garbage_and_is_left_as_it_was(model, monkeypatch, frozen, calls):
    made = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen)
    for name in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: made.append(name))
    model.generate_batch(TEXTS[:1], **OPTIONS)
    assert made == calls


def test_a_seed_gives_every_prompt_its_own_text_again(model):
    same = ["Once"] * 4
    first, again = (
        [piece.text for piece in model.generate_batch(same, temperature=1.5, seed=3, **OPTIONS)] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 1


def test_a_seed_for_each_prompt_goes_with_it(model):
    sampled = {"temperature": 1.5, **OPTIONS}
    texts = [piece.text for piece in model.generate_batch(TEXTS, seed=[5, 6, 7, 8], **sampled)]
    assert texts == [piece.text for piece in model.generate_batch(TEXTS, seed=5, **sampled)]
    assert [piece.text for piece in model.generate_batch(TEXTS[::-1], seed=[8, 7, 6, 5], **sampled)] == texts[::-1]
    for seed in (range(5, 9), torch.arange(5, 9), np.arange(5, 9), np.int64(5), torch.tensor(5)):
        assert [piece.text for piece in model.generate_batch(TEXTS, seed=seed, **sampled)] == texts


def test_no_more_is_generated_than_the_context_holds(model, caplog):
    logging.getLogger("dual_head").propagate = True
    (piece,) = model.generate_batch([prompts()[6]], **{**OPTIONS, "max_new_tokens": 1000})
    assert len(piece.tokens) == 128 - 61
    assert "max_new_tokens reduced from 1000 to 67" in caplog.text


def test_pages_are_made_for_the_prompts_there_are(model, monkeypatch):
    engines = []
    start = Engine.start
    monkeypatch.setattr(Engine, "start", lambda self: engines.append(self) or start(self))
    pieces = model.generate_batch(TEXTS, tokenizer=TOKENIZER, max_new_tokens=6)
    assert [len(piece.tokens) for piece in pieces] == [6] * 4
    # 16 characters and 6 more for each of four rows, in pages of 32 tokens: 3, and one that is being filled.
    assert (engines[0].context_length, engines[0]._batch._manager.continuous_batching_config.num_blocks) == (22, 4)


@pytest.mark.parametrize(
    "prompt",
    ["hello", [{"role": "user", "content": "hi"}], [1, 2, 3], torch.tensor([1, 2]), torch.ones(2, 3).long()],
)
def test_what_is_one_prompt_or_padded_is_refused_with_the_remedy(model, prompt):
    with pytest.raises(DualHeadError, match=r"\[prompt\]|as a list"):
        model.generate_batch(prompt, **OPTIONS)


def test_a_stop_may_be_one_text(model):
    (whole,) = model.generate_batch(TEXTS[:1], **{**OPTIONS, "max_new_tokens": 12})
    stop = whole.text[4:7]
    assert len(stop) == 3
    (cut,) = model.generate_batch(TEXTS[:1], stop=stop, **{**OPTIONS, "max_new_tokens": 12})
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_no_prompts_give_nothing(model):
    assert model.generate_batch([], **OPTIONS) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": [1.0, 2.0]}, "2 values for 4 prompts"),
        ({"seed": [1]}, "seed has 1 values for 4 prompts"),
        ({"sead": 1}, "Did you mean 'seed'"),
        ({"temprature": 1.0}, "Did you mean 'temperature'"),
        ({"alpha": {"hiden": 1.0}}, "Did you mean 'hidden'"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_wrong_options_are_refused(model, options, words):
    with pytest.raises(DualHeadError, match=words):
        model.generate_batch(TEXTS, **{**OPTIONS, **options})


# ---- where it is used instead of generate --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "settings", "faster"),
    [
        (2, {"max_new_tokens": 6}, {}, True),
        (1, {"max_new_tokens": 6}, {}, False),
        (2, {"temperature": 0.0}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, True),
        (2, {}, {"do_sample": True, "temperature": 0.6}, False),
        (2, {"temperature": 1.0}, {}, False),
        (2, {"num_beams": 2}, {}, False),
        (2, {}, {"repetition_penalty": 1.1}, False),
    ],
)
def test_several_prompts_decoded_greedily_are_faster_in_a_batch(model, monkeypatch, prompts, options, settings, faster):
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=2, pad_token_id=0, **settings))
    assert offline.is_faster(model, prompts, **options) is faster


def test_a_batch_samples_with_the_settings_of_the_model_that_the_engine_has(model, monkeypatch):
    def settings(**options):
        monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=2, pad_token_id=0, **options))
        return offline.sampling_in_a_batch(model)

    assert settings() == {}
    assert settings(do_sample=True, temperature=0.6, top_k=5) == {}
    assert settings(top_p=0.8, repetition_penalty=1.1) == {"top_p": 0.8, "repetition_penalty": 1.1}
    assert settings(typical_p=0.9) is None
    assert settings(num_beams=2) is None


def test_what_pages_cannot_hold_is_not_servable(model, monkeypatch):
    assert offline.is_servable(model)
    monkeypatch.setattr(paged, "_shape_of_all", lambda *_: refuse())
    assert not offline.is_servable(model)
    assert offline.sampling_in_a_batch(model) is None


def refuse():
    raise DualHeadError("its keys and values are of several shapes")


def test_what_cannot_be_served_is_not_faster(model, monkeypatch):
    assert not offline.is_faster(guided_lm({"companion": LanguageModelConfig(rank=4)}), 2)
    assert not offline.is_faster(model.backbone.lm, 2)
    flexible = tiny_model("hidden")
    flexible.backbone.lm.set_attn_implementation("flex_attention")
    assert not offline.is_faster(flexible, 2)
    monkeypatch.setattr(versions.transformers, "__version__", "5.24.0")
    assert not offline.is_faster(model, 2)
