"""Rows of every format become the pairs that a reader would write by hand, and no row vanishes uncounted."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from dual_head.data import Pair, RowReport, split_by_prompt
from dual_head.data.formats import FORMATS
from dual_head.data.load import load_pairs
from dual_head.data.turns import transcript
from dual_head.errors import DualHeadError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def jsonl(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def load(tmp_path):
    """Write rows to a file of lines and load it."""

    def load(*rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text(jsonl(rows))
        return load_pairs(str(path), **options)

    return load


DIFFER = "conversations differ before the last reply"
MUTE = "last turn is not the assistant's"
GOOD = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
GOOD_PAIR = Pair("2 + 2 =", " 4", " 5")

HELLO = Pair((user("Hello"),), "Hi!", "Go away.")
ROWS = {
    "hh": (
        {
            "chosen": "\n\nHuman: Hello\n\nAssistant: Hi!",
            "rejected": "\n\nHuman: Hello\n\nAssistant: Go away.",
        },
        HELLO,
    ),
    "dahoas": (
        {
            "prompt": "\n\nHuman: Hello\n\nAssistant:",
            "response": " Hi!",
            "chosen": " Hi!",
            "rejected": "Go away.",
        },
        HELLO,
    ),
    "pku": (
        {
            "prompt": "Hello",
            "response_0": "Go away.",
            "response_1": "Hi!",
            "is_response_0_safe": True,
            "is_response_1_safe": True,
            "better_response_id": 1,
            "safer_response_id": 1,
        },
        HELLO,
    ),
    "pku-ordered": ({"response": ["Hi!", "Go away."], "prompt": "Hello"}, HELLO),
    "ultrafeedback": (
        {
            "prompt": "Hello",
            "prompt_id": "f0",
            "chosen": [user("Hello"), assistant("Hi!")],
            "rejected": [user("Hello"), assistant("Go away.")],
            "score_chosen": 8.0,
        },
        HELLO,
    ),
    "trl-conversational": (
        {"prompt": [user("Hello")], "chosen": [assistant("Hi!")], "rejected": [assistant("Go away.")]},
        HELLO,
    ),
    "question": (
        {"system": "Be kind.", "question": "Hello", "chosen": "Hi!", "rejected": "Go away."},
        Pair((system("Be kind."), user("Hello")), "Hi!", "Go away."),
    ),
    "trl": (GOOD, GOOD_PAIR),
}


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].judged_by is None])
@pytest.mark.parametrize("asked", ["auto", "by name"])
def test_a_row_of_every_format_of_pairs_becomes_its_pair(load, name, asked):
    row, pair = ROWS[name]
    objective = "harmless" if FORMATS[name].objectives else None
    pairs, drops = load(row, format="auto" if asked == "auto" else name, objective=objective)
    assert pairs == [pair]
    assert (drops.rows, drops.kept, drops.reasons) == (1, 1, {})


# ---- transcripts ----------------------------------------------------------------------------------------


def test_a_blank_line_separates_paragraphs_and_not_turns():
    text = "\n\nHuman: Two\n\nparagraphs\n\nAssistant: One\n\nHuman: Last\n\nAssistant: a\n\nb\n\nc"
    said = transcript(text)
    assert said == (user("Two\n\nparagraphs"), assistant("One"), user("Last"), assistant("a\n\nb\n\nc"))


def test_a_speaker_named_within_a_line_begins_no_turn():
    said = transcript("\n\nHuman: say Human: twice\nAssistant: hm\n\nAssistant: no\n\nHumans: we")
    assert said == (user("say Human: twice\nAssistant: hm"), assistant("no\n\nHumans: we"))


def test_text_before_the_first_turn_is_the_system_message():
    assert transcript("Be kind.\n\nHuman: Hi\n\nAssistant:") == (
        system("Be kind."),
        user("Hi"),
        assistant(""),
    )


def test_the_last_reply_is_split_from_a_conversation_of_several_turns(load):
    past = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    pairs, _ = load({"chosen": past + " d", "rejected": past + " e\n\nf"})
    assert pairs == [Pair((user("a"), assistant("b"), user("c")), "d", "e\n\nf")]


def hh(chosen, rejected):
    return {
        "chosen": "\n\nHuman: a\n\nAssistant: " + chosen,
        "rejected": "\n\nHuman: a\n\nAssistant: " + rejected,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (hh("b", "c\n\nHuman: d\n\nAssistant: e"), DIFFER),
        (hh("b\n\nHuman: x\n\nAssistant: y", "c\n\nHuman: x\n\nAssistant: z"), DIFFER),
        (hh("b\n\nHuman: why?", "b\n\nHuman: what?"), MUTE),
        (hh("b", "b"), "identical"),
        (hh("b", ""), "empty reply"),
        (dict.fromkeys(["chosen", "rejected"], "\n\nHuman: \n\nAssistant: b"), "empty prompt"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "malformed row"),
        (hh("b", "\ud800"), "malformed row"),
        ([1, 2], "malformed row"),
        ("{broken", "malformed line"),
    ],
)
def test_a_row_that_makes_no_pair_is_dropped_by_its_reason(load, row, reason):
    pairs, drops = load(hh("x", "y"), row)
    assert len(pairs) == 1
    assert (drops.rows, drops.kept, drops.reasons) == (2, 1, {reason: 1})
    assert drops.first[reason].endswith("rows.jsonl:2")


# ---- PKU ------------------------------------------------------------------------------------------------


def test_each_pku_objective_has_its_own_preference(load):
    row = ROWS["pku"][0] | {"better_response_id": 0, "safer_response_id": 1}
    assert load(row, objective="helpful")[0] == [Pair((user("Hello"),), "Go away.", "Hi!")]
    assert load(row, objective="harmless")[0] == [Pair((user("Hello"),), "Hi!", "Go away.")]


@pytest.mark.parametrize(("value", "reason"), [(-1, "tie"), (None, "tie")])
def test_a_pku_row_without_preference_is_a_tie(load, value, reason):
    tied = ROWS["pku"][0] | {"better_response_id": value}
    _, drops = load(ROWS["pku"][0], tied, objective="helpful")
    assert drops.reasons == {reason: 1}


@pytest.mark.parametrize("objective", [None, "helpfull"])
def test_pku_without_a_known_objective_says_which_there_are(load, objective):
    with pytest.raises(DualHeadError, match="helpful, harmless"):
        load(ROWS["pku"][0], objective=objective)


def test_pku_ordered_by_safety_gives_no_helpful_preference(load):
    with pytest.raises(DualHeadError, match="one of: harmless"):
        load(ROWS["pku-ordered"][0], objective="helpful")


def test_a_format_of_one_preference_refuses_an_objective(load):
    with pytest.raises(DualHeadError, match="Leave out objective='helpful'"):
        load(GOOD, objective="helpful")


# ---- messages -------------------------------------------------------------------------------------------


B, C = assistant("b"), assistant("c")
ANSWER = Pair((user("a"),), "b", "c")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "pair"),
    [
        pytest.param(None, [user("a"), B], [user("a"), C], ANSWER, id="implicit"),
        pytest.param([user("a")], [B], [C], ANSWER, id="explicit"),
        pytest.param([user("a")], [user("a"), B], [user("a"), C], ANSWER, id="repeated by the replies"),
        pytest.param("a", [B], [C], ANSWER, id="text"),
        pytest.param("a", [user("a"), B], [user("a"), C], ANSWER, id="text repeated by the replies"),
        pytest.param(
            [system("s"), user("a"), B, user("d")],
            [{"role": "assistant", "content": "e", "name": "extra key"}],
            [assistant("f")],
            Pair((system("s"), user("a"), B, user("d")), "e", "f"),
            id="several turns",
        ),
    ],
)
def test_a_prompt_of_messages_enters_once(load, prompt, chosen, rejected, pair):
    assert load({"prompt": prompt, "chosen": chosen, "rejected": rejected})[0] == [pair]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([user("x"), B], DIFFER),
        ([user("a")], MUTE),
        ([], MUTE),
        (
            [user("a"), {"role": "tool", "content": "b"}],
            "a message by 'tool', not by system, user or assistant",
        ),
        ([user("a"), {"role": ["assistant"], "content": "b"}], "malformed row"),
        ([user("a"), assistant(None)], "malformed row"),
        (["a", "b"], "malformed row"),
    ],
)
def test_messages_that_make_no_pair_are_dropped_by_their_reason(load, chosen, reason):
    row = {"chosen": [user("a"), B], "rejected": [user("a"), C]}
    _, drops = load(row, row | {"chosen": chosen})
    assert drops.reasons == {reason: 1}


def test_a_prompt_column_that_is_no_message_of_the_conversation_is_not_ignored(load):
    row = {"prompt": "a", "chosen": [user("a"), B], "rejected": [user("a"), C]}
    _, drops = load(row, row | {"prompt": "context"})
    assert drops.reasons == {"prompt is not among the messages": 1}


# ---- texts that share their start ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "pair"),
    [
        ("The sky is blue.", "The sky is green.", Pair("The sky is", " blue.", " green.")),
        ("The sky is grey.", "The sky is green.", Pair("The sky is", " grey.", " green.")),
        ("Sky?\n\nBlue", "Sky?\n\nGreen", Pair("Sky?", "\n\nBlue", "\n\nGreen")),
        ("It is so", "It is so, yes", Pair("It is", " so", " so, yes")),
    ],
)
def test_an_implicit_prompt_is_the_shared_start_up_to_a_whole_word(load, chosen, rejected, pair):
    assert load({"chosen": chosen, "rejected": rejected})[0] == [pair]


def test_texts_that_share_no_word_have_no_prompt(load):
    _, drops = load(GOOD, {"chosen": "Blue.", "rejected": "Bluish."}, format="trl")
    assert drops.reasons == {"empty prompt": 1}


# ---- questions in other columns, and what is left out of a row ---------------------------------------------

BOTH = {"chosen": "The answer is 6.", "rejected": "The answer is 7."}
ASKED = Pair((user("3 + 3?"),), *BOTH.values())


@pytest.mark.parametrize("column", ["question", "instruction", "input", "query", "goal", "Question", " INPUT"])
def test_a_question_in_another_column_is_the_users_and_never_left_out(load, column):
    pairs, drops = load({column: "3 + 3?", **BOTH})
    assert pairs == [ASKED]
    assert not drops.notes


def test_columns_in_capitals_are_those_of_the_same_name(load):
    assert load({"Prompt": "2 + 2 =", "CHOSEN": " 4", "Rejected": " 5"})[0] == [GOOD_PAIR]


def test_a_name_in_capitals_beside_the_same_name_is_another_column(load):
    assert load({**GOOD, "Prompt": "other"})[0] == [GOOD_PAIR]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"system": "s", "question": "q"}, (system("s"), user("q"))),
        ({"system": "s", "prompt": "q"}, (system("s"), user("q"))),
        ({"system": "", "prompt": "q"}, (user("q"),)),
        ({"system_prompt": "s", "prompt": [user("q")]}, (system("s"), user("q"))),
        ({"system": "other", "prompt": [system("s"), user("q")]}, (system("s"), user("q"))),
        ({"instruction": "Translate", "input": "cat"}, (user("Translate\n\ncat"),)),
        ({"instruction": "Sing", "input": ""}, (user("Sing"),)),
        ({"prompt": [user("q")]}, (user("q"),)),
        ({"conversations": [{"from": "human", "value": "q"}]}, (user("q"),)),
        ({"messages": [user("a"), assistant("b"), user("q")]}, (user("a"), assistant("b"), user("q"))),
    ],
)
def test_texts_answer_a_question_with_all_that_comes_before_it(load, row, turns):
    assert load({**row, **BOTH})[0] == [Pair(turns, *BOTH.values())]


@pytest.mark.parametrize("column", ["prompt", "question"])
def test_a_system_column_goes_before_replies_of_messages_too(load, column):
    row = {"system": "s", column: "q", "chosen": [assistant("b")], "rejected": [assistant("c")]}
    pair = Pair((system("s"), user("q")), "b", "c")
    assert load(row)[0] == [pair]
    whole = {**row, "chosen": [user("q"), B], "rejected": [user("q"), C]}
    assert load(whole)[0] == load({**whole, column: [user("q")]})[0] == load(whole | {column: None})[0] == [pair]


def test_sharegpt_rows_are_read(load):
    row = {"conversations": [{"from": "human", "value": "a"}]}
    row |= {"chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}
    assert load(row)[0] == [ANSWER]


def test_a_null_prompt_among_others_is_dropped_and_not_made_of_what_the_replies_share(load):
    pairs, drops = load(GOOD, GOOD | {"rejected": " 6"}, {"prompt": None, **BOTH}, BOTH)
    assert len(pairs) == 2
    assert drops.reasons == {"empty prompt": 2}
    _, drops = load({"question": "q", **BOTH}, {"question": "r", **BOTH}, {"question": None, **BOTH})
    assert drops.reasons == {"empty prompt": 1}


def test_a_question_among_rows_without_one_is_not_left_out(load):
    pairs, _ = load(BOTH, {**BOTH, "chosen": "The answer is 8."}, {"question": "3 + 3?", **BOTH})
    assert pairs[-1] == ASKED


def test_a_prompt_made_of_what_the_replies_share_is_noted(load):
    pairs, drops = load({"post": "3 + 3?", **BOTH})
    assert pairs[0].prompt == "The answer is"
    (note,) = drops.notes
    assert "no column with a prompt was found" in note


LOOK = {**assistant("Let me look."), "tool_calls": [{"function": {"name": "weather"}}]}
THINK = {**assistant("Yes."), "reasoning_content": "24 is warm."}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [user("a"), LOOK, user("b")]}, "a message with tool_calls, which are not read"),
        ({"chosen": [LOOK]}, "a message with tool_calls, which are not read"),
        ({"chosen": [THINK], "rejected": [{**THINK, "reasoning_content": "x"}]}, "identical but for reasoning_content"),
        ({"prompt": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "a message with more than text"),
        ({"prompt": "[{'role': 'user', 'content': 'a'}]"}, "messages written as a text, not as a list"),
    ],
)
def test_what_cannot_be_trained_on_is_dropped_by_its_name(load, row, reason):
    good = {"prompt": [user("a")], "chosen": [B], "rejected": [C]}
    _, drops = load(good, good | row)
    assert drops.reasons == {reason: 1}


PICTURE = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": [user(PICTURE)]}, "prompt"),
        ({"prompt": None, "messages": [{"from": "human", "value": PICTURE}]}, "messages"),
        ({"chosen": [user(PICTURE), B]}, "chosen"),
        ({"Image": "a.png"}, "image"),
        ({"images": [{"bytes": "AA=="}]}, "images"),
    ],
)
def test_a_row_with_an_image_is_refused_by_its_place(load, row, column):
    good = {"prompt": [user("a")], "chosen": [B], "rejected": [C]}
    with pytest.raises(DualHeadError, match=rf"rows.jsonl:2: column '{column}' holds an image, .* Remove such rows"):
        load(good, good | row)
    assert load(good, {**good, "prompt": [user("b")], "image": None, "images": []})[1].kept == 2


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"chosen": [THINK]}, "reasoning_content of messages left out"),
        ({"tools": [{"type": "function"}]}, "column 'tools' left out"),
        ({"history": [["x", "y"]]}, "column 'history' left out"),
        ({"context": "c"}, "column 'context' left out"),
        ({"question": "another"}, "column 'question' left out"),
        ({"score_chosen": 3, "score_rejected": 3.0}, "score_chosen is equal to score_rejected"),
        ({"chosen-rating": "1", "rejected-rating": "3"}, "chosen-rating is below rejected-rating"),
        ({"margin": -0.5}, "margin is below zero"),
        (
            {"chosen": [assistant("<|im_start|>b")]},
            "a text that a chat template has written before: it holds <|im_start|>",
        ),
        ({"prompt": [user("[INST] a [/INST]")]}, "a text that a chat template has written before: it holds [INST]"),
    ],
)
def test_what_is_left_out_or_looks_wrong_is_noted_and_counted(load, row, note):
    good = {"prompt": [user("a")], "chosen": [B], "rejected": [C]}
    _, drops = load({**good, **row}, {**good, "rejected": [assistant("d")], **row})
    assert drops.notes == {note: 2}


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [], "history": None, "context": "", "system": ""},
        {"question": "a", "input": 35},
        {"score_chosen": 4, "score_rejected": 3, "margin": 1, "chosen_tokens": 3, "rejected_tokens": 9},
        {"score_chosen": None, "score_rejected": 3},
        {"chosen": [{**B, "tool_calls": None, "reasoning_content": ""}]},
    ],
)
def test_a_row_of_which_nothing_is_left_out_has_no_note(load, row):
    _, drops = load({"prompt": [user("a")], "chosen": [B], "rejected": [C], **row})
    assert (drops.kept, drops.notes) == (1, {})


def test_parts_of_text_make_one_text_and_roles_have_any_case(load):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"prompt": [{"role": "User", "content": parts}], "chosen": [{"role": "ASSISTANT", "content": "b"}]}
    assert load({**row, "rejected": [C]})[0] == [Pair((user("a\nb"),), "b", "c")]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("name", ["hh", "dahoas"])
def test_transcripts_with_lines_as_on_windows_give_the_same_pairs(load, name, end):
    past = "\n\nHuman: a\n\nAssistant: b\n\nHuman: two\n\nparagraphs\n\nAssistant:"
    row = {"prompt": past, "chosen": " d", "rejected": " e"}
    row = row if name == "dahoas" else {"chosen": past + " d", "rejected": past + " e"}
    pairs, _ = load({column: text.replace("\n", end) for column, text in row.items()})
    assert pairs == load(row)[0] == [Pair((user("a"), assistant("b"), user("two\n\nparagraphs")), "d", "e")]


@pytest.mark.parametrize(("value", "chosen"), [(0, "Go away."), ("1", "Hi!"), (1.0, "Hi!"), ("0.0", "Go away.")])
def test_pku_ids_are_read_as_tables_and_parquet_write_them(load, value, chosen):
    row = ROWS["pku"][0] | {"better_response_id": value}
    assert load(row, objective="helpful")[0][0].chosen == chosen


# ---- choosing a format ----------------------------------------------------------------------------------


def test_a_misspelt_format_is_told_the_nearest(load):
    with pytest.raises(DualHeadError, match="Did you mean 'ultrafeedback'"):
        load(GOOD, format="ultrafeedbck")


def test_unknown_columns_are_listed_beside_the_formats(load):
    with pytest.raises(DualHeadError, match=r"columns answer \(text\), question \(text\)\..*hh, dahoas, pku"):
        load({"question": "a", "answer": "b"})


def test_a_reply_that_quotes_a_transcript_is_no_transcript_when_there_is_a_prompt(load):
    row = {"prompt": "An example:", "chosen": "Human: Hi\n\nAssistant: Hello", "rejected": " none"}
    assert load(row)[0] == [Pair(row["prompt"], row["chosen"], row["rejected"])]


def test_one_odd_first_row_does_not_decide_the_format(load):
    pairs, _ = load({"chosen": "odd"}, "{", ROWS["hh"][0])
    assert pairs == [HELLO]


# ---- drops ----------------------------------------------------------------------------------------------


def test_a_repeated_pair_is_kept_once(load):
    pairs, drops = load(GOOD, GOOD, GOOD | {"rejected": " 6"})
    assert [pair.rejected for pair in pairs] == [" 5", " 6"]
    assert drops.reasons == {"duplicate pair": 1}


def test_max_rows_counts_the_rows_read(load):
    pairs, drops = load(GOOD, "{", GOOD | {"rejected": " 6"}, max_rows=2)
    assert (len(pairs), drops.rows) == (1, 2)


def test_when_nothing_is_left_the_error_has_the_table(load):
    with pytest.raises(DualHeadError, match=r"2 dropped: malformed line \(first: .*rows.jsonl:1\)"):
        load("{", "}")


def test_the_table_reads_like_an_account():
    drops = RowReport(rows=5, kept=2)
    drops.drop("tie", "a:1")
    drops.drop("tie", "a:2")
    drops.drop("identical", "a:3")
    drops.notes["seam mended"] += 4
    assert drops.table().splitlines() == [
        "       5 rows read",
        "       2 kept",
        "       2 dropped: tie (first: a:1)",
        "       1 dropped: identical (first: a:3)",
        "    note: seam mended (4 times)",
    ]


def test_drops_of_two_files_add_up_and_stay_themselves():
    one, two = RowReport(rows=2, kept=1), RowReport(rows=3, kept=1)
    one.drop("tie", "one:1")
    two.drop("tie", "two:1")
    two.drop("identical", "two:2")
    both = one + two
    assert (both.rows, both.kept, both.reasons) == (5, 2, {"tie": 2, "identical": 1})
    assert both.first == {"tie": "one:1", "identical": "two:2"}
    assert one.reasons == {"tie": 1}


# ---- sources --------------------------------------------------------------------------------------------

MORE = [GOOD | {"rejected": f" {n}"} for n in range(5, 9)]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "json.gz", "array.json", "parquet"])
def test_every_kind_of_file_is_read(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    text = json.dumps(MORE, indent=1) if ending == "array.json" else jsonl(MORE)
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(MORE), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    pairs, drops = load_pairs(str(path))
    assert pairs == [Pair("2 + 2 =", " 4", row["rejected"]) for row in MORE]
    assert drops.rows == 4


def test_messages_in_parquet_are_read(tmp_path):
    row, pair = ROWS["ultrafeedback"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train-00000-of-00001.parquet")
    assert load_pairs(str(tmp_path))[0] == [pair]


def test_a_truncated_gzip_gives_its_rows_and_a_note(tmp_path):
    rows = [GOOD | {"rejected": f" {n * 7919 % 10007}"} for n in range(5000)]
    whole = gzip.compress(jsonl(rows).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    pairs, drops = load_pairs(str(path))
    assert 100 < len(pairs) < 5000
    assert drops.reasons["malformed line"] == 1
    assert "is damaged after line" in drops.table()


def test_a_file_that_is_no_gzip_is_told(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_text(jsonl(MORE))
    with pytest.raises(DualHeadError, match="is damaged after line 0: Not a gzipped file"):
        load_pairs(str(tmp_path))


def test_letters_beyond_ascii_and_a_byte_order_mark_are_read(tmp_path):
    row = {"prompt": "Zwölf", "chosen": " 十二", "rejected": " 🙂"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8-sig")
    assert load_pairs(str(path))[0] == [Pair(*row.values())]


def test_a_broken_array_is_counted_and_told(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(MORE)[:-5])
    with pytest.raises(DualHeadError, match="malformed line"):
        load_pairs(str(path))


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(DualHeadError, match=r"a\.parquet' is not a readable parquet"):
        load_pairs(str(tmp_path))


def write(folder, **files):
    for number, (name, path) in enumerate(files.items(), 1):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(jsonl([GOOD | {"rejected": name, "n": number}]))


@pytest.mark.parametrize(
    ("split", "read"),
    [
        ("train", {"a", "b", "c"}),
        ("test", {"d", "e"}),
        ("validation", {"f"}),
        ("train_prefs", {"c"}),
    ],
)
def test_a_folder_gives_the_files_of_the_split(tmp_path, split, read):
    write(tmp_path, a="train.jsonl", b="x/train/latest.jsonl", c="data/train_prefs-0.jsonl")
    write(tmp_path, d="helpful.test.jsonl", e="test/rows.json", f="val.jsonl", g="latest.jsonl")
    pairs, drops = load_pairs(str(tmp_path), split=split)
    assert {pair.rejected for pair in pairs} == read
    assert not drops.notes


def test_data_dir_is_a_folder_in_the_folder(tmp_path):
    write(tmp_path, a="harmless/train.jsonl", b="helpful/train.jsonl")
    assert [pair.rejected for pair in load_pairs(str(tmp_path), data_dir="helpful")[0]] == ["b"]
    with pytest.raises(DualHeadError, match="no file or folder"):
        load_pairs(str(tmp_path), data_dir="honest")


@pytest.mark.parametrize(("name", "said"), [("a.test.jsonl", "test"), ("a.jsonl", "unnamed")])
def test_the_only_split_there_is_is_read_and_noted(tmp_path, name, said):
    write(tmp_path, a=name)
    pairs, drops = load_pairs(str(tmp_path), split="validation")
    assert len(pairs) == 1
    assert f"note: no file in '{tmp_path}' is named for split 'validation'; read the {said} files" in drops.table()


def test_of_two_other_splits_none_is_guessed(tmp_path):
    write(tmp_path, a="train.jsonl", b="test.jsonl")
    with pytest.raises(DualHeadError, match="It has: test, train"):
        load_pairs(str(tmp_path), split="validation")


@pytest.mark.parametrize("name", ["/no/such/folder", "./rows", "rows.jsonl", "a/b/c", "~/no-such-file"])
def test_a_missing_path_is_no_hub_name(name):
    with pytest.raises(DualHeadError, match="There is no file or folder"):
        load_pairs(name)


def test_an_empty_folder_is_told_what_to_hold(tmp_path):
    with pytest.raises(DualHeadError, match=r"end in: \.jsonl, .*\.parquet"):
        load_pairs(str(tmp_path))


def test_any_other_name_is_asked_of_the_hub(monkeypatch):
    asked = {}

    def load_dataset(name, *, data_dir, split):
        asked.update(name=name, data_dir=data_dir, split=split)
        return datasets.Dataset.from_list([ROWS["hh"][0], hh("b", "b")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda _: ["default"])
    pairs, drops = load_pairs("Anthropic/hh-rlhf", data_dir="harmless-base", split="test")
    assert asked == {"name": "Anthropic/hh-rlhf", "data_dir": "harmless-base", "split": "test"}
    assert pairs == [HELLO]
    assert drops.first == {"identical": "Anthropic/hh-rlhf [test] row 2"}


def test_a_hub_that_does_not_answer_is_told_with_the_remedy(monkeypatch):
    def load_dataset(name, *, data_dir, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DualHeadError, match=r"no route Pass a local path"):
        load_pairs("owner/name")


# ---- held-out prompts -----------------------------------------------------------------------------------

MANY = [Pair(f"prompt {n}", f"chosen {k}", "rejected") for n in range(1000) for k in range(2)]


def test_a_prompt_is_on_one_side_only():
    kept, held = split_by_prompt(MANY, 0.2)
    assert len(kept) + len(held) == len(MANY)
    assert not {pair.prompt for pair in kept} & {pair.prompt for pair in held}
    assert 300 < len(held) < 500  # 400 expected, 25 the standard deviation


def test_the_side_of_a_prompt_does_not_depend_on_the_other_rows():
    held = split_by_prompt(MANY, 0.2)[1]
    assert split_by_prompt(MANY[::-1][:700], 0.2)[1] == [pair for pair in MANY[::-1][:700] if pair in held]


def test_a_larger_share_holds_out_the_same_prompts_and_more():
    small, large = split_by_prompt(MANY, 0.1)[1], split_by_prompt(MANY, 0.3)[1]
    assert {pair.prompt for pair in small} < {pair.prompt for pair in large}


def test_another_seed_is_another_split():
    assert split_by_prompt(MANY, 0.2, seed=1) != split_by_prompt(MANY, 0.2)


def test_conversations_are_split_too():
    kept, held = split_by_prompt([HELLO, HELLO], 0.5)
    assert sorted([len(kept), len(held)]) == [0, 2]


@pytest.mark.parametrize(("share", "held"), [(0, 0), (1, 2000)])
def test_nothing_and_everything_can_be_held_out(share, held):
    assert len(split_by_prompt(MANY, share)[1]) == held


def test_a_share_is_no_count():
    with pytest.raises(DualHeadError, match="between 0 and 1"):
        split_by_prompt(MANY, 100)


# ---- real data ------------------------------------------------------------------------------------------

HH_FILES = {
    "harmless-base": (2312, {DIFFER: 5, "empty reply": 4}),
    "helpful-base": (2354, {DIFFER: 9, "empty reply": 4, "identical": 2}),
    "helpful-rejection-sampled": (2749, {"identical": 32, DIFFER: 3}),
}


@pytest.mark.parametrize("name", HH_FILES)
def test_real_hh_rows_parse_and_every_drop_has_its_reason(shared_data, name):
    rows, reasons = HH_FILES[name]
    pairs, drops = load_pairs(str(shared_data / "hh_rlhf" / f"{name}.test.jsonl.gz"))
    assert (drops.rows, drops.reasons) == (rows, reasons)
    assert len(pairs) == drops.kept == rows - sum(reasons.values())
    assert all(pair.prompt[0]["role"] == pair.prompt[-1]["role"] == "user" for pair in pairs)


def test_the_seeds_parser_finds_no_turn_in_a_real_row_and_ours_does(shared_data):
    """Erratum D15: it splits on a backslash and an n, which no transcript contains."""
    with gzip.open(shared_data / "hh_rlhf" / "harmless-base.test.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["chosen"] for line in lines]
    seeds = [text.split(r"\n\nAssistant:")[1:] for text in texts]
    ours = [[turn for turn in transcript(text) if turn["role"] == "assistant"] for text in texts]
    assert len(texts) == 2312
    assert sum(map(bool, seeds)) == 0
    assert sum(map(bool, ours)) == 2312


def test_the_hh_folder_has_a_test_split_only_and_says_so(shared_data):
    pairs, drops = load_pairs(str(shared_data / "hh_rlhf"), split="train", max_rows=100)
    assert len(pairs) > 90
    assert "read the test files" in drops.table()


def test_real_pku_rows_are_ordered_by_safety_and_often_repeated(shared_data):
    pairs, drops = load_pairs(str(shared_data / "pku_safe_rlhf"), objective="harmless")
    assert (drops.rows, drops.kept, drops.reasons) == (5135, 3590, {"duplicate pair": 1545})
    assert len({pair.prompt[0]["content"] for pair in pairs}) == 930
