"""Classes of texts: in order, at constant memory, whatever the batch; nothing but inputs goes through the backbone."""

import math

import numpy as np
import pytest
import torch
from classifiers import LONGEST, some_texts, write_dhrd
from files import word_tokenizer
from models import ARCHITECTURES, tiny_lm
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head import DualHeadError
from dual_head.classify import predict
from dual_head.classify.calibration import Calibration
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.classify.predict import Predictor

TEXTS = some_texts(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dhrd(tmp_path_factory.mktemp("predict"), labels=("no", "maybe", "yes"))


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.load(folder, device="cpu", batch_tokens=64, window=16)


def logits(predictor: Predictor, texts) -> np.ndarray:
    return np.array([scored.logits for scored in predictor.score(texts)])


def reference(folder, texts: list[str]) -> np.ndarray:
    """One text at a time through the model as training has it, adapters and all."""
    model, tokenizer = DualHeadReasoningModel.from_pretrained(folder), word_tokenizer()
    return np.array([model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0].tolist() for text in texts])


def spied(predictor: Predictor, monkeypatch) -> list[dict]:
    """What the model is called with."""
    calls, forward = [], predictor.model.forward

    def spy(input_ids, **given):
        calls.append({"input_ids": input_ids, **given})
        return forward(input_ids, **given)

    monkeypatch.setattr(predictor.model, "forward", spy)
    return calls


# ---- what comes out ----------------------------------------------------------------------------------------


def test_predictions_are_in_order_and_those_of_each_text_alone(folder, predictor):
    found = list(predictor.predict(TEXTS))
    wanted = torch.softmax(torch.tensor(reference(folder, TEXTS)), -1).numpy()
    assert np.allclose([list(one.probabilities.values()) for one in found], wanted, atol=1e-5)
    assert [one.index for one in found] == wanted.argmax(1).tolist()
    assert [one.label for one in found] == [("no", "maybe", "yes")[i] for i in wanted.argmax(1)]
    assert len({one.label for one in found}) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_decoder_needs_a_mask_for_padding_on_the_right(architecture):
    model = DualHeadReasoningModel.from_backbone(tiny_lm(architecture), 3, tune="frozen")
    torch.nn.init.normal_(model.head.score.weight)
    predictor = Predictor(model, word_tokenizer(), batch_tokens=200, window=12)
    assert not predictor._masked
    texts = TEXTS[:12]
    ids = [word_tokenizer()(text)["input_ids"] for text in texts]
    alone = torch.cat([model(torch.tensor([own])).logits for own in ids]).detach().numpy()
    assert np.allclose(logits(predictor, texts), alone, atol=1e-4)


def test_batches_without_a_mask_have_hardly_any_padding(predictor, monkeypatch):
    calls = spied(predictor, monkeypatch)
    wide = Predictor(predictor.model, predictor.tokenizer, batch_tokens=64)
    list(wide.predict(TEXTS))
    cells = sum(call["input_ids"].numel() for call in calls)
    tokens = sum(len(text.split()) + 1 for text in TEXTS)
    assert all(call["attention_mask"] is None for call in calls)
    assert max(call["input_ids"].numel() for call in calls) <= 64
    assert tokens <= cells < 1.1 * tokens


