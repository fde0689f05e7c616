"""Token ids that can be checked by hand: a word is a token, or a short byte-pair merge."""

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dual_head.data import Pair
from dual_head.data.conversation import write
from dual_head.data.load import load_pairs
from dual_head.data.tokenize import TokenizeOptions, tokenize_pairs
from dual_head.data.turns import transcript
from dual_head.errors import DualHeadError

SPECIALS = ["<unk>", "<s>", "</s>", "<user>", "<bot>", "<system>"]
UNK, BOS, EOS, USER, BOT, SYSTEM = range(6)
WORDS = {word: 10 + n for n, word in enumerate(["a", "b", "c", "d", "e", "f", ".", "Human", ":", "Assistant"])}
A, B, C, D, E, F, DOT, HUMAN, COLON, ASSISTANT = WORDS.values()

CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'user': '<user>', 'assistant': '<bot>', 'system': '<system>'}[message.role] + message.content }}"
    "{% if message.role == 'assistant' %}{{ ending }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def words(*, bos=True, eos=True, ends_with_eos=False, chat=None):
    """One token per word; "<s>" goes first where there is one."""
    specials = {word: n for n, word in enumerate(SPECIALS)}
    core = Tokenizer(models.WordLevel(specials | WORDS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        single = "<s> $A </s>" if ends_with_eos else "<s> $A"
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>" if eos else None
    )
    tokenizer.chat_template = chat
    return tokenizer


def characters(chat=None):
    """One token per byte, so that no whitespace goes unseen."""
    vocab = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat
    return tokenizer


def tokenised(pairs, tokenizer, **options):
    pairs = pairs if isinstance(pairs, list) else [pairs]
    rows, drops = tokenize_pairs(pairs, tokenizer, TokenizeOptions(**options))
    return [tuple(row.values()) for row in rows], drops


def dropped(pairs, tokenizer, **options):
    """The reasons, with a good pair beside so that something is left."""
    rows, drops = tokenised([Pair("a", " b", " c"), *pairs], tokenizer, **options)
    assert drops.rows == drops.kept + drops.reasons.total() == len(pairs) + 1
    assert len(rows) == drops.kept
    return dict(drops.reasons)


ASK = ({"role": "user", "content": "a b"},)
ANSWERED = Pair(ASK, "c", "d e")


# ---- a text prompt --------------------------------------------------------------------------------------


def test_a_text_prompt_has_bos_and_its_responses_end_with_eos():
    rows, drops = tokenised(Pair("a b", " c", " d e"), words())
    assert rows == [([BOS, A, B], [C, EOS], [D, E, EOS])]
    assert (drops.rows, drops.kept, drops.reasons, drops.notes) == (1, 1, {}, {})


def test_a_tokenizer_without_bos_adds_none():
    assert tokenised(Pair("a b", " c", " d"), words(bos=False))[0] == [([A, B], [C, EOS], [D, EOS])]


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt():
    tokenizer = words(ends_with_eos=True)
    assert tokenised(Pair("a b", " c", " d"), tokenizer)[0] == [([BOS, A, B], [C, EOS], [D, EOS])]


def test_eos_can_be_left_out():
    assert tokenised(Pair("a", " b", " c"), words(), append_eos=False)[0] == [([BOS, A], [B], [C])]


def test_an_eos_that_is_written_in_the_reply_is_the_only_one():
    assert tokenised(Pair("a", " b</s>", " c"), words())[0] == [([BOS, A], [B, EOS], [C, EOS])]


def test_without_eos_the_remedy_is_told():
    with pytest.raises(DualHeadError, match=r"Set tokenizer\.eos_token, or pass append_eos=False"):
        tokenised(Pair("a", "b", "c"), words(eos=False))


@pytest.mark.heavy
def test_more_pairs_than_a_batch_stay_in_order():
    letters = ["a", "b", "c", "d", "e", "f"]
    pairs = [Pair(" ".join([letters[n % 6]] * (n + 1)), " b", " c") for n in range(1200)]
    rows, drops = tokenised(pairs, words(), max_length=2000)
    assert [(prompt[1], len(prompt)) for prompt, _, _ in rows] == [(10 + n % 6, n + 2) for n in range(1200)]
    assert drops.kept == 1200


# ---- a conversation -------------------------------------------------------------------------------------


def test_without_a_chat_template_a_conversation_is_a_transcript():
    talk = [{"role": "system", "content": "be kind"}, *ASK, {"role": "assistant", "content": "c"}, *ASK]
    tokenizer = characters()
    (row,) = write([(talk, ())], tokenizer)
    text = tokenizer.decode(row.prompt)
    assert text == "\n\nbe kind\n\nHuman: a b\n\nAssistant: c\n\nHuman: a b\n\nAssistant:"
    assert transcript(text) == (*talk, {"role": "assistant", "content": ""})


def test_a_transcript_is_tokenised_like_a_text():
    rows, _ = tokenised(ANSWERED, words())
    assert rows == [([BOS, HUMAN, COLON, A, B, ASSISTANT, COLON], [C, EOS], [D, E, EOS])]


@pytest.mark.parametrize(
    ("chat", "texts"),
    [
        (None, ["\n\nHuman: a b\n\nAssistant:", " c</s>", " d e</s>"]),
        (CHAT.replace("ending", "'</s>\\n'"), ["<s><user>a b<bot>", "c</s>", "d e</s>"]),
        (CHAT.replace("ending", "'.\\n'"), ["<s><user>a b<bot>", "c.\n</s>", "d e.\n</s>"]),
    ],
    ids=["transcript", "template with eos", "template without"],
)
def test_every_space_of_a_conversation_is_where_it_belongs(chat, texts):
    tokenizer = characters(chat)
    [row], _ = tokenised(ANSWERED, tokenizer)
    assert [tokenizer.decode(ids) for ids in row] == texts


@pytest.mark.parametrize(
    ("ending", "chosen"),
    [
        ("", [C, EOS]),
        ("</s>", [C, EOS]),
        ("</s>\\n", [C, EOS]),
        (" .", [C, DOT, EOS]),
    ],
    ids=["none", "eos", "eos and newline", "another token"],
)
def test_a_chat_template_writes_bos_and_ending_and_nothing_is_doubled(ending, chosen):
    tokenizer = words(chat=CHAT.replace("ending", f"'{ending}'"))
    [(prompt, ids, _)], _ = tokenised(ANSWERED, tokenizer)
    assert (prompt, ids) == ([BOS, USER, A, B, BOT], chosen)


def test_text_after_eos_that_is_no_whitespace_is_kept():
    tokenizer = words(chat=CHAT.replace("ending", "'</s> .'"))
    assert tokenised(ANSWERED, tokenizer)[0][0][1] == [C, EOS, DOT, EOS]


def test_a_template_that_thinks_before_the_answer_still_continues_its_prompt():
    tokenizer = words(chat=CHAT.replace("'<bot>'", "'<bot> . '").replace("ending", "'</s>'"))
    assert tokenised(ANSWERED, tokenizer)[0] == [([BOS, USER, A, B, BOT], [DOT, C, EOS], [DOT, D, E, EOS])]


def test_a_template_whose_prompt_does_not_begin_the_answer_is_refused():
    tokenizer = words(chat=CHAT.replace("<bot>{% endif %}", "<system>{% endif %}"))
    with pytest.raises(DualHeadError, match=r"<system>.*chat_template a generation prompt that begins"):
        tokenised(ANSWERED, tokenizer)


def test_what_the_template_refuses_is_dropped_with_its_words():
    chat = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
    tokenizer = words(chat=chat.replace("ending", "''"))
    refused = Pair(({"role": "system", "content": "a"}, *ASK), "b", "c")
    assert dropped([refused], tokenizer) == {"chat template: no system role": 1}


def test_the_callers_messages_stay_as_they_were():
    tokenised(ANSWERED, words(chat=CHAT.replace("ending", "''")))
    assert ASK == ({"role": "user", "content": "a b"},)


def test_a_plain_text_beside_a_chat_template_is_noted():
    tokenizer = words(chat=CHAT.replace("ending", "''"))
    rows, drops = tokenised([Pair("a b", " c", " d"), ANSWERED], tokenizer)
    assert rows[0] == ([BOS, A, B], [C, EOS], [D, EOS])
    ((note, count),) = drops.notes.items()
    assert note.startswith("plain text, without the chat template around it: generate from such prompts with")
    assert count == 1


# ---- the seam -------------------------------------------------------------------------------------------


def merging():
    """Byte-pair: "b" and "c" merge into "bc"; ids are 0 a, 1 b, 2 c, 3 d, 4 bc, 5 </s>."""
    vocab = {"a": 0, "b": 1, "c": 2, "d": 3, "bc": 4, "</s>": 5}
    core = Tokenizer(models.BPE(vocab, [("b", "c")]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_a_merge_across_the_seam_is_mended_and_noted():
    tokenizer = merging()
    assert tokenizer("abcd")["input_ids"] == [0, 4, 3]
    rows, drops = tokenised(Pair("ab", "cd", "d"), tokenizer)
    assert rows == [([0, 1], [2, 3, 5], [3, 5])]
    [(note, count)] = drops.notes.items()
    assert note.startswith("seam mended")
    assert (count, drops.kept) == (1, 1)


def test_a_merge_within_the_response_is_no_seam():
    rows, drops = tokenised(Pair("a", "bcd", "d"), merging())
    assert rows == [([0], [4, 3, 5], [3, 5])]
    assert not drops.notes


def test_a_space_that_a_tokenizer_puts_first_does_not_enter_the_seam():
    """Sentencepiece style: "x y" is "▁x ▁y", so "y" alone has a space that the text has not."""
    vocab = {"▁": 0, "▁a": 1, "b": 2, "▁b": 3, "\n": 4, "c": 5, "a": 6, "</s>": 7}
    core = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "b")]))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert tokenizer(["a b", "a ", "b"])["input_ids"] == [[1, 3], [1, 0], [3]]
    rows, _ = tokenised(Pair("a ", "b", "c"), tokenizer)
    assert rows == [([1, 0], [2, 7], [5, 7])]


