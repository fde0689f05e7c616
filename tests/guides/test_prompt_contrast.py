"""A contrast of prompts: the backbone's own logits under other prompts, by hand, and what a system turn's place is."""

import re

import pytest
import torch
from files import CHATML, letters
from models import ARCHITECTURES, RECURRENT, VOCAB, guided_lm, tiny_lm
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, MptConfig, PreTrainedModel

from dual_head import AlignedModel, DualHeadError, PromptContrastConfig, merge
from dual_head.data.system_turn import header
from dual_head.guides.prompt_contrast import _header
from dual_head.model.generate import encode_prompts
from dual_head.model.pretrained import read_config

POSITIVE, NEGATIVE = [9, 8, 7, 6, 5], [5, 6, 7]
BOTH = PromptContrastConfig(positive=POSITIVE, negative=NEGATIVE)
ONE = PromptContrastConfig(negative=NEGATIVE)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
USER = {"role": "user", "content": "Hi?"}


def prompts(rows: int = 2, length: int = 14) -> Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def behind(lm: PreTrainedModel, prompt: list[int], ids: Tensor) -> Tensor:
    """Logits of the tokens behind a prompt, by the plain model."""
    rows = torch.cat([torch.tensor(prompt).expand(len(ids), -1), ids], 1)
    return lm(rows).logits[:, len(prompt) :]


