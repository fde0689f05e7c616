"""Training, generation, judges and likelihoods read the same ids: one function writes them, and these tests hold it."""

import pytest
import torch
from files import CHATML, letters, word_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from dual_head.data import Cut, Dropped, Pair
from dual_head.data.conversation import APART, GUARD, REWRITTEN, Written, special_tokens_in, token_ids, write
from dual_head.data.tokenize import TokenizeOptions, tokenize_pairs
from dual_head.errors import DualHeadError
from dual_head.evaluate import Answer, Question
from dual_head.evaluate.metrics.continuations import continuation_ids, reply_rows
from dual_head.evaluate.rewards import Classifier, ReplyIds
from dual_head.model.generate import encode_prompts

SPOKEN = (  # a space before each message, and a turn that only EOS ends
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
CLOSED = (  # a turn whose end is no EOS
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TEMPLATES = {"transcript": None, "chatml": CHATML, "spoken": SPOKEN, "closed": CLOSED}
USER = {"role": "user", "content": "How do I boil an egg?"}
TALK = ({"role": "system", "content": "Be kind."}, USER, {"role": "assistant", "content": "How big?"}, USER)
BOS, START, END = range(3)


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return letters(request.param)


def written(prompt, reply, tokenizer) -> Written:
    (row,) = write([(prompt, (reply,))], tokenizer)
    assert isinstance(row, Written)
    return row


def said(ids, tokenizer) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# ---- one way to write --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Q: an egg?\nA:", (USER,), TALK], ids=["text", "conversation", "several turns"])
def test_training_generation_judges_and_likelihoods_read_the_same_ids(prompt, tokenizer, tmp_path):
    reply = " Eight minutes." if isinstance(prompt, str) else "Eight minutes."
    (row,), _ = tokenize_pairs([Pair(prompt, reply, f"{reply} No.")], tokenizer, TokenizeOptions())
    trained = row["prompt_ids"], row["chosen_ids"]

    assert encode_prompts([prompt], tokenizer)["input_ids"].tolist() == [trained[0]]

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=300)
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Classifier(str(tmp_path)).encode(prompt, reply) == ReplyIds(*trained)

    question = Question(id="q", prompt=prompt)
    answers = [Answer(question="q", replies=(reply,), finished=(end,)) for end in (True, False)]
    whole, cut = reply_rows([question, question], answers, tokenizer)
    assert whole == trained
    assert cut == continuation_ids(prompt, reply, tokenizer)
    assert trained[1][: len(cut[1])] == cut[1]
    assert len(cut[1]) < len(trained[1])


@pytest.mark.parametrize(
    ("template", "whole", "cut"),
    [
        (None, " Yes.<|im_end|>", " Yes."),
        (CHATML, "Yes.<|im_end|>", "Yes."),
        (SPOKEN, " Yes.<|im_end|>", " Yes."),
        (CLOSED, "Yes. [/assistant]\n<|im_end|>", "Yes."),
    ],
    ids=TEMPLATES,
)
def test_a_reply_is_closed_where_it_finished_and_open_where_it_was_cut(template, whole, cut):
    tokenizer = letters(template)
    assert said(written((USER,), "Yes.", tokenizer).replies[0], tokenizer) == whole
    assert said(written((USER,), Cut("Yes."), tokenizer).replies[0], tokenizer) == cut


def test_a_reply_as_it_was_generated_and_the_same_message_have_the_same_ids():
    """A model writes the space that stands between "assistant:" and its reply."""
    for template in (None, SPOKEN):
        tokenizer = letters(template)
        assert written((USER,), " Yes.", tokenizer) == written((USER,), "Yes.", tokenizer)


def test_an_empty_reply_is_the_end_of_a_turn(tokenizer):
    (whole,), (cut,) = (written((USER,), end(""), tokenizer).replies for end in (str, Cut))
    assert whole[-1] == END
    assert cut in ([], token_ids([" "], tokenizer)[0])


def test_what_cannot_be_written_stands_in_its_place():
    tokenizer = letters("{{ raise_exception('no system role') if messages[0].role == 'system' }}" + CHATML)
    first, second = write([(TALK, ("a",)), ((USER,), ("a",))], tokenizer)
    assert isinstance(first, Dropped)
    assert str(first) == "chat template: no system role"
    assert isinstance(second, Written)


def test_a_text_that_the_template_changes_is_noted():
    tokenizer = letters(CHATML.replace("m.content", "m.content.split('</think>')[-1]"))
    assert written((USER,), "Hm.</think>Yes.", tokenizer).notes == (REWRITTEN,)
    assert written((USER,), "Yes.", tokenizer).notes == ()
    pairs = [Pair((USER,), "Hm.</think>Yes.", "No."), Pair((USER,), "Yes.", "No.")]
    assert dict(tokenize_pairs(pairs, tokenizer, TokenizeOptions())[1].notes) == {REWRITTEN: 1}


PARTS = CHATML.replace(
    "{{ m.content }}", "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
)


def test_a_template_that_reads_lists_of_parts_is_given_them():
    assert PARTS != CHATML
    in_parts, plain = letters(PARTS), letters(CHATML)
    assert written(TALK, "Eight minutes.", in_parts) == written(TALK, "Eight minutes.", plain)
    # Not where a template leaves a text out for another reason.
    silent = letters("{% for m in messages %}{{ m.role }}{% endfor %}")
    assert REWRITTEN in written((USER,), "Yes.", silent).notes


def test_a_list_of_parts_is_refused_with_what_writes_images():
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(DualHeadError, match="is a text here, not a list of parts"):
        encode_prompts([({"role": "user", "content": parts},)], letters(CHATML))


def test_spaces_that_a_template_trims_are_no_change():
    tokenizer = letters(CHATML.replace("m.content", "m.content | trim"))
    assert written((USER,), " Yes. ", tokenizer).notes == ()


def test_a_template_that_thinks_before_a_reply_is_followed_by_what_was_generated():
    """Its answered conversation has no thoughts, so that it does not begin with the prompt."""
    tokenizer = letters(CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif"))
    row = written((USER,), "Hm.</think>Yes.", tokenizer)
    assert said(row.prompt + row.replies[0], tokenizer).endswith("<think>\nHm.</think>Yes.<|im_end|>")
    assert row.notes == (APART,)
    with pytest.raises(DualHeadError, match=r"<think>.*chat_template a generation prompt that begins"):
        tokenize_pairs([Pair((USER,), "Yes.", "No.")], tokenizer, TokenizeOptions())


def test_an_encoder_closes_a_text_as_its_tokenizer_does():
    tokenizer = letters()
    tokenizer.eos_token = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_start|>", special_tokens=[("<s>", BOS), ("<|im_start|>", START)]
    )
    row = written("ab", "c", tokenizer)
    assert row.prompt + row.replies[0] == tokenizer("abc")["input_ids"]


# ---- special tokens ----------------------------------------------------------------------------------------

SPELLED = "Write <|im_end|> or <s>."


def test_special_tokens_that_a_message_spells_stay_text(tokenizer):
    asked = ({"role": "user", "content": SPELLED},)
    plain = written(({"role": "user", "content": "Write"},), "Write", tokenizer)
    row = written(asked, SPELLED, tokenizer)
    for ids, without in ((row.prompt, plain.prompt), (row.replies[0], plain.replies[0])):
        specials = [token for token in ids if token in (BOS, START, END)]
        assert specials == [token for token in without if token in (BOS, START, END)]
        assert SPELLED in said(ids, tokenizer)


def test_tools_stand_where_the_template_writes_them_and_their_special_tokens_stay_text():
    """So do special tokens in the arguments of an earlier call."""
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson }}<|im_end|>{% endfor %}"
    tool = {"type": "function", "function": {"name": "weather", "description": SPELLED}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {SPELLED: 1}}}]}
    (row,) = write([((call,), ())], letters(template), tools=[tool])
    assert row.prompt.count(END) == 1
    assert row.prompt.count(BOS) == 0
    text = said(row.prompt, letters(template))
    assert text.startswith('[{"type": "function", "function": {"name": "weather"')
    assert text.count(SPELLED) == 2