def test_a_seam_that_no_tokens_can_keep_is_dropped():
    assert dropped([Pair("a", "b", " c")], words()) == {"no token boundary between prompt and reply": 1}


# ---- lengths --------------------------------------------------------------------------------------------

LONG = Pair("a b c d", " e", " e f")  # BOS and 4, 1 and EOS, 2 and EOS


@pytest.mark.parametrize(
    ("max_length", "prompt"),
    [(8, [BOS, A, B, C, D]), (7, [BOS, B, C, D]), (6, [BOS, C, D]), (5, [BOS, D])],
)
def test_a_prompt_is_cut_on_the_left_and_keeps_bos(max_length, prompt):
    assert tokenised(LONG, words(), max_length=max_length)[0] == [(prompt, [E, EOS], [E, F, EOS])]


def test_a_prompt_without_bos_is_cut_to_its_last_tokens():
    assert tokenised(LONG, words(bos=False), max_length=5)[0] == [([C, D], [E, EOS], [E, F, EOS])]


@pytest.mark.parametrize(("bos", "fits"), [(True, 5), (False, 4)])
def test_a_response_that_leaves_no_prompt_token_is_too_long(bos, fits):
    assert tokenised(LONG, words(bos=bos), max_length=fits)[1].kept == 1
    with pytest.raises(DualHeadError, match="1 dropped: too long"):
        tokenised(LONG, words(bos=bos), max_length=fits - 1)


