"""What guides keep on models of images and text, when a prompt has images.

The other promises are those of every architecture, in test_every_guide.py: these models are among its own.
"""

import pytest
import torch
from models import IMAGE, IMAGE_TEXT, config_of, guided_lm, prompts_with_images, tiny_lm
from torch import nn

from dual_head import AlignedModel
from dual_head.errors import DualHeadError
from dual_head.guides import guide_class, kinds

# No new token stands for an image, of which there would be none.
GREEDY = {"do_sample": False, "max_new_tokens": 12, "suppress_tokens": [IMAGE]}
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
READERS = [kind for kind in kinds() if not guide_class(kind).reads_tokens]  # of the backbone's hidden states

MARKS = {"llava": (), "qwen2_vl": (pytest.mark.heavy,)}
pytestmark = pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=MARKS.get(name, (pytest.mark.slow,))) for name in IMAGE_TEXT]
)


def plain_lm(architecture: str):
    lm = tiny_lm(architecture).eval()
    lm.generation_config.eos_token_id = None
    return lm


def guided(architecture: str, kind: str = "reward_head") -> AlignedModel:
    return guided_lm({"g": config_of(kind)}, architecture, spread=0.5)


@pytest.mark.parametrize("beams", [1, 3])
def test_alpha_0_gives_the_bits_of_the_model_loaded_by_itself(architecture, beams):
    model, lm, inputs = guided(architecture), plain_lm(architecture), prompts_with_images(architecture)
    assert torch.equal(model(**inputs, alpha=0.0).logits, lm(**inputs).logits)
    options = {**GREEDY, "num_beams": beams, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = model.generate(**inputs, alpha=0.0, **options), lm.generate(**inputs, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


def test_an_image_is_read(architecture):
    model, inputs = guided(architecture), prompts_with_images(architecture)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert (model(**inputs, alpha=1.0).logits - model(**other, alpha=1.0).logits)[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("kind", READERS)
def test_decoding_behind_an_image_equals_one_pass(architecture, kind):
    model, inputs = guided(architecture, kind), prompts_with_images(architecture)
    sequences = model.generate(**inputs, alpha=[1.0, -0.5], **GREEDY)
    for options in ({"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(**inputs, alpha=[1.0, -0.5], **options, **GREEDY), sequences)
    whole = {name: nn.functional.pad(x, (0, 11)) if x.shape == (2, 10) else x for name, x in inputs.items()}
    logits = model(**{**whole, "input_ids": sequences[:, :-1]}, alpha=[1.0, -0.5]).logits[:, 9:]
    logits[..., IMAGE] = -torch.inf
    assert torch.equal(logits.argmax(-1), sequences[:, 10:])


@pytest.mark.parametrize("kind", READERS)
def test_alpha_per_row_equals_rows_one_by_one(architecture, kind):
    model, inputs = guided(architecture, kind), prompts_with_images(architecture)
    together = model.generate(**inputs, alpha=[1.0, -0.5], **GREEDY)
    for i, alpha in enumerate([1.0, -0.5]):
        row = {name: x.chunk(2)[i] for name, x in inputs.items()}
        assert torch.equal(model.generate(**row, alpha=alpha, **GREEDY), together[i : i + 1])
    assert not torch.equal(model.generate(**inputs, alpha=0.0, **GREEDY), together)


def test_beams_keep_the_image_of_their_row(architecture):
    model, inputs = guided(architecture), prompts_with_images(architecture)
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    cached = model.generate(**inputs, alpha=[1.0, 0.5], **beams)
    assert torch.equal(cached, model.generate(**inputs, alpha=[1.0, 0.5], use_cache=False, **beams))


@pytest.mark.parametrize("kind", sorted(set(kinds()) - set(READERS)))
def test_a_guide_that_runs_a_model_over_the_tokens_is_refused_beside_an_image(architecture, kind):
    model, inputs = guided(architecture, kind), prompts_with_images(architecture)
    with pytest.raises(DualHeadError, match="'g' runs a model over the tokens, and that one is not"):
        model.generate(**inputs, alpha=1.0, **GREEDY)
    assert model.generate(**inputs, alpha=0.0, **GREEDY).shape == (2, 22)
    words = {"input_ids": inputs["input_ids"].where(inputs["input_ids"] != IMAGE, 3)}
    assert model.generate(**words, alpha=1.0, **GREEDY).shape == (2, 22)


def test_a_lora_adapts_the_decoder_of_text_alone(architecture):
    model = guided(architecture, "language_model")
    names = [name for name, _ in model.guide("g").tuned.named_parameters() if "lora_" in name]
    assert names
    assert not [name for name in names if "vision" in name or "visual" in name or "projector" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"return_trace": True}, "return_trace reads the finished text again"), ({"prefill_chunk_size": 4}, "may cut an")],
)
def test_what_reads_a_prompt_again_or_by_parts_is_refused_with_images(architecture, options, message):
    model, inputs = guided(architecture), prompts_with_images(architecture)
    with pytest.raises(DualHeadError, match=message):
        model.generate(**inputs, **options, **GREEDY)


def test_a_misspelt_input_is_still_refused(architecture):
    model, inputs = guided(architecture), prompts_with_images(architecture)
    with pytest.raises(TypeError, match="pixel_valeus"):
        model(inputs["input_ids"], pixel_valeus=inputs["pixel_values"])
    with pytest.raises(DualHeadError, match="pixel_valeus"):
        model.generate(inputs["input_ids"], pixel_valeus=inputs["pixel_values"], **GREEDY)


def test_a_model_in_a_folder_is_loaded_with_what_reads_its_images(architecture, tmp_path):
    model, inputs = guided(architecture), prompts_with_images(architecture)
    model.backbone.lm.save_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "guides")
    loaded = AlignedModel.from_pretrained(tmp_path / "guides", backbone=tmp_path / "backbone")
    assert type(loaded.backbone.lm) is type(model.backbone.lm)
    assert torch.equal(loaded(**inputs, alpha=0.7).logits, model(**inputs, alpha=0.7).logits)
    assert loaded.config.costs["backbone"]["parameters"] == model.backbone.lm.num_parameters()
