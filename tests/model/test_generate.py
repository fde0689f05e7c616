"""Text in, text out; what cannot work is refused before a token is generated."""

import logging
import math

import pytest
import torch
from files import WORDS, word_tokenizer, write_backbone
from models import guided_lm, tiny_lm
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TextStreamer

from dual_head import AlignedModel, DualHeadError, DualHeadModel, LinearConfig, RewardHeadConfig
from dual_head.data import Cut
from dual_head.model.generate import DEFAULT_NEW_TOKENS, conversation_of, encode_prompts

CONTEXT = 64
CONVERSATION = [{"role": "user", "content": "how can i"}]
TEMPLATE = "<s>{% for m in messages %} {{ m.content }}{% endfor %} ?"
GREEDY = {"do_sample": False, "max_new_tokens": 4}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def model(backbone_folder) -> AlignedModel:
    torch.manual_seed(0)
    guide = RewardHeadConfig(num_heads=2, head_dim=4, init_std=0.5)
    model = DualHeadModel.from_backbone(str(backbone_folder), guide=guide, tokenizer=word_tokenizer())
    model.generation_config.eos_token_id = None
    return model


def words(text: str) -> int:
    return len(text.split())


# ---- what goes in and what comes out -----------------------------------------------------------------------


def test_a_string_gives_a_string_of_new_text_only(model, tokenizer):
    text = model.generate("once upon a time", tokenizer=tokenizer, min_new_tokens=4, **GREEDY)
    ids = torch.tensor([[1, *(WORDS.index(w) for w in ("once", "upon", "a", "time"))]])
    new = model.generate(ids, min_new_tokens=4, **GREEDY)[0, 5:]
    assert isinstance(text, str)
    assert text == tokenizer.decode(new, skip_special_tokens=True)


def test_a_list_gives_a_list_that_is_one_by_one(model, tokenizer):
    prompts = ["once upon a time", "how"]
    texts = model.generate(prompts, tokenizer=tokenizer, **GREEDY)
    assert texts == [model.generate(prompt, tokenizer=tokenizer, **GREEDY) for prompt in prompts]
    assert model.generate(prompts[:1], tokenizer=tokenizer, **GREEDY) == texts[:1]


def test_a_text_without_an_end_is_cut(model, tokenizer):
    ids = model.generate(encode_prompts(["how"], tokenizer)["input_ids"], **GREEDY)[0, -4:].tolist()
    for end, cut in ((ids[1], False), (next(i for i in range(len(WORDS)) if i not in ids), True)):
        text = model.generate("how", tokenizer=tokenizer, eos_token_id=[end], **GREEDY)
        assert isinstance(text, Cut) == cut
    assert isinstance(model.generate("how", tokenizer=tokenizer, **GREEDY), Cut)  # this model has no end


def test_several_answers_to_one_prompt_are_a_list(model, tokenizer):
    torch.manual_seed(0)
    texts = model.generate("how", tokenizer=tokenizer, temperature=5.0, num_return_sequences=3, max_new_tokens=4)
    assert len(texts) == 3
    assert len(set(texts)) > 1


def test_a_conversation_is_one_prompt_and_a_list_of_them_several(model, tokenizer):
    text = model.generate(CONVERSATION, tokenizer=tokenizer, **GREEDY)
    assert isinstance(text, str)
    assert text == model.generate("\n\nHuman: how can i\n\nAssistant:", tokenizer=tokenizer, **GREEDY)
    assert model.generate([CONVERSATION, CONVERSATION], tokenizer=tokenizer, **GREEDY) == [text, text]


def test_a_chat_template_writes_its_own_beginning_of_sequence(tokenizer):
    tokenizer.chat_template = TEMPLATE
    (ids,) = encode_prompts([CONVERSATION], tokenizer)["input_ids"].tolist()
    assert ids == [1, *(WORDS.index(w) for w in ("how", "can", "i", "?"))]


@pytest.fixture
def chatting(caplog) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    logging.getLogger("dual_head").propagate = True
    return tokenizer


def test_a_text_is_a_users_message_where_there_is_a_chat_template(model, chatting):
    text = model.generate("how can i", tokenizer=chatting, **GREEDY)
    assert text == model.generate(CONVERSATION, tokenizer=chatting, **GREEDY)
    assert model.generate(["how can i"], tokenizer=chatting, **GREEDY) == [text]


def test_without_the_chat_template_a_text_is_continued(model, chatting):
    raw = model.generate("how can i", tokenizer=chatting, chat_template=False, **GREEDY)
    assert raw == model.generate("how can i", tokenizer=word_tokenizer(), **GREEDY)
    assert raw != model.generate("how can i", tokenizer=chatting, **GREEDY)