def test_max_prompt_length_cuts_a_prompt_that_would_fit():
    assert tokenised(LONG, words(), max_prompt_length=3)[0] == [([BOS, C, D], [E, EOS], [E, F, EOS])]


def test_a_cut_response_has_no_eos_and_a_whole_one_has():
    rows, _ = tokenised(Pair("a b", " c", " d e f"), words(bos=False), max_length=5, truncate_responses=True)
    assert rows == [([A, B], [C, EOS], [D, E, F])]


def test_truncated_responses_leave_the_prompt_half_of_the_length():
    pair = Pair("a b c d", " a b c d e f", " b")
    rows, _ = tokenised(pair, words(bos=False), max_length=6, truncate_responses=True)
    assert rows == [([B, C, D], [A, B, C], [B, EOS])]


def test_a_short_prompt_leaves_the_responses_the_rest():
    rows, _ = tokenised(Pair("a", " a b c d e f", " b"), words(bos=False), max_length=6, truncate_responses=True)
    assert rows == [([A], [A, B, C, D, E], [B, EOS])]


@pytest.mark.parametrize("lengths", [{"max_length": 1}, {"max_prompt_length": 0}])
def test_lengths_that_hold_nothing_are_refused(lengths):
    with pytest.raises(DualHeadError, match="at least"):
        TokenizeOptions(**lengths)


