"""Exported classifiers: transformers alone, or onnxruntime alone, give the classifier's own logits; and refusals."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import yaml
from files import word_tokenizer
from models import ARCHITECTURES, BOS, EOS, PAD, VOCAB, tiny_lm
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from dual_head.classify import Example
from dual_head.classify.data.tokenize import input_ids_of
from dual_head.classify.export import onnx as onnx_exporting
from dual_head.classify.export import plain as exporting
from dual_head.classify.export.onnx import export_onnx
from dual_head.classify.export.plain import PAD as NEW_PAD
from dual_head.classify.export.plain import export, merged, own_padding
from dual_head.classify.model import DualHeadReasoningModel
from dual_head.errors import DualHeadError

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
WITHOUT_A_CLASS = ("cohere", "granite")
TEXTS = ["good1 good2 ask3", "bad4", "once upon a time good3 bad2 bad1 bad0", "ask1 ask2"]
ALONE = """
import json, sys
sys.modules["dual_head"] = None  # importing it fails from here on
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
texts, found = json.load(sys.stdin), []
for folder in sys.argv[1:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    found.append(model(**batch).logits.tolist())
print(json.dumps(found))
"""


def classifier(architecture="llama", *, head="linear", tune="lora", **options) -> DualHeadReasoningModel:
    """A tiny classifier of three labels whose head and adapters are random, as after training."""
    model = DualHeadReasoningModel.from_backbone(
        tiny_lm(architecture), labels=["no", "maybe", "yes"], head=head, tune=tune, **options
    )
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.startswith("head."):
            nn.init.normal_(parameter, std=0.1)
    return model


def padded(rows: list[list[int]], *, pad: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, T]."""
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    ids = [[pad for _ in gap] + row if side == "left" else row + [pad for _ in gap] for row, gap in pairs]
    mask = [gap + [1] * len(row) if side == "left" else [1] * len(row) + gap for row, gap in pairs]
    return torch.tensor(ids), torch.tensor(mask)


def rows(seed: int = 5, *lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=draw).tolist() for n in lengths or (9, 1, 4, 17)]


def own_logits(model: DualHeadReasoningModel, texts: list[str]) -> torch.Tensor:
    """The classifier's logits of each text alone, tokenised as training does."""
    tokenizer = word_tokenizer()
    ids = [torch.tensor([[BOS, *tokenizer(text, add_special_tokens=False)["input_ids"]]]) for text in texts]
    with torch.no_grad():
        return torch.cat([model(each).logits for each in ids])