def chat_lm(seed: int = 0) -> PreTrainedModel:
    """A tiny model of the tokenizer `letters`."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=259, initializer_range=0.2, max_position_embeddings=256)
    lm = AutoModelForCausalLM.from_config(config).eval()
    lm.generation_config.eos_token_id = None
    return lm


def chatting(seed: int = 0, **config) -> AlignedModel:
    return AlignedModel.from_backbone(
        chat_lm(seed), {"g": PromptContrastConfig(**config)}, tokenizer=letters(CHATML)
    )


def ids_of(*messages: dict[str, str]) -> Tensor:
    return encode_prompts([list(messages)], letters(CHATML))["input_ids"]


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


# ---- the equation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_adds_the_backbones_logits_under_one_prompt_less_those_under_the_other(architecture):
    model, lm, ids = guided_lm({"g": BOTH}, architecture), tiny_lm(architecture).eval(), prompts()
    delta = behind(lm, POSITIVE, ids) - behind(lm, NEGATIVE, ids)
    torch.testing.assert_close(model(ids, alpha=0.7).logits, lm(ids).logits + 0.7 * delta, atol=1e-4, rtol=1e-4)
    assert delta.abs().max() > 0.5


@pytest.mark.parametrize("alpha", [1.0, 2.5, -0.5])
def test_without_a_positive_prompt_it_leads_away_from_the_negative_one(alpha):
    model, lm, ids = guided_lm({"g": ONE}), tiny_lm("llama").eval(), prompts()
    expected = (1 + alpha) * lm(ids).logits - alpha * behind(lm, NEGATIVE, ids)
    torch.testing.assert_close(model(ids, alpha=alpha).logits, expected, atol=1e-4, rtol=1e-4)


def test_without_a_negative_prompt_alpha_1_is_the_positive_prompt_itself():
    model, lm = guided_lm({"g": PromptContrastConfig(positive=POSITIVE, negative=None)}), tiny_lm("llama").eval()
    torch.testing.assert_close(model(prompts(), alpha=1.0).logits, behind(lm, POSITIVE, prompts()), **CLOSE)


def test_it_decodes_what_classifier_free_guidance_of_transformers_does():
    model, lm, ids = guided_lm({"g": ONE}), tiny_lm("llama").eval(), prompts(1, 6)
    lm.generation_config.eos_token_id = None
    options = {"do_sample": False, "max_new_tokens": 12}
    negative = torch.cat([torch.tensor([NEGATIVE]), ids], 1)
    theirs = lm.generate(ids, guidance_scale=2.5, negative_prompt_ids=negative, **options)
    assert torch.equal(model.generate(ids, alpha=1.5, **options), theirs)  # gamma = 1 + alpha
    assert not torch.equal(model.generate(ids, alpha=0.0, **options), theirs)


def test_it_adds_up_with_other_contrasts():
    guides = {"a": BOTH, "b": PromptContrastConfig(negative=[4]), "c": PromptContrastConfig(negative=[20, 21])}
    model, lm, ids = guided_lm(guides), tiny_lm("llama").eval(), prompts()
    base = lm(ids).logits
    expected = base + behind(lm, POSITIVE, ids) - behind(lm, NEGATIVE, ids) + 0.5 * (base - behind(lm, [4], ids))
    torch.testing.assert_close(model(ids, alpha={"a": 1.0, "b": 0.5}).logits, expected, atol=1e-4, rtol=1e-4)


# ---- the system turn ---------------------------------------------------------------------------------------


def test_the_header_of_a_row_is_told_by_its_first_tokens():
    opening, closing, bare = [1, 2], [8, 9], [1, 7]
    rows = {
        (0, 1, 2, 5, 6, 8, 9, 5, 1, 2): ".xxxxxx...",  # padding, a system turn, and its opening once more later
        (1, 2, 5, 8, 9, 8, 9, 5, 5, 5): "xxxxx.....",  # only the first closing counts
        (1, 2, 8, 9, 5, 5, 5, 5, 5, 5): "xxxx......",  # an empty system turn
        (0, 0, 1, 7, 5, 8, 9, 5, 5, 5): "..xx......",  # none: the user's turn begins at once
        (1, 2, 5, 5, 5, 5, 5, 5, 5, 5): "xxxxxxxxxx",  # one that has not ended
        (5, 1, 2, 8, 9, 5, 5, 5, 5, 5): "..........",  # a text
    }
    ids = torch.tensor(list(rows))
    patterns = {"opening": opening, "closing": closing, "bare": bare}
    found = _header(ids, ids != 0, {name: torch.tensor(pattern) for name, pattern in patterns.items()})
    assert ["".join(".x"[x] for x in row) for row in found.tolist()] == list(rows.values())


def test_a_closing_begins_behind_the_opening():
    ids = torch.tensor([[1, 8, 9, 5, 8, 9, 5]])
    found = _header(ids, ids != 0, {"opening": torch.tensor([1, 8]), "closing": torch.tensor([8, 9])})
    assert found.int().tolist() == [[1, 1, 1, 1, 1, 1, 0]]


@torch.no_grad()
def test_its_prompt_stands_in_the_place_of_the_requests():
    model, lm = chatting(positive="Be kind.", negative="Be rude!"), chat_lm()
    ids = ids_of(system("Be brief."), USER)
    user = ids_of(USER).shape[1] - len(header("", letters(CHATML)))  # tokens from "Hi?" on
    terms = [lm(ids_of(system(text), USER)).logits[:, -user:] for text in ("Be kind.", "Be rude!")]
    expected = lm(ids).logits[:, -user:] + 2 * (terms[0] - terms[1])
    torch.testing.assert_close(model(ids, alpha=2.0).logits[:, -user:], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_empty_negative_prompt_leaves_the_system_turn_out():
    model, lm = chatting(), chat_lm()
    ids, without = ids_of(system("The sky is red."), USER), ids_of(USER)
    last = lm(ids).logits[:, -5:] * 2 - lm(without).logits[:, -5:]
    torch.testing.assert_close(model(ids, alpha=1.0).logits[:, -5:], last, atol=1e-4, rtol=1e-4)
    # Where there is none, there is nothing to contrast.
    torch.testing.assert_close(model(without, alpha=1.0).logits[:, -5:], lm(without).logits[:, -5:], **CLOSE)


@torch.no_grad()
def test_rows_with_and_without_a_system_turn_share_a_batch():
    model, lm = chatting(positive="Be kind.", negative=None), chat_lm()
    conversations = [[system("Be brief."), USER], [USER], [USER, {"role": "assistant", "content": "Yo."}, USER]]
    batch = encode_prompts(conversations, letters(CHATML))
    logits = model(**batch, position_ids=(batch["attention_mask"].cumsum(1) - 1).clamp_min(0), alpha=1.0).logits[:, -1]
    for row, messages in zip(logits, conversations, strict=True):
        alone = lm(ids_of(system("Be kind."), *[m for m in messages if m["role"] != "system"])).logits[0, -1]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(3, 30), (13, 14, 15), tuple(range(1, 41))])
def test_a_request_read_in_pieces_is_the_request_read_whole(cuts):
    model, ids = chatting(positive="Be kind.", negative=""), ids_of(system("Be brief."), USER)
    whole, cache, pieces = model(ids, alpha=1.0).logits, None, []
    for start, end in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        step = model(ids[:, start:end], alpha=1.0, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        pieces.append(step.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)


def test_a_text_streams_and_has_a_trace():
    model = chatting(positive="Be kind.", negative="Be rude!")
    text = {"tokenizer": letters(CHATML), "max_new_tokens": 4}
    (reply,), (trace,) = model.generate(["Hi?"], alpha=1.0, return_trace=True, **text)
    assert isinstance(reply, str)
    assert all(token.kl > 0 for token in trace)
    assert [token.policy_logp for token in trace] != [token.base_logp for token in trace]
    (score,) = model.score(["Hi?"], ["Yo."], alpha=1.0, tokenizer=letters(CHATML))
    assert score.reward != 0


# ---- prompts as tokens -------------------------------------------------------------------------------------


def test_texts_are_written_once_and_stored_beside_the_guide(tmp_path):
    model = AlignedModel.from_backbone(chat_lm(), {}, tokenizer=letters(CHATML))
    model.attach("polite", PromptContrastConfig(positive="Be kind.", negative="Be rude!"))
    model.save_pretrained(tmp_path)
    config = read_config(str(tmp_path)).guides["polite"]["config"]
    assert letters().decode(config["ids"]["positive"]) == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert model.stored() == {}
    ids = ids_of(USER)
    loaded = AlignedModel.from_pretrained(tmp_path, backbone=chat_lm())
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_it_moves_to_another_backbone_and_that_ones_chat_template():
    model = chatting(positive="Be kind.", negative="Be rude!")
    closed = letters("{% for m in messages %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]\n{% endfor %}")
    model.switch_backbone(chat_lm(seed=1), tokenizer=closed, trained_tokenizer=letters(CHATML))
    assert closed.decode(model.guide("g").config.ids["positive"]) == "[system] Be kind. [/system]\n[user] "
    ids, lm = prompts(1), chat_lm(seed=1)
    one, other = (behind(lm, model.guide("g").config.ids[side], ids) for side in ("positive", "negative"))
    torch.testing.assert_close(model(ids, alpha=1.0).logits, lm(ids).logits + one - other, atol=1e-4, rtol=1e-4)


def test_keys_of_prompts_are_read_again_in_another_precision():
    model, ids = guided_lm({"g": BOTH}), prompts()
    model(ids, alpha=1.0)
    model.to(torch.float64)
    lm = tiny_lm("llama").eval().double()
    expected = lm(ids).logits + behind(lm, POSITIVE, ids) - behind(lm, NEGATIVE, ids)
    torch.testing.assert_close(model(ids, alpha=1.0).logits, expected, atol=1e-9, rtol=1e-9)


def test_its_prompts_take_room_of_the_context():
    model = guided_lm({"g": BOTH})  # a context of 128 tokens
    full = prompts(1, 122)
    assert model.generate(full, alpha=1.0, do_sample=False, max_new_tokens=50).shape[1] == 123  # and 5 of a prompt
    assert model.generate(full, alpha=0.0, do_sample=False, max_new_tokens=50).shape[1] == 128
    with pytest.raises(DualHeadError, match="123 tokens and the backbone's context is 123 beside the prompt of 'g'"):
        model.generate(prompts(1, 123), alpha=1.0, do_sample=False, max_new_tokens=5)


# ---- what it costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "count"), [(ONE, 1), (BOTH, 2)])
def test_it_stores_nothing_and_keeps_a_cache_for_each_prompt(config, count):
    model = guided_lm({"g": config})
    guide = model.guide("g")
    assert list(guide.parameters()) == []
    assert guide.extra_forwards == 1
    assert guide.cache_layers == 1 + 2 * count
    cache = model(prompts(), alpha=1.0, use_cache=True).past_key_values
    # The request's tokens alone: keys of the prompts are in no cache.
    assert {layer.keys.shape[-2] for layer in cache.layers} == {14}


def test_both_prompts_run_in_one_forward():
    model, rows = guided_lm({"g": BOTH}), []
    model(prompts(), alpha=1.0)
    model.backbone.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    model(prompts(), alpha=1.0)
    assert rows == [2, 4]


# ---- what is refused ---------------------------------------------------------------------------------------


def test_what_makes_no_contrast_is_refused_with_the_remedy():
    for positive, negative, remedy in [
        ("a", "a", r"nothing would change\. Give another"),
        (None, None, "nothing would change"),
        ([], "a", "give an empty text"),
    ]:
        with pytest.raises(DualHeadError, match=remedy):
            PromptContrastConfig(positive=positive, negative=negative)
    with pytest.raises(DualHeadError, match="Pass tokenizer="):
        guided_lm({"g": PromptContrastConfig(negative="Be rude!")})
    with pytest.raises(DualHeadError, match="no system turn to leave out"):
        AlignedModel.from_backbone(chat_lm(), {"g": PromptContrastConfig()}, tokenizer=letters())


def test_what_it_cannot_do_is_refused_by_name():
    model = guided_lm({"g": BOTH})
    with pytest.raises(DualHeadError, match="PromptContrast is not a linear map"):
        merge(model, alpha=1.0)
    with pytest.raises(DualHeadError, match="contrast of prompts reads token ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32), alpha=1.0)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCAB), "takes no mask of our own"),
        (MptConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=VOCAB), "does not keep to masks and positions"),
        (RECURRENT["lfm2"](), "layer 0 carries a state past every mask"),
    ],
    ids=["bloom", "mpt", "lfm2"],
)
def test_a_backbone_that_reads_columns_rather_than_positions_is_refused(config, why):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config)
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = AlignedModel.from_backbone(lm, {"g": BOTH})
    with pytest.raises(DualHeadError, match=f"{re.escape(type(lm).__name__)} cannot be read behind.*{why}"):
        model(prompts(), alpha=1.0)
