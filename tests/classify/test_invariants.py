"""What no classifier may break, on every architecture: rationales, padding, neighbours and files change no logit.

And both losses are what a plain computation over whole logits in float64 says, however a step is split.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from files import word_tokenizer
from models import ARCHITECTURES, EOS, PAD, VOCAB, tiny_lm
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from dual_head.classify import Example, TextForm
from dual_head.classify.data.collate import ExampleCollator
from dual_head.classify.data.tokenize import ClassifyTokenizeOptions, Tokenized, tokenize_examples
from dual_head.classify.model import IGNORED, DualHeadReasoningModel
from dual_head.classify.train.trainer import ClassifierTrainer, ClassifierTrainingArguments
from dual_head.errors import DualHeadError

LABELS = 3
INPUTS = (5, 1, 9, 14, 2, 9)  # tokens
RESTS = (4, 7, 0, 3, 6, 0)
WITH_A_CLASS = [n for n in ARCHITECTURES if type(ARCHITECTURES[n]()) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def classifier(architecture="llama", *, dropout=0.0, seed=3, **options) -> DualHeadReasoningModel:
    """A tiny classifier whose head and adapters are random, as after training."""
    options.setdefault("lora", {"dropout": 0.0})
    model = DualHeadReasoningModel.from_backbone(tiny_lm(architecture), LABELS, dropout=dropout, **options)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.startswith("head."):
            nn.init.normal_(parameter, std=0.1)
    return model


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def rows(*, inputs=INPUTS, rests=RESTS, seed: int = 0, labels=(0, 2, 1, 1, 0, 2)) -> list[Tokenized]:
    """Random rows; the whole of each is learnt, its first token aside. Inputs do not depend on `seed`, rests do."""
    made = []
    for i, (before, after, label) in enumerate(zip(inputs, rests, labels, strict=True)):
        learnt = [False] + [True] * (before + after - 1)
        made.append(Tokenized(ids(before, i), ids(after, 100 * (seed + 1) + i), learnt, label, i))
    return made


def batch(rows: list[Tokenized], **options) -> dict[str, Tensor]:
    return ExampleCollator(**{"pad_id": PAD, **options})(rows)


@torch.no_grad()
def logits(model: DualHeadReasoningModel, rows: list[Tokenized], **options) -> Tensor:
    given = batch(rows, **options)
    return model(**{name: given[name] for name in ("input_ids", "attention_mask", "pool_at")}).logits


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(found, wanted, atol=tolerance * scale, rtol=0)


def head_calls(model: DualHeadReasoningModel) -> list[int]:
    """How many rows of hidden states every run of the lm_head has had."""
    calls: list[int] = []
    head = model.decoder.lm.get_output_embeddings()
    head.register_forward_hook(lambda _, given, __: calls.append(given[0].numel() // given[0].shape[-1]))
    return calls


# ---- rationales, padding and neighbours --------------------------------------------------------------------


@every_architecture
def test_class_logits_are_the_same_with_any_rationale_with_anothers_and_with_none(architecture):
    model = classifier(architecture)
    own, others = rows(), rows(seed=1)
    swapped = [
        Tokenized(row.input_ids, other.rest_ids, [], row.label, row.index)
        for row, other in zip(own, own[1:] + own[:1], strict=True)
    ]
    with_own = logits(model, own)
    assert with_own.std(0).min() > 0.01  # logits that are all the same could not tell
    assert torch.equal(logits(model, others), with_own)  # the same length of the batch, the same bits
    longest = max(len(row.input_ids) + len(row.rest_ids) for row in own)
    room = Tokenized(ids(1, 0), ids(longest + 6, 0), [], None, 0)  # makes rows of other lengths as wide
    bits = [logits(model, [*given, room])[:-1] for given in (own, swapped)]
    none = [Tokenized(row.input_ids, [], [], row.label, row.index) for row in own]
    bits.append(logits(model, [*none, room])[:-1])
    assert torch.equal(bits[0], bits[1])
    assert torch.equal(bits[0], bits[2])
    assert_close(logits(model, own, learn=False), with_own)
    assert_close(logits(model, swapped), with_own)


def test_rationales_never_reach_the_model_that_classifies():
    given = [batch(rows(seed=seed), learn=False) for seed in (0, 1)]
    assert given[0].keys() == given[1].keys() == {"input_ids", "attention_mask", "pool_at", "labels"}
    assert all(torch.equal(given[0][name], given[1][name]) for name in given[0])
    assert given[0]["input_ids"].shape == (len(INPUTS), max(INPUTS))
    examples = [Example("once upon", 0, "good1 good2"), Example("once upon", 0)]
    options = {"form": TextForm(), "names": ("no", "yes"), "rationales": False}
    read, _ = tokenize_examples(examples, word_tokenizer(), ClassifyTokenizeOptions(), **options)
    assert [row.rest_ids for row in read] == [[], []]
    assert read[0].input_ids == read[1].input_ids


@every_architecture
def test_padding_on_the_left_gives_what_padding_on_the_right_does(architecture):
    model = classifier(architecture)
    for learn in (False, True):
        assert_close(logits(model, rows(), side="left", learn=learn), logits(model, rows(), learn=learn))


@every_architecture
def test_without_an_index_the_last_token_is_pooled_on_either_side(architecture):
    model = classifier(architecture)
    given = [*rows(), Tokenized([7, 8, EOS], [], [], 0, 6), Tokenized([EOS], [], [], 0, 7)]
    for side, pad in itertools.product(("left", "right"), (PAD, EOS)):
        made = batch(given, side=side, pad_id=pad, learn=False)
        with torch.no_grad():
            found = model(made["input_ids"], attention_mask=made["attention_mask"]).logits
        assert torch.equal(found, logits(model, given, side=side, learn=False))


@every_architecture
def test_a_row_alone_is_scored_as_in_any_batch_and_in_any_order(architecture):
    model, given = classifier(architecture), rows()
    together = logits(model, given, learn=False)
    for i, row in enumerate(given):
        assert_close(logits(model, [row], learn=False)[0], together[i])
    by_length = sorted(range(len(given)), key=lambda i: len(given[i].input_ids))
    shuffled = [3, 0, 5, 1, 4, 2]
    for order, size in itertools.product((by_length, shuffled), (1, 2, 4)):
        buckets = [order[i : i + size] for i in range(0, len(order), size)]
        found = torch.cat([logits(model, [given[i] for i in bucket], learn=False) for bucket in buckets])
        assert_close(found[torch.tensor(order).argsort()], together)


@every_architecture
def test_padding_with_eos_changes_nothing_even_where_a_text_ends_in_it(architecture):
    model = classifier(architecture)
    given = [*rows(), Tokenized([7, 8, EOS], [], [], 0, 6), Tokenized([EOS], [], [], 0, 7)]
    for side in ("left", "right"):
        padded = logits(model, given, side=side, learn=False)
        assert torch.equal(logits(model, given, pad_id=EOS, side=side, learn=False), padded)
        assert_close(padded[6], logits(model, [given[6]], learn=False)[0])


# ---- files -------------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize(("tune", "head"), [("lora", "mlp"), ("full", "linear"), ("frozen", "linear")])
def test_what_is_loaded_gives_the_bits_of_what_was_saved(architecture, tune, head, tmp_path):
    model = classifier(architecture, tune=tune, head=head)
    if tune == "full":
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter.add_(0.01)
    model.save_pretrained(tmp_path)
    backbone = None if tune == "full" else tiny_lm(architecture)
    loaded = DualHeadReasoningModel.from_pretrained(tmp_path, backbone=backbone)
    assert torch.equal(logits(loaded, rows()), logits(model, rows()))
    lm = [own.decoder.lm(torch.tensor([ids(6, 1)])).logits for own in (model, loaded)]
    assert torch.equal(*lm)


def test_a_fully_tuned_classifier_is_loaded_with_the_attention_that_is_asked_for(tmp_path):
    DualHeadReasoningModel.from_backbone(tiny_lm("llama"), 2, tune="full").save_pretrained(tmp_path)
    loaded = DualHeadReasoningModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.decoder.lm.config._attn_implementation == "eager"


def test_a_fully_tuned_classifier_is_not_spread_over_devices_in_silence(tmp_path):
    DualHeadReasoningModel.from_backbone(tiny_lm("llama"), 2, tune="full").save_pretrained(tmp_path)
    with pytest.raises(DualHeadError, match="--device"):
        DualHeadReasoningModel.from_pretrained(tmp_path, device_map="auto")


def test_experts_take_no_dropout_and_the_error_says_what_to_set():
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(DualHeadError, match="--lora_dropout 0"):
        DualHeadReasoningModel.from_backbone(lm, 2)
    model = DualHeadReasoningModel.from_backbone(AutoModelForCausalLM.from_config(config), 2, lora={"dropout": 0.0})
    trained = {name for name, p in model.decoder.lm.named_parameters() if p.requires_grad}
    assert any("experts" in name for name in trained)


@pytest.mark.parametrize(("tune", "head"), [("lora", "linear"), ("full", "mlp"), ("frozen", "mlp")])
def test_other_heads_are_saved_too(tune, head, tmp_path):
    model = classifier("llama", tune=tune, head=head)
    model.save_pretrained(tmp_path)
    loaded = DualHeadReasoningModel.from_pretrained(tmp_path, backbone=None if tune == "full" else tiny_lm("llama"))
    assert torch.equal(logits(loaded, rows()), logits(model, rows()))


# ---- the lm_head -------------------------------------------------------------------------------------------


@every_architecture
def test_inference_runs_no_lm_head(architecture):
    model = classifier(architecture)
    calls = head_calls(model)
    logits(model, rows(), learn=False)
    logits(model, rows())
    assert calls == []
    given = batch(rows())
    model(**given)
    assert sum(calls) == len(given["lm_labels"])  # at the tokens to learn and no others


@pytest.mark.parametrize("architecture", WITH_A_CLASS)
def test_without_the_reasoning_loss_it_is_the_plain_pooled_classifier(architecture):
    model = classifier(architecture, tune="full", head="linear", lm_weight=0.0)
    config = copy.deepcopy(model.decoder.config)
    config.num_labels, config.pad_token_id = LABELS, PAD
    plain = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config).eval()
    plain.base_model.load_state_dict(model.decoder.lm.base_model.state_dict())
    plain.score.load_state_dict(model.head.score.state_dict())
    inputs = batch(rows(), learn=False)
    loss = plain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"]).loss
    loss.backward()
    own = model(**batch(rows()))  # rationales and all
    own.loss.backward()
    assert own.lm_loss is None
    assert_close(own.loss, loss)
    assert_close(model.head.score.weight.grad, plain.score.weight.grad, 1e-5)
    wanted = {name: p.grad for name, p in plain.base_model.named_parameters()}
    for name, parameter in model.decoder.lm.base_model.named_parameters():
        assert_close(parameter.grad, wanted[name], 1e-5)


@every_architecture
def test_without_the_reasoning_loss_the_vocabulary_is_never_touched(architecture):
    def gradients(model: DualHeadReasoningModel) -> list[Tensor]:
        model.zero_grad()
        model(**batch(rows())).loss.backward()
        return [p.grad for name, p in model.named_parameters() if "lora_" in name or name.startswith("head.")]

    model = classifier(architecture, lm_weight=0.0)
    calls, before = head_calls(model), gradients(model)
    head = model.decoder.lm.get_output_embeddings()
    head.weight = nn.Parameter(torch.full_like(head.weight, float("nan")), requires_grad=False)  # no longer tied
    after = gradients(model)
    assert calls == []
    assert all(gradient is not None for gradient in before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    model.config.lm_weight = 1.0
    assert not model(**batch(rows())).loss.isfinite()  # so NaN would have shown


# ---- losses ------------------------------------------------------------------------------------------------


def plain_losses(model: DualHeadReasoningModel, rows: list[Tokenized]) -> tuple[Tensor, Tensor]:
    """Both losses in float64, row by row, from whole logits and without a mask."""
    weights = model.class_weights
    scored, total, said = [], [], []
    for row in rows:
        whole = torch.tensor([row.input_ids + row.rest_ids])
        output = model.decoder.lm(whole, output_hidden_states=True)
        if row.label is not None:
            hidden = output.hidden_states[-1][0, len(row.input_ids) - 1]
            x = hidden if model.head.inner is None else F.gelu(model.head.inner(hidden))
            weight = 1.0 if weights is None else weights[row.label].item()
            scored.append(-weight * model.head.score(x).log_softmax(-1)[row.label])
            total.append(weight)
        logps = output.logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0]
        said += [-logps[i - 1] for i in range(1, len(row.learnt)) if row.learnt[i]]
    return torch.stack(scored).sum() / sum(total), torch.stack(said).mean()


@every_architecture
def test_both_losses_and_their_gradients_are_those_of_whole_logits_in_float64(architecture):
    model = classifier(architecture, cls_weight=0.7, lm_weight=0.4, class_weights=[1.0, 2.0, 0.5])
    given = rows(labels=(0, 2, None, 1, 0, None))
    exact = copy.deepcopy(model).double()
    cls_loss, lm_loss = plain_losses(exact, given)
    (0.7 * cls_loss + 0.4 * lm_loss).backward()
    for side in ("right", "left"):
        model.zero_grad()
        found = model(**batch(given, side=side))
        found.loss.backward()
        assert found.cls_loss.item() == pytest.approx(cls_loss.item(), rel=1e-5)
        assert found.lm_loss.item() == pytest.approx(lm_loss.item(), rel=1e-5)
        assert found.loss.item() == pytest.approx(0.7 * cls_loss.item() + 0.4 * lm_loss.item(), rel=1e-5)
        wanted = dict(exact.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert_close(parameter.grad.double(), wanted[name].grad, 1e-5)


FORM = TextForm(reason_prefix=" good7 ", answer_prefix=" bad7 ")
SCOPES = {
    ("after", "everything"): "upon good1 good7 ask1 ask2 bad7 yes </s>",
    ("after", "continuation"): "good7 ask1 ask2 bad7 yes </s>",
    ("after", "rationale"): "good7 ask1 ask2",
    ("before", "everything"): "upon good1 bad7 yes good7 ask1 ask2 </s>",
    ("before", "continuation"): "bad7 yes good7 ask1 ask2 </s>",
    ("before", "rationale"): "good7 ask1 ask2 </s>",
    ("absent", "everything"): "upon good1 good7 ask1 ask2 </s>",
    ("absent", "continuation"): "good7 ask1 ask2 </s>",
    ("absent", "rationale"): "good7 ask1 ask2 </s>",
    ("alone", "everything"): "upon good1 bad7 yes </s>",
    ("alone", "continuation"): "bad7 yes </s>",
    ("alone", "rationale"): "",
}


@pytest.mark.parametrize(("answer", "scope"), SCOPES)
def test_a_scope_counts_the_tokens_that_were_asked_for(answer, scope):
    tokenizer = word_tokenizer(
        ["<pad>", "<s>", "</s>", "<unk>", "yes", "once", "upon"]
        + [f"{word}{i}" for word in ("good", "bad", "ask") for i in (1, 2, 7)]
    )
    given = [Example("upon good1", 1, "ask1 ask2"), Example("once", 1)]  # the second has no rationale
    form = TextForm(reason_prefix=FORM.reason_prefix, answer_prefix=FORM.answer_prefix, answer=answer)
    read, _ = tokenize_examples(
        given, tokenizer, ClassifyTokenizeOptions(), form=form, names=("no", "yes"), scope=scope
    )
    for side in ("left", "right"):
        made = batch(read, side=side)
        assert torch.equal(made["input_ids"].flatten()[made["lm_at"] + 1], made["lm_labels"])
        second = {"everything": "once", "continuation": "", "rationale": ""}[scope]
        wanted = f"{SCOPES[answer, scope]} {second}".split()
        assert tokenizer.convert_ids_to_tokens(made["lm_labels"].tolist()) == wanted
        pooled = made["input_ids"][torch.arange(2), made["pool_at"]].tolist()
        assert tokenizer.convert_ids_to_tokens(pooled) == ["good1", "once"]


# ---- steps that are split ----------------------------------------------------------------------------------


def after_a_step(folder, given: list[Tokenized], size: int, batches: int, **options) -> dict[str, Tensor]:
    """Weights after one step of SGD on all rows, in `batches` batches of `size`."""
    model = classifier("llama", **options)
    args = ClassifierTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=batches,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    ClassifierTrainer(model, args, train_dataset=given).train()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


LABELLINGS = {
    "every row has a label": ((0, 2, 1, 1), {}),
    "some have none": ((0, None, 1, None), {}),
    "the first has none": ((None, 2, 1, 1), {}),
    "class weights": ((0, 2, 1, None), {"class_weights": [1.0, 3.0, 0.25]}),
    "soft labels": (((1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (0.0, 1.0, 0.0), (0.5, 0.5, 0.0)), {}),
    "soft labels, of some": (((1.0, 0.0, 0.0), None, (0.0, 1.0, 0.0), None), {}),
    "several labels": (
        ((1.0, 0.0, 1.0), None, (0.0, 1.0, 0.0), (1.0, 1.0, 1.0)),
        {"problem_type": "multi_label_classification"},
    ),
}


@pytest.mark.parametrize("labelling", LABELLINGS)
def test_a_step_is_the_same_however_it_is_split(labelling, tmp_path):
    labels, options = LABELLINGS[labelling]
    given = rows(inputs=(5, 1, 9, 14), rests=(4, 7, 0, 3), labels=labels)
    before = {name: p.detach() for name, p in classifier("llama", **options).named_parameters()}
    whole = after_a_step(tmp_path, given, 4, 1, **options)
    assert all((whole[name] - before[name]).abs().max() > 1e-5 for name in whole)
    for size, batches in ((1, 4), (2, 2)):
        split = after_a_step(tmp_path, given, size, batches, **options)
        for name, weight in whole.items():
            assert_close(split[name], weight)


def test_a_step_follows_the_gradient_of_both_means(tmp_path):
    """The step itself, held to float64: a mean of means would pass the test above only if both were wrong alike."""
    options = {"class_weights": [1.0, 3.0, 0.25]}
    given = rows(inputs=(5, 1, 9, 14), rests=(4, 7, 0, 3), labels=(0, 2, 1, None))
    exact = classifier("llama", **options).double()
    sum(plain_losses(exact, given)).backward()
    found = after_a_step(tmp_path, given, 1, 4, **options)
    for name, parameter in exact.named_parameters():
        if parameter.requires_grad:
            assert_close(found[name].double(), (parameter - parameter.grad).detach(), 1e-5)


def test_rows_without_a_label_count_for_no_class_loss():
    model = classifier("llama", class_weights=[1.0, 3.0, 0.25])
    totals = model.loss_totals(torch.tensor([0, IGNORED, 1, IGNORED]), torch.zeros(7))
    assert totals.tolist() == [4.0, 7.0]
    whole = classifier("llama", class_weights=[1, 3, 2])
    assert whole(**batch(rows())).loss.isfinite()
    soft, several = {}, {"problem_type": "multi_label_classification"}
    for options in (soft, several):
        model, labels = classifier("llama", **options), ((1.0, 0.0, 0.0), None, (0.0, 1.0, 0.0), None)
        some = batch(rows(inputs=(5, 1, 9, 14), rests=(4, 7, 0, 3), labels=labels))
        labelled = batch(rows(inputs=(5, 1, 9, 14), rests=(4, 7, 0, 3), labels=labels)[::2])
        assert model(**some).cls_loss.item() == pytest.approx(model(**labelled).cls_loss.item(), rel=1e-6)


@pytest.mark.parametrize("weights", [[1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [0, 0, 0], [1.0, float("inf"), 0.0]])
def test_class_weights_that_no_mean_can_have_are_refused(weights):
    with pytest.raises(DualHeadError, match="at least 0 and not all 0"):
        classifier("llama", class_weights=weights)


def test_one_class_is_nothing_to_classify_unless_a_row_may_have_none():
    with pytest.raises(DualHeadError, match="two at least"):
        DualHeadReasoningModel.from_backbone(tiny_lm("llama"), 1)
    assert DualHeadReasoningModel.from_backbone(tiny_lm("llama"), 1, problem_type="multi_label_classification")


def test_a_batch_without_any_label_still_teaches_its_rationales():
    for options in ({}, {"problem_type": "multi_label_classification"}):
        found = classifier("llama", **options)(**batch(rows(labels=[None] * 6)))
        assert found.cls_loss.item() == 0
        assert found.lm_loss.item() > 0
        found.loss.backward()
