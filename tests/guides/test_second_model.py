"""A view of a model shares all that it holds with the original, and none of its containers."""

import torch
from models import BOS, tiny_lm
from torch import nn

from dual_head.backbone.decoder import Backbone
from dual_head.guides.second_model import is_backbone, shared_view

IDS = torch.tensor([[BOS, 5, 6, 7]])


@torch.no_grad()
def test_what_is_put_into_the_view_is_not_in_the_original():
    lm = tiny_lm("llama").eval()
    before, view = lm(IDS).logits, shared_view(lm)
    assert torch.equal(view(IDS).logits, before)
    view.model.layers[0].self_attn.q_proj = nn.Linear(32, 32, bias=False)
    assert not torch.equal(view(IDS).logits, before)
    assert torch.equal(lm(IDS).logits, before)


def test_every_tensor_is_the_same_object_also_one_that_a_container_holds_itself():
    lm = tiny_lm("llama_tied")
    lm.model.layers[0].register_parameter("extra", nn.Parameter(torch.zeros(3)))
    lm.model.register_buffer("counts", torch.zeros(2))
    view = shared_view(lm)
    for own, shared in ((lm.parameters(), view.parameters()), (lm.buffers(), view.buffers())):
        assert [id(tensor) for tensor in own] == [id(tensor) for tensor in shared]
    assert view.lm_head.weight is view.get_input_embeddings().weight


@torch.no_grad()
def test_whatever_casts_the_original_casts_the_view():
    lm = tiny_lm("llama").eval()
    lm.model.register_buffer("counts", torch.zeros(2))  # as GPT-Neo's and GPT-J's attention hold one beside layers
    view = shared_view(lm)
    lm.to(torch.bfloat16)
    assert view.model.counts is lm.model.counts
    assert {p.dtype for p in view.parameters()} == {torch.bfloat16}
    assert torch.equal(view(IDS).logits, lm(IDS).logits)


def test_the_backbone_is_known_by_no_name_its_own_and_another_way_to_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "lm"
    tiny_lm("llama").save_pretrained(folder)
    backbone = Backbone(type(tiny_lm("llama")).from_pretrained(folder))
    monkeypatch.chdir(tmp_path)
    assert all(is_backbone(name, backbone) for name in (None, str(folder), "lm", f"{folder}/../lm"))
    assert not any(is_backbone(name, backbone) for name in (str(tmp_path), "other", ""))
    assert not is_backbone("other", Backbone(tiny_lm("llama")))  # which has no name