@pytest.mark.parametrize(
    ("template", "options", "asks"),
    [
        (None, {}, "how"),
        (TEMPLATE, {}, [{"role": "user", "content": "how"}]),
        (TEMPLATE, {"chat_template": False}, "how"),
        (None, {"system": "be kind"}, [{"role": "system", "content": "be kind"}, {"role": "user", "content": "how"}]),
    ],
)
def test_one_rule_says_what_a_text_asks(tokenizer, template, options, asks):
    tokenizer.chat_template = template
    assert conversation_of("how", tokenizer, **options) == asks


def test_a_system_message_goes_before_a_conversation_once(tokenizer):
    told = conversation_of(CONVERSATION, tokenizer, system="be kind")
    assert told == [{"role": "system", "content": "be kind"}, *CONVERSATION]
    with pytest.raises(DualHeadError, match=r"has a system message already\. Leave out the other one"):
        conversation_of(told, tokenizer, system="be kind")
    with pytest.raises(DualHeadError, match="a raw prompt is not a message"):
        conversation_of("how", tokenizer, chat_template=False, system="be kind")


def test_a_message_that_was_templated_before_is_said_so(chatting, caplog):
    conversation_of("<s> how", chatting)
    assert "The prompt spells <s>. In a message that is text" in caplog.text
    caplog.clear()
    conversation_of("<s> how", chatting, chat_template=False)
    assert not caplog.text


def test_a_conversation_that_the_template_refuses_is_refused_with_its_words(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DualHeadError, match="cannot be written: chat template: no system role"):
        encode_prompts([CONVERSATION], tokenizer)


def test_a_conversation_reads_the_same_beside_plain_text(tokenizer):
    tokenizer.chat_template = TEMPLATE
    (alone,) = encode_prompts([CONVERSATION], tokenizer)["input_ids"].tolist()
    beside, _ = encode_prompts([CONVERSATION, "how"], tokenizer)["input_ids"].tolist()
    assert beside == alone


def test_prompts_are_padded_on_the_left(tokenizer):
    batch = encode_prompts(["how", "once upon a"], tokenizer)
    assert batch["input_ids"].tolist()[0][:3] == [0, 0, 1]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_a_tokenizer_without_padding_will_do(tokenizer):
    tokenizer.pad_token = None
    assert encode_prompts(["how", "once upon a"], tokenizer)["attention_mask"].sum().item() == 6


def test_a_trace_comes_beside_the_text(model, tokenizer):
    text, (trace,) = model.generate("how", tokenizer=tokenizer, return_trace=True, **GREEDY)
    assert tokenizer.decode([token.token_id for token in trace], skip_special_tokens=True) == text
    texts, traces = model.generate(["how", "a time"], tokenizer=tokenizer, return_trace=True, **GREEDY)
    assert len(texts) == len(traces) == 2


def test_alpha_0_says_what_the_backbone_says(model, tokenizer):
    batch = encode_prompts(["once upon a"], tokenizer)
    new = model.backbone.lm.generate(**batch, **GREEDY, eos_token_id=None)[0, 4:]
    assert model.generate("once upon a", tokenizer=tokenizer, alpha=0, **GREEDY) == tokenizer.decode(new)
    assert model.generate("once upon a", tokenizer=tokenizer, alpha=5, **GREEDY) != tokenizer.decode(new)


def test_text_streams(model, tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = model.generate("how", tokenizer=tokenizer, streamer=streamer, **GREEDY)
    assert capsys.readouterr().out.split() == text.split()


# ---- what a temperature means ------------------------------------------------------------------------------


@pytest.fixture
def asked(model, monkeypatch) -> dict:
    """What transformers' generate was asked for; it answers with one new token a row."""
    given: dict = {}

    def generate(self, input_ids, generation_config=None, **kwargs):
        given.update(kwargs)
        return torch.cat([input_ids, input_ids[:, -1:]], 1)

    from transformers import GenerationMixin

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    return given


@pytest.mark.parametrize(
    ("given", "reached"),
    [
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        ({"temperature": 0}, {"temperature": None, "do_sample": False}),
        ({"temperature": 0.0, "do_sample": True}, {"temperature": None, "do_sample": False}),
        ({"temperature": 0.7, "do_sample": False}, {"temperature": 0.7, "do_sample": False}),
        ({}, {}),
    ],
)
def test_a_temperature_above_0_samples_and_0_is_greedy(model, tokenizer, asked, given, reached):
    model.generate("how", tokenizer=tokenizer, **given)
    assert {key: asked[key] for key in ("temperature", "do_sample") if key in asked} == reached


def test_temperature_0_is_repeatable(model, tokenizer):
    said = {model.generate("how", tokenizer=tokenizer, temperature=0, max_new_tokens=6) for _ in range(3)}
    assert len(said) == 1


# ---- the context -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "given", "new"),
    [
        (8, {"max_new_tokens": 10}, 10),
        (8, {"max_new_tokens": CONTEXT}, CONTEXT - 9),  # <s> is one more
        (8, {}, CONTEXT - 9),  # the default of 128 does not fit
        (CONTEXT - 2, {"max_new_tokens": 5}, 1),
    ],
)
def test_new_tokens_are_capped_to_the_context_and_said_so(model, tokenizer, asked, caplog, prompt, given, new):
    assert DEFAULT_NEW_TOKENS > CONTEXT
    logging.getLogger("dual_head").propagate = True
    model.generate(" ".join(["how"] * prompt), tokenizer=tokenizer, **given)
    assert asked["max_new_tokens"] == new
    assert bool(caplog.records) == (given.get("max_new_tokens") != new)