# ---- a plain checkpoint ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in WITHOUT_A_CLASS])
@pytest.mark.parametrize("eos_pads", [False, True])
def test_a_checkpoint_gives_the_classifiers_logits_for_rows_of_any_length(architecture, eos_pads, tmp_path):
    model, tokenizer = classifier(architecture), word_tokenizer()
    if eos_pads:
        tokenizer.pad_token = tokenizer.eos_token
    written = export(model, tokenizer, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (
        written.architecture
        == type(plain).__name__
        == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    )
    assert plain.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert plain.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    pad = AutoTokenizer.from_pretrained(tmp_path).pad_token_id
    assert plain.config.pad_token_id == pad
    assert (pad == PAD) != eos_pads
    inputs = [*rows(), [7, 8, EOS], [EOS]]  # what ends in EOS is pooled there
    ids, mask = padded(inputs, pad=pad)
    with torch.no_grad():
        found = plain(ids, attention_mask=mask).logits
        wanted = torch.cat([model(torch.tensor([row])).logits for row in inputs])
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.slow
def test_transformers_alone_reads_texts_as_the_classifier_does(tmp_path):
    names = ("llama", "gpt2", "gemma2")
    models = [classifier(name) for name in names]
    for name, model in zip(names, models, strict=True):
        tokenizer = word_tokenizer()
        tokenizer.pad_token = None  # as GPT-2's has none
        export(model, tokenizer, tmp_path / name)
    command = [sys.executable, "-c", ALONE, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, check=True)
    for model, found in zip(models, json.loads(done.stdout), strict=True):
        torch.testing.assert_close(torch.tensor(found), own_logits(model, TEXTS), **CLOSE)


def test_padding_on_the_left_is_right_too_or_its_user_is_told(tmp_path):
    for name in ("llama", "qwen2", "gpt2"):
        model = classifier(name)
        notes = export(model, word_tokenizer(), tmp_path / name).notes
        ids, mask = padded(rows(), pad=PAD, side="left")
        with torch.no_grad():
            plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
            difference = (plain(ids, attention_mask=mask).logits - model(ids, attention_mask=mask).logits).abs().max()
        told = any("Pad on the right" in note for note in notes)
        assert told == (difference > 1e-4) == (name == "gpt2")
        assert AutoTokenizer.from_pretrained(tmp_path / name).padding_side == "right"


@pytest.mark.parametrize("taken", ["eos_token", "unk_token", "bos_token", None])
def test_padding_that_a_text_may_end_in_becomes_a_token_of_its_own(taken, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = getattr(tokenizer, taken) if taken else None
    before = len(tokenizer)
    model = classifier()
    written = export(model, tokenizer, tmp_path)
    assert any(NEW_PAD in note for note in written.notes)
    assert len(tokenizer) == before  # the caller's is as it was
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert (read.pad_token, read.pad_token_id) == (NEW_PAD, before)
    texts = [*TEXTS, "good1 </s>", "good2 nonsense"]
    batch = read(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path)(**batch).logits
    torch.testing.assert_close(found, own_logits(model, texts), **CLOSE)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, which spells "</s>" where that is text."""
    alphabet = {one: i for i, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_special_token_that_a_text_says_is_text_to_what_is_exported_too(tmp_path):
    own = byte_tokenizer()
    made, _ = own_padding(own, classifier().config)
    made.save_pretrained(tmp_path)
    (wanted,) = input_ids_of([Example("so </s> it")], own)
    assert AutoTokenizer.from_pretrained(tmp_path)("so </s> it")["input_ids"] == wanted
    assert own.eos_token_id not in wanted


def test_a_padding_token_beyond_the_embeddings_gets_a_row(tmp_path):
    lm, tokenizer = (
        tiny_lm("llama"),
        word_tokenizer([*(f"w{i}" for i in range(VOCAB - 4)), "<s>", "</s>", "<unk>", "a"]),
    )
    tokenizer.pad_token = None
    assert len(tokenizer) > VOCAB
    model = DualHeadReasoningModel.from_backbone(lm, 2, head="linear", tune="frozen")
    export(model, tokenizer, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.pad_token_id == len(tokenizer)
    assert plain.get_input_embeddings().weight.shape[0] == len(tokenizer) + 1
    assert torch.equal(plain.get_input_embeddings().weight[:VOCAB], lm.get_input_embeddings().weight)


@pytest.mark.parametrize("tune", ["lora", "full", "frozen"])
def test_an_export_changes_nothing_of_the_classifier(tune, tmp_path):
    model = classifier(tune=tune)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    learns = [p.requires_grad for p in model.parameters()]
    export(model, word_tokenizer(), tmp_path)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == learns


def test_adapters_are_folded_in_and_other_weights_shared():
    lm = classifier("gpt2").decoder.lm
    plain = merged(lm)
    assert not [name for name, _ in plain.named_modules() if "lora" in name]
    layer, own = lm.transformer.h[0].attn.c_attn, plain.transformer.h[0].attn.c_attn
    a, b = (getattr(layer, name)["default"].weight.double() for name in ("lora_A", "lora_B"))
    by_hand = layer.base_layer.weight.double() + 2.0 * (b @ a).T  # alpha 32 over r 16; Conv1D holds W the other way
    torch.testing.assert_close(own.weight.double(), by_hand, atol=1e-6, rtol=1e-6)
    assert plain.transformer.wte.weight.data_ptr() == lm.transformer.wte.weight.data_ptr()


def test_weights_are_written_in_the_dtype_asked_for(tmp_path):
    model = classifier()
    written = export(model, word_tokenizer(), tmp_path, dtype="bfloat16")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert 1e-4 < written.difference < 0.1
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(DualHeadError, match="Did you mean 'float16'"):
        export(model, word_tokenizer(), tmp_path / "other", dtype="flaot16")


def test_the_pipeline_says_the_labels_and_cuts_as_training_did(tmp_path):
    text = {"max_input_length": 4, "truncate_inputs": "start", "template": "{premise} Therefore {hypothesis}"}
    model = classifier(text=text)
    notes = export(model, word_tokenizer(), tmp_path, temperature=2.5).notes
    assert [note for note in notes if "{premise}" in note or "at most 4 tokens" in note or "by 2.5" in note] == notes
    classify = pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")
    (found,) = classify(["good1 good2 ask3 bad4 bad5"], truncation=True)
    shares = own_logits(model, ["ask3 bad4 bad5"])[0].softmax(-1)  # <s> and the last three
    for row in found:
        assert row["score"] == pytest.approx(shares[model.config.label2id[row["label"]]].item(), abs=1e-5)


def test_several_labels_a_text_stay_so(tmp_path):
    export(classifier(problem_type="multi_label_classification"), word_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_the_card_says_how_to_load_it_and_what_to_know(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    export(classifier(), tokenizer, tmp_path)
    said = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(said.split("---")[1])["pipeline_tag"] == "text-classification"
    assert "no, maybe, yes" in said
    assert NEW_PAD in said
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044  # another user's server reads it too


def test_a_tokenizer_that_ends_texts_is_told_of(tmp_path):
    from tokenizers import processors

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert any("add_special_tokens=False" in note for note in export(classifier(), tokenizer, tmp_path).notes)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WITHOUT_A_CLASS)
def test_a_decoder_without_a_class_is_refused_with_the_remedy(architecture, tmp_path):
    with pytest.raises(DualHeadError, match=f"no sequence classifier for '{architecture}'.*--onnx"):
        export(classifier(architecture), word_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    linear, out = classifier(), tmp_path / "out"
    quantised = copy.deepcopy(linear)
    quantised.decoder.lm.model.norm.weight = nn.Parameter(torch.ones(32, dtype=torch.int8), requires_grad=False)
    other = classifier(tokenizer_fingerprint="of another")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine.txt").write_text("mine")
    cases = {
        "--head linear": (classifier(head="mlp"), out),
        "quantised": (quantised, out),
        "not the tokenizer": (other, out),
        "not empty": (linear, tmp_path / "held"),
    }
    for remedy, (model, folder) in cases.items():
        with pytest.raises(DualHeadError, match=remedy):
            export(model, word_tokenizer(), folder)
    assert not out.exists()
    assert [file.name for file in (tmp_path / "held").iterdir()] == ["mine.txt"]


def test_overwriting_leaves_nothing_of_the_model_before(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_text("of the model before")
    (tmp_path / "mine.txt").write_text("mine")
    export(classifier(), word_tokenizer(), tmp_path, overwrite=True)
    assert not (tmp_path / "model-00001-of-00002.safetensors").exists()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_other_logits_than_the_classifiers_are_never_left_on_disk(tmp_path, monkeypatch):
    model = classifier()

    def spoilt(function, layer):
        def run(*arguments):
            lm = function(*arguments)
            nn.init.normal_(lm.get_submodule(layer).weight)
            return lm

        return run

    cases = {"folded in": ("merged", "model.layers.1.mlp.down_proj"), "rounding does not explain": ("_plain", "score")}
    for said, (name, layer) in cases.items():
        with monkeypatch.context() as patched:
            patched.setattr(exporting, name, spoilt(getattr(exporting, name), layer))
            with pytest.raises(DualHeadError, match=said):
                export(model, word_tokenizer(), tmp_path)
        assert not list(tmp_path.iterdir())


# ---- ONNX --------------------------------------------------------------------------------------------------


def runs_as_the_classifier(architecture: str, folder, **options) -> None:
    """Export, run with onnxruntime on several shapes and paddings, and compare."""
    runtime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    model = classifier(architecture, **options)
    written = export_onnx(model, word_tokenizer(), folder / "model.onnx")
    assert written.difference < 1e-4
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["input_ids", "attention_mask"]
    for lengths in ((1,), (1, 1), (5,), (20, 3, 11), (2, 2, 2, 2, 2), (90, 1)):
        for side in ("left", "right"):
            ids, mask = padded(rows(7, *lengths), pad=EOS, side=side)
            (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            with torch.no_grad():
                wanted = torch.cat([model(torch.tensor([row])).logits for row in rows(7, *lengths)])
            torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_gives_the_classifiers_logits_and_says_its_labels(tmp_path):
    text = {"max_input_length": 32, "truncate_inputs": "no", "template": None}
    runs_as_the_classifier("gpt2", tmp_path, head="mlp", text=text)
    said = json.loads((tmp_path / "model.json").read_text())
    assert (said["labels"], said["problem_type"]) == (["no", "maybe", "yes"], "single_label_classification")
    assert (said["text"], said["ids_in_front"]) == (text, [BOS])
    assert AutoTokenizer.from_pretrained(tmp_path)("good1")["input_ids"] == word_tokenizer()("good1")["input_ids"]
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    # GPT-2's input embeddings are its lm_head, and are looked up only: no product is as wide as the vocabulary.
    assert [tuple(x.dims) for x in graph.initializer].count((VOCAB, 32)) == 1
    widths = [shape.dim[-1].dim_value for x in graph.value_info if (shape := x.type.tensor_type.shape).dim]
    assert 32 in widths
    assert VOCAB not in widths


def test_the_tokenizer_beside_an_onnx_file_reads_and_cuts_texts_as_training_did(tmp_path, monkeypatch):
    def written(_network, file, _name):
        file.write_bytes(b"")

    monkeypatch.setattr(onnx_exporting, "_trace", written)
    monkeypatch.setattr(onnx_exporting, "_compared", lambda *_: 0.0)
    monkeypatch.setattr(onnx_exporting, "require", lambda *_: None)
    tokenizer, text = byte_tokenizer(), "so </s> it"
    export_onnx(classifier(text={"max_input_length": 5, "truncate_inputs": "start"}), tokenizer, tmp_path / "m.onnx")
    (whole,) = input_ids_of([Example(text)], tokenizer)
    beside = AutoTokenizer.from_pretrained(tmp_path)
    assert beside(text)["input_ids"] == whole
    assert beside(text, truncation=True)["input_ids"] == whole[-5:]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs_as_onnx(architecture, head, tmp_path):
    runs_as_the_classifier(architecture, tmp_path, head=head)


def test_onnx_is_refused_before_anything_is_traced(tmp_path, monkeypatch):
    model, tokenizer = classifier(), word_tokenizer()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(DualHeadError, match=r"pip install 'dual-head\[onnx\]'"):
            export_onnx(model, tokenizer, tmp_path / "out" / "model.onnx")
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("it traced"))
    (tmp_path / "mine.txt").write_text("mine")
    cases = {
        "Name it 'model.onnx'": (model, tmp_path / "out" / "model.bin"),
        "not empty": (model, tmp_path / "model.onnx"),
        "not the tokenizer": (classifier(tokenizer_fingerprint="of another"), tmp_path / "out" / "model.onnx"),
    }
    for remedy, (given, file) in cases.items():
        with pytest.raises(DualHeadError, match=remedy):
            export_onnx(given, tokenizer, file)
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_torch_cannot_trace_is_told_in_one_paragraph(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

    def fails(*_, **__):
        print("a graph of a thousand lines")
        raise torch.onnx.OnnxExporterError("no such operator\nand a thousand lines")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(DualHeadError, match="cannot trace LlamaForCausalLM: no such operator Export a plain"):
        export_onnx(classifier(), word_tokenizer(), tmp_path / "model.onnx")
    assert "thousand" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