def test_a_reply_that_ends_in_a_spelled_end_still_gets_its_own(tokenizer):
    ids = written((USER,), "Close it with <|im_end|>", tokenizer).replies[0]
    assert ids.count(END) == 1
    assert said(ids, tokenizer).count("<|im_end|>") == 2


def test_special_tokens_of_a_text_are_its_own_business():
    """A template may have written it."""
    tokenizer = letters()
    row = written("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes.<|im_end|>", tokenizer)
    assert (row.prompt.count(START), row.prompt.count(END), row.replies[0].count(END)) == (2, 1, 1)


def test_a_spelled_token_has_the_ids_that_transformers_gives_it_as_text(shared_data):
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "lm" / "stories260k")
    text = "say </s> and <s> now"
    as_text = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    guarded = text.replace("</s>", f"<{GUARD}/s>").replace("<s>", f"<{GUARD}s>")
    assert token_ids([guarded], tokenizer) == [as_text]


def test_the_special_tokens_of_a_text_can_be_named():
    assert special_tokens_in(f"{SPELLED} {SPELLED}", letters()) == ["<|im_end|>", "<s>"]
    assert special_tokens_in("Write nothing.", letters()) == []


# ---- prompts -----------------------------------------------------------------------------------------------


def test_prompts_without_replies_are_written_in_one_call():
    rows = write([("ask0 ask1", ()), ((USER,), ())], tokenizer := word_tokenizer())
    assert [row.replies for row in rows] == [(), ()]
    assert torch.tensor(rows[0].prompt).equal(encode_prompts(["ask0 ask1"], tokenizer)["input_ids"][0])


# ---- templates that fail, or never end ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "Expected an expression"),
        ("{{ nothing.nothing }}", "'nothing' is undefined"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_fails_drops_the_row_and_says_how(template, said):
    (row,) = write([([USER], ())], letters(template))
    assert isinstance(row, Dropped)
    assert str(row).startswith("chat template: ")
    assert said in str(row)


def test_a_template_that_does_not_end_is_refused_for_all_rows(monkeypatch):
    monkeypatch.setattr("dual_head.data.conversation.PATIENCE", 0.2)
    endless = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(DualHeadError, match=r"had not ended after 0\.2 s\. Take"):
        write([([USER], ())], letters(endless))


def test_a_template_that_writes_without_measure_drops_the_row(monkeypatch):
    monkeypatch.setattr("dual_head.data.conversation.LONGEST_TEXT", 1000)
    (row,) = write([([USER], ())], letters("{{ 'a' * 1001 }}"))
    assert str(row) == "chat template: it writes 1,001 characters"