def test_a_decoder_that_looks_ahead_gets_a_mask_where_there_is_padding(predictor, monkeypatch):
    decoder = predictor.model.decoder
    forward = decoder.forward

    def bidirectional(input_ids, *, attention_mask=None, position_ids=None):
        output, layers = forward(input_ids, attention_mask=attention_mask, position_ids=position_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = output.last_hidden_state
        mean = (hidden * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        output.last_hidden_state = hidden + mean
        return output, layers

    monkeypatch.setattr(decoder, "forward", bidirectional)
    both = Predictor(predictor.model, predictor.tokenizer, batch_tokens=64)
    calls = spied(both, monkeypatch)
    alone = np.concatenate([logits(both, [text]) for text in TEXTS])
    assert all(call["attention_mask"] is None for call in calls)  # a row alone has no padding
    calls.clear()
    assert np.allclose(logits(both, TEXTS), alone, atol=1e-4)
    for call in calls:
        equal = len(set(call["pool_at"].tolist())) == 1
        assert (call["attention_mask"] is None) == equal


def test_only_inputs_go_through_and_no_lm_head_runs(predictor, monkeypatch):
    head = predictor.model.decoder.lm.get_output_embeddings()
    monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("the lm_head ran"))
    calls = spied(predictor, monkeypatch)
    list(predictor.predict(["good0 good1"]))
    assert [call["input_ids"].tolist() for call in calls] == [[[1, 4, 5]]]
    assert [call["pool_at"].tolist() for call in calls] == [[2]]


def test_an_empty_text_is_classified_and_a_lone_surrogate_too(predictor):
    empty, odd, fine = predictor.predict(["", "good0 \ud800", "good0 ?"])
    assert math.isclose(sum(empty.probabilities.values()), 1)
    assert odd.probabilities == fine.probabilities


# ---- lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "kept"), [("no", slice(LONGEST - 1)), ("end", slice(LONGEST - 1)), ("start", None)])
def test_a_text_too_long_is_cut_as_in_training_and_says_so(tmp_path, side, kept):
    short = Predictor.load(write_dhrd(tmp_path, text={"truncate_inputs": side}), device="cpu")
    words = some_texts(1, longest=1000, seed=5)[0].split()
    assert len(words) > LONGEST
    whole, cut, fits = short.predict([" ".join(words), " ".join(words[kept or slice(-LONGEST + 1, None)]), "good0"])
    assert whole.truncated
    assert not cut.truncated
    assert not fits.truncated
    assert np.allclose(list(whole.probabilities.values()), list(cut.probabilities.values()), atol=1e-6)


def test_without_a_length_of_its_own_a_classifier_reads_what_the_backbone_can(tmp_path):
    folder = write_dhrd(tmp_path, text={"max_input_length": None})
    long, fits = Predictor.load(folder, device="cpu").predict([" ".join(["good0"] * n) for n in (64, 63)])
    assert (long.truncated, fits.truncated) == (True, False)  # 64 positions, <s> in one of them


# ---- memory and order ------------------------------------------------------------------------------------------


def test_no_text_is_read_further_ahead_than_one_window(predictor):
    given = 0

    def texts():
        nonlocal given
        for text in some_texts(100):
            given += 1
            yield text

    for seen, _ in enumerate(predictor.predict(texts())):
        assert given <= seen + predictor.window
    assert seen == 99
    assert given == 100


def test_spaces_around_a_text_are_left_out_as_in_training(predictor, monkeypatch):
    seen = []
    monkeypatch.setattr(predict, "input_ids_of", lambda rows, _: (seen.append(row.input) or [1] for row in rows))
    list(predictor.score([" good0 bad1\n", "good0 bad1", " "]))
    assert seen == ["good0 bad1", "good0 bad1", ""]


def test_a_window_starts_its_batches_anew(predictor):
    # So that a run which goes on after whole windows gives the very bits of one that was never stopped.
    assert (logits(predictor, TEXTS)[32:] == logits(predictor, TEXTS[32:])).all()


def test_one_text_is_no_list_of_texts(predictor):
    with pytest.raises(DualHeadError, match=r"\[text\]"):
        next(predictor.predict("good0"))


# ---- sureness --------------------------------------------------------------------------------------------------


def test_what_is_no_text_is_refused_with_its_place(predictor):
    for texts, words in (
        ([None], "Text 1 is not a string but None"),
        (["good1"] * 20 + [7], "Text 21 is not a string but 7"),
    ):
        with pytest.raises(DualHeadError, match=words):
            list(predictor.predict(texts))


def test_the_folders_temperature_is_used_unless_another_is_asked_for(folder, predictor, tmp_path):
    copied = write_dhrd(tmp_path, labels=("no", "maybe", "yes"))
    Calibration(temperature=2.0).save(copied)
    warm = Predictor.load(copied, device="cpu")
    plain = Predictor.load(copied, device="cpu", temperature=1.0)
    raw = logits(warm, TEXTS)
    assert (raw == logits(plain, TEXTS)).all()
    found = [list(one.probabilities.values()) for one in warm.predict(TEXTS)]
    assert np.allclose(found, torch.softmax(torch.tensor(raw) / 2, -1), atol=1e-6)
    assert plain.temperature == predictor.temperature == 1


def test_the_temperature_of_an_earlier_training_is_left_aside(tmp_path):
    folder = write_dhrd(tmp_path)
    Calibration(temperature=2.0).save(folder)
    other = write_dhrd(tmp_path, seed=1)
    for file in (SAFE_WEIGHTS_NAME, "config.json"):
        (folder / file).write_bytes((other / file).read_bytes())
    with pytest.warns(UserWarning, match="trained again"):
        assert Predictor.load(folder, device="cpu").temperature == 1
    assert Predictor.load(folder, device="cpu", temperature=3.0).temperature == 3


def test_an_accelerator_that_torch_was_built_for_and_that_is_not_there_is_not_taken(folder, monkeypatch):
    built = lambda check_available=False: None if check_available else torch.device("cuda")  # noqa: E731
    monkeypatch.setattr(torch.accelerator, "current_accelerator", built)
    assert Predictor.load(folder).model.device.type == "cpu"


def test_several_labels_are_those_that_are_probable_enough(tmp_path):
    folder = write_dhrd(tmp_path, labels=("a", "b", "c"), problem_type="multi_label_classification")
    found = Predictor.load(folder, device="cpu", threshold=0.4)
    raw = logits(found, TEXTS)
    for row, one in zip(raw, found.predict(TEXTS), strict=True):
        shares = 1 / (1 + np.exp(-row.astype(float)))
        assert list(one.probabilities.values()) == pytest.approx(shares)
        assert one.index == tuple(np.flatnonzero(shares >= 0.4))
        assert one.label == tuple("abc"[i] for i in one.index)
    assert {len(one.index) for one in found.predict(TEXTS)} > {1}


# ---- loading -----------------------------------------------------------------------------------------------------


def test_adapters_are_folded_into_weights_of_our_own_only(folder):
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import LlamaForCausalLM

    own = LlamaForCausalLM.from_pretrained(folder.parent / "backbone")
    before = own.model.layers[0].self_attn.q_proj.weight.clone()
    mine, theirs = Predictor.load(folder, device="cpu"), Predictor.load(folder, backbone=own, device="cpu")
    layers = lambda p: [m for m in p.model.decoder.modules() if isinstance(m, BaseTunerLayer)]  # noqa: E731
    assert not layers(mine)
    assert layers(theirs)
    assert (own.model.layers[0].self_attn.q_proj.get_base_layer().weight == before).all()
    assert np.allclose(logits(mine, TEXTS), logits(theirs, TEXTS), atol=1e-5)


@pytest.mark.parametrize("tune", ["lora", "full", "frozen"])
def test_weights_take_a_dtype_and_buffers_keep_theirs(tmp_path, tune):
    folder = write_dhrd(tmp_path, tune=tune)
    plain, narrow = (Predictor.load(folder, device="cpu", dtype=dtype) for dtype in ("auto", "bfloat16"))
    assert {p.dtype for p in narrow.model.decoder.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in narrow.model.decoder.buffers()} == {torch.float32}
    assert {p.dtype for p in narrow.model.head.parameters()} == {torch.float32}
    gap = np.abs(logits(plain, TEXTS) - logits(narrow, TEXTS)).max()
    assert 0 < gap < 0.2 * np.abs(logits(plain, TEXTS)).max()


def test_autocast_multiplies_in_bf16(folder, predictor):
    narrow = Predictor.load(folder, device="cpu", autocast=True)
    assert {p.dtype for p in narrow.model.decoder.parameters()} == {torch.float32}
    gap = np.abs(logits(predictor, TEXTS) - logits(narrow, TEXTS)).max()
    assert 1e-3 < gap < 0.2 * np.abs(logits(predictor, TEXTS)).max()


def test_what_cannot_be_loaded_or_run_says_why(folder, predictor, monkeypatch, tmp_path):
    with pytest.raises(DualHeadError, match="Did you mean 'bfloat16'"):
        Predictor.load(folder, dtype="bfloat")
    with pytest.raises(DualHeadError, match="device nowhere"):
        Predictor.load(folder, device="nowhere")
    with pytest.raises(DualHeadError, match="at least 1"):
        Predictor.load(folder, device="cpu", batch_tokens=0)
    other = write_dhrd(tmp_path)
    word_tokenizer(["<pad>", "<s>", "</s>", "<unk>", "a"]).save_pretrained(other)
    with pytest.raises(DualHeadError, match="not the one that the classifier was trained with"):
        Predictor.load(other, device="cpu")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor.model, "forward", full)
    with pytest.raises(DualHeadError, match="--batch_tokens"):
        list(predictor.predict(["good0"]))