# ---- drops ----------------------------------------------------------------------------------------------


def test_different_texts_of_the_same_tokens_are_dropped():
    assert dropped([Pair("a", " b c", " b  c")], words()) == {"identical after tokenising": 1}


def test_responses_that_differ_only_where_they_were_cut_are_dropped():
    pairs = [Pair("a", " b b b c", " b b b d")]
    options = {"max_length": 4, "truncate_responses": True}
    assert dropped(pairs, words(bos=False), **options) == {"identical after tokenising": 1}


def test_a_prompt_without_tokens_is_dropped_unless_bos_stands_for_it():
    assert dropped([Pair("", "b", "c")], words(bos=False)) == {"empty prompt": 1}
    assert tokenised(Pair("", "b", "c"), words(), max_length=3)[0] == [([BOS], [B, EOS], [C, EOS])]


@pytest.mark.parametrize("nothing", ["", " "])
def test_a_reply_without_tokens_is_dropped(nothing):
    assert dropped([Pair("a", " b", nothing)], words()) == {"empty reply": 1}


@pytest.mark.parametrize("number", [1, 600], ids=["first batch", "second batch"])
def test_a_drop_is_located_by_the_pairs_number(number):
    _, drops = tokenised([Pair("a", " b", " c")] * number + [Pair("a", " b", "")], words())
    assert drops.first == {"empty reply": f"pair {number}"}


# ---- the data set ---------------------------------------------------------------------------------------


def test_the_data_set_is_in_memory_and_narrow():
    rows, _ = tokenize_pairs([Pair("a", " b", " c")], words(), TokenizeOptions())
    assert rows.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert {str(feature.feature.dtype) for feature in rows.features.values()} == {"int32"}
    assert rows.cache_files == []


def test_real_transcripts_read_the_same_after_a_real_tokenizer(shared_data):
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "lm" / "stories260k")
    pairs, _ = load_pairs(str(shared_data / "hh_rlhf" / "helpful-base.test.jsonl.gz"), max_rows=100)
    rows, drops = tokenize_pairs(pairs, tokenizer, TokenizeOptions(max_length=4096))
    assert drops.kept == len(pairs)
    for pair, row in zip(pairs, rows, strict=True):
        text = tokenizer.decode(row["prompt_ids"] + row["chosen_ids"], skip_special_tokens=True)
        talk = [*pair.prompt, {"role": "assistant", "content": pair.chosen}]
        speakers = {"user": "Human", "assistant": "Assistant"}
        assert text == "".join(f"\n\n{speakers[turn['role']]}: {turn['content']}" for turn in talk)
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1
        assert row["chosen_ids"].count(tokenizer.eos_token_id) == 1
