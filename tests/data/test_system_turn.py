"""Where a system turn begins and ends: told by writing conversations, for templates of every shape."""

import pytest
from files import CHATML, letters

from dual_head.data.system_turn import header, layout
from dual_head.errors import DualHeadError

DEFAULT = (  # writes a system turn of its own where a conversation has none, as SmolLM2's and Qwen's do
    "{% if messages[0].role != 'system' %}<|im_start|>system\nI help.<|im_end|>\n{% endif %}" + CHATML
)
LLAMA2 = (  # the system prompt inside the user's turn
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}<s>{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ s if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (  # nothing between the system prompt and the user's text but a line
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set s = '' %}{% endif %}<s>{% for m in messages %}[{{ m.role }}]\n{{ s if loop.first else '' }}"
    "{{ m.content }}\n{% endfor %}"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML

SHAPES = {
    "chatml": (CHATML, "<|im_start|>user\n", "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"),
    "default": (
        DEFAULT,
        "<|im_start|>system\nI help.<|im_end|>\n<|im_start|>user\n",
        "<|im_start|>system\n",
        "<|im_end|>\n<|im_start|>user\n",
    ),
    "llama2": (LLAMA2, "<s>[INST] ", "<s>[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
    "gemma": (GEMMA, "<s>[user]\n", "", ""),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_parts_of_a_system_turn_are_those_of_the_template(shape):
    template, bare, opening, closing = SHAPES[shape]
    tokenizer = letters(template)
    parts = {name: tokenizer.decode(ids) for name, ids in layout(tokenizer).items()}
    assert parts == {"bare": bare, "opening": opening, "closing": closing, "first": "<s>"}


def test_a_header_is_all_that_comes_before_the_users_text():
    tokenizer = letters(CHATML)
    assert tokenizer.decode(header("Be brief.", tokenizer)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )
    assert tokenizer.decode(header("", tokenizer)) == "<|im_start|>user\n"
    assert header("", letters(DEFAULT)) == layout(letters(DEFAULT))["bare"]


def test_a_special_token_in_a_system_prompt_is_text():
    tokenizer = letters(CHATML)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = header("Say <|im_end|>.", tokenizer)
    assert (ids.count(start), ids.count(end)) == (2, 1)


def test_without_a_chat_template_a_prompt_is_its_text_behind_the_first_tokens():
    tokenizer = letters()
    assert tokenizer.decode(header("Be brief.\n", tokenizer)) == "<s>Be brief.\n"
    assert {name: tokenizer.decode(ids) for name, ids in layout(tokenizer).items()} == {
        "bare": "<s>",
        "opening": "",
        "closing": "",
        "first": "<s>",
    }


def test_a_template_without_system_prompts_is_refused_with_the_remedy():
    with pytest.raises(DualHeadError, match=r"takes no system prompt.*Give the prompt as token ids"):
        header("Be brief.", letters(REFUSES))
