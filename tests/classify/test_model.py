"""A classifier is called, saved and loaded as transformers' own are, and no option is ignored silently."""

import pytest
import torch
from classifiers import write_dhrd
from models import LAYERS, POSITIONS, tiny_lm
from transformers import AutoModelForSequenceClassification

from dual_head.classify.model import IGNORED, DualHeadReasoningModel
from dual_head.errors import DualHeadError

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def classifier(**options) -> DualHeadReasoningModel:
    return DualHeadReasoningModel.from_backbone(tiny_lm("llama"), 3, **options)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("multi_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0], [0.0, 1.0]])),
        ("single_label_classification", torch.tensor([[1.0, 0.0], [0.0, 1.0]])),
    ],
)
def test_labels_of_a_shape_that_does_not_fit_are_refused(problem, labels):
    with pytest.raises(DualHeadError, match=r"Labels of shape .* do not fit.*\[B, 3\]"):
        classifier(problem_type=problem)(IDS, labels=labels)


def test_a_batch_of_no_label_at_all_has_a_class_loss_of_0_in_any_shape():
    model = classifier(problem_type="multi_label_classification")
    for shape in ((2,), (2, 3)):
        assert model(IDS, labels=torch.full(shape, IGNORED)).cls_loss == 0


def test_what_a_tokenizer_gives_beside_ids_is_taken_and_types_of_tokens_change_nothing():
    model = classifier()
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "token_type_ids": torch.ones_like(IDS)}
    assert torch.equal(model(**given).logits, model(IDS).logits)


def test_a_tuple_is_given_where_it_is_asked_for_and_by_the_config_too():
    model = classifier()
    wanted = model(IDS)
    (logits,) = model(IDS, return_dict=False)
    assert torch.equal(logits, wanted.logits)
    loss, *_ = model(IDS, labels=torch.tensor([0, 1]), return_dict=False)
    assert loss == model(IDS, labels=torch.tensor([0, 1])).loss
    model.config.return_dict = False
    assert isinstance(model(IDS), tuple)
    assert torch.equal(model(IDS, return_dict=True).logits, logits)


def test_hidden_states_are_given_where_they_are_asked_for():
    model = classifier()
    assert model(IDS).hidden_states is None
    found = model(IDS, output_hidden_states=True)
    assert len(found.hidden_states) == LAYERS + 1
    assert torch.equal(model.head(found.hidden_states[-1][:, -1]), found.logits)


def test_more_tokens_than_the_backbone_has_positions_are_refused_with_both_numbers():
    model = classifier()
    model(torch.full((1, POSITIONS), 5))
    with pytest.raises(DualHeadError, match=rf"{POSITIONS + 1} tokens.*{POSITIONS} positions"):
        model(torch.full((1, POSITIONS + 1), 5))


def test_it_says_how_many_labels_it_has():
    assert classifier().num_labels == 3


def test_an_option_that_nobody_knows_is_not_ignored(tmp_path):
    folder = write_dhrd(tmp_path)
    for load in (DualHeadReasoningModel.from_pretrained, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(DualHeadError, match=r"Unknown option 'device_mpa'.*Did you mean 'device_map'"):
            load(folder, device_mpa="auto")
    model = DualHeadReasoningModel.from_pretrained(folder, local_files_only=True)
    with pytest.raises(DualHeadError, match=r"Unknown option 'safe_serialisation'.*Did you mean"):
        model.save_pretrained(tmp_path / "again", safe_serialisation=True)
    model.save_pretrained(tmp_path / "again", safe_serialization=True)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").num_labels == 2


def test_a_backbone_is_loaded_with_the_options_of_load_backbone(tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path)
    model = DualHeadReasoningModel.from_backbone(tmp_path, 2, dtype="bfloat16", attn_implementation="eager")
    assert (model.decoder.lm.dtype, model.decoder.config._attn_implementation) == (torch.bfloat16, "eager")
    with pytest.raises(DualHeadError, match=r"Unknown option 'atn_implementation'.*Did you mean 'attn_implementation'"):
        DualHeadReasoningModel.from_backbone(tmp_path, 2, atn_implementation="eager")