def test_a_full_context_is_generated_to_its_end(model, tokenizer):
    _, (trace,) = model.generate("how", tokenizer=tokenizer, do_sample=False, return_trace=True, min_new_tokens=62)
    assert len(trace) == CONTEXT - 2


def test_lengths_from_the_models_own_generation_config_are_capped_too(model, monkeypatch):
    monkeypatch.setattr(model.generation_config, "max_new_tokens", 2 * CONTEXT)
    assert model.generate(torch.full((1, CONTEXT - 4), 5), do_sample=False).shape == (1, CONTEXT)


def test_a_total_length_beyond_the_context_is_capped_too(model):
    ids = torch.full((1, CONTEXT - 4), 5)
    assert model.generate(ids, do_sample=False, max_length=2 * CONTEXT).shape == (1, CONTEXT)


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT + 5])
def test_a_prompt_as_long_as_the_context_is_refused(model, tokenizer, length):
    with pytest.raises(DualHeadError, match=f"context is {CONTEXT}. Shorten the prompt to at most {CONTEXT - 1} tok"):
        model.generate(" ".join(["how"] * length), tokenizer=tokenizer, max_new_tokens=1)


# ---- what is refused ---------------------------------------------------------------------------------------


def shuffled_tokenizer() -> PreTrainedTokenizerFast:
    backwards = {word: i for i, word in enumerate(reversed(WORDS))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(backwards, unk_token="<unk>")))


def larger_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["one more"])
    return tokenizer


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (shuffled_tokenizer, "its token ids mean other tokens. Use the tokenizer saved beside the guides"),
        (larger_tokenizer, f"has {len(WORDS) + 1} tokens and the backbone {len(WORDS)} logits. Use the backbone's own"),
    ],
)
def test_a_wrong_tokenizer_is_refused_with_the_remedy(model, other, said):
    with pytest.raises(DualHeadError, match=said):
        model.generate("how", tokenizer=other(), **GREEDY)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("", "The prompt is empty. Give at least one word."),
        (" \n ", "The prompt is empty"),
        (["how", ""], "The prompt is empty"),
        ([], "There are no prompts. Give at least one."),
    ],
)
def test_an_empty_prompt_is_refused(model, tokenizer, prompts, said):
    with pytest.raises(DualHeadError, match=said):
        model.generate(prompts, tokenizer=tokenizer)


IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (IDS.tolist(), r"token ids as a tensor \[B, T\]. For lists of ids, give torch.tensor\(ids\), padded"),
        (IDS[0].tolist(), r"For lists of ids, give torch.tensor\(ids\)"),
        (list(IDS), r"For lists of ids, give torch.tensor\(ids\)"),
        (IDS.numpy(), r"For lists of ids, give torch.tensor\(ids\)"),
        (["how", 5], "Prompts are text, conversations"),
        ([["how"]], "Prompts are text, conversations"),
        ([{"content": "how"}], "messages with a role"),
        ({"input_ids": IDS}, r"Give a tokenizer's output as generate\(\*\*batch\)"),
        (IDS[0], r"not torch.int64 \(3,\). For the ids \[T\] of one prompt, give ids\[None\]"),
        (IDS[None], r"whole numbers in a tensor \[B, T\], not torch.int64 \(1, 2, 3\)"),
        (IDS.float(), r"whole numbers in a tensor \[B, T\], not torch.float32 \(2, 3\)"),
        (5, "Prompts are text, conversations"),
        (IDS[:0], r"There is no token in a tensor of shape \(0, 3\)"),
        (IDS[:, :0], r"There is no token in a tensor of shape \(2, 0\)"),
        (IDS + 10**6, "Token ids are from 0 to .* and these reach from 1000003 to 1000008"),
        (IDS - 4, "these reach from -1 to 4"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("argument", ["inputs", "input_ids"])
def test_what_is_no_prompt_is_refused_in_words(prompts, said, argument):
    model = guided_lm({"map": LinearConfig()})  # which has no tokenizer: that is not what is wrong
    with pytest.raises(DualHeadError, match=said):
        model.generate(**{argument: prompts}, **GREEDY)


def test_tensors_of_another_shape_are_refused_in_words(model):
    with pytest.raises(DualHeadError, match=r"inputs_embeds are \[B, T, d\], not \(3, 32\). For one prompt, give x"):
        model.generate(inputs_embeds=torch.randn(3, 32), **GREEDY)
    with pytest.raises(DualHeadError, match=r"input_ids \[B, T\] or inputs_embeds \[B, T, d\], not a tensor \(3,\)"):
        model(IDS[0])


def test_half_a_character_is_refused(model, tokenizer):
    with pytest.raises(DualHeadError, match="cannot be written: half a character"):
        model.generate("how \ud800", tokenizer=tokenizer)
    with pytest.raises(DualHeadError, match="cannot be written: half a character"):
        model.generate([{"role": "user", "content": "\udfff"}], tokenizer=tokenizer)


@pytest.mark.parametrize("setting", [{"max_new_tokens": 0}, {"max_new_tokens": 2, "temperature": -1.0}, {"top_k": -1}])
def test_settings_out_of_range_are_refused_in_words(model, tokenizer, setting):
    with pytest.raises(DualHeadError, match=f"Cannot generate like this: .*{list(setting)[-1]}.* Change"):
        model.generate("how", tokenizer=tokenizer, do_sample=True, **setting)


@pytest.mark.parametrize("value", [math.nan, 3e38])
def test_logits_that_are_no_numbers_are_never_silent(backbone_folder, tokenizer, caplog, value):
    spoilt = AlignedModel.from_backbone(str(backbone_folder), {"map": LinearConfig()}, tokenizer=tokenizer)
    for parameter in spoilt.guides.parameters():
        torch.nn.init.constant_(parameter, value)
    spoilt.generate("how", tokenizer=tokenizer, alpha=0.0, **GREEDY)
    assert not caplog.records
    spoilt.generate("how", tokenizer=tokenizer, alpha=1.0, **GREEDY)
    assert [record.message for record in caplog.records] == [
        "The model gave logits of NaN or infinity, so this text means nothing. Lower alpha, or load it with "
        "dtype='float32'."
    ]
    with pytest.raises(DualHeadError, match=r"logits of NaN or infinity, which cannot be sampled\..* Lower alpha"):
        spoilt.generate("how", tokenizer=tokenizer, alpha=1.0, temperature=1.0, max_new_tokens=2)


def test_text_without_any_tokenizer_is_refused():
    with pytest.raises(DualHeadError, match="needs tokenizer="):
        DualHeadModel.from_backbone(tiny_lm("llama")).generate("how")


def test_text_needs_no_tokenizer_where_the_guides_have_theirs(model, tokenizer, tmp_path):
    from dual_head import IAVModel

    write_backbone(tmp_path / "backbone")
    place = str(tmp_path / "backbone")
    asked = {"alpha": 1.0, "max_new_tokens": 4}
    built = IAVModel.from_backbone(place, tokenizer=(own := AutoTokenizer.from_pretrained(place)))
    said = built.generate("how", tokenizer=own, **asked)
    assert built.generate("how", **asked) == said
    built.save_pretrained(tmp_path / "guides")  # found beside the backbone
    assert IAVModel.from_pretrained(tmp_path / "guides").generate("how", **asked) == said
    own.save_pretrained(tmp_path / "guides")  # found beside the guides
    assert IAVModel.from_pretrained(tmp_path / "guides", backbone=place).generate("how", **asked) == said


def test_a_paged_cache_is_refused(model, tokenizer):
    with pytest.raises(DualHeadError, match="For many prompts at once use generate_batch"):
        model.generate("how", tokenizer=tokenizer, cache_implementation="paged")


def test_a_wrong_alpha_is_refused(model, tokenizer):
    with pytest.raises(DualHeadError, match="Did you mean 'dual_head'"):
        model.generate("how", tokenizer=tokenizer, alpha={"dual_haed": 1})
    with pytest.raises(DualHeadError, match="2 values for 1 rows"):
        model.generate("how", tokenizer=tokenizer, alpha=[1, 2])


def test_a_trace_of_embeddings_is_refused(model):
    with pytest.raises(DualHeadError, match="return_trace needs token ids or text"):
        model.generate(inputs_embeds=torch.randn(1, 3, 32), return_trace=True, **GREEDY)
