"""Rows of every format become the examples that a reader would write by hand, and no row vanishes uncounted."""

import json
import math

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from dual_head.classify import Example
from dual_head.classify.data.load import FORMATS, fill, load_examples, overlap
from dual_head.errors import DualHeadError


def jsonl(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def load(tmp_path):
    """Write rows to a file of lines and load it."""

    def load(*rows, file="rows.jsonl", **options):
        path = tmp_path / file
        path.write_text(jsonl(rows))
        return load_examples(str(path), **options)

    return load


def triplet(said="Is ice cold?", label="yes", **more):
    return {"input_text": said, "label": label, **more}


NLI = "Premise: A dog runs.\nHypothesis: An animal moves."
NLI_ROW = {"premise": "A dog runs.", "hypothesis": "An animal moves."}
CHOICES = ["sky", "sea", "bin", "map", "cup"]
LISTED = "\nAnswer choices:\n(a) sky\n(b) sea\n(c) bin\n(d) map\n(e) cup"
# name: (row, the example, the names of its labels)
ROWS = {
    "triplets": (
        triplet(rationale="Ice is frozen.", answer="Yes", id="7"),
        Example("Is ice cold?", 0, "Ice is frozen.", "Yes", "", "7"),
        ("yes",),
    ),
    "text": (
        {"text": "Ice is cold.", "label": "yes", "rationale": "Ice is frozen.", "id": 7},
        Example("Ice is cold.", 0, "Ice is frozen.", id="7"),
        ("yes",),
    ),
    "esnli": (
        {**NLI_ROW, "label": 2, "explanation_1": "Dogs stay.", "explanation_2": "", "explanation_3": ""},
        Example(NLI, 2, "Dogs stay.", together="A dog runs."),
        ("entailment", "neutral", "contradiction"),
    ),
    "creak": (
        {"ex_id": "dev_3", "sentence": "Soup is dry.", "explanation": "Soup is wet.", "label": "false"},
        Example("Soup is dry.", 0, "Soup is wet.", id="dev_3"),
        ("false", "true"),
    ),
    "cqa": (
        {"id": "q1", "question": "Where do fish live?", "choices": CHOICES, "answer": "sea"},
        Example("Where do fish live?" + LISTED, 1, id="q1"),
        tuple("abcde"),
    ),
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is frozen.", "idx": 4, "label": 1},
        Example("Passage: Ice is frozen.\nQuestion: is ice cold?\nIs the answer Yes or No?", 1, id="4"),
        ("No", "Yes"),
    ),
    "cb": ({**NLI_ROW, "idx": 0, "label": 1}, Example(NLI, 1, id="0"), ("entailment", "contradiction", "neutral")),
    "rte": ({**NLI_ROW, "idx": 0, "label": 1}, Example(NLI, 1, id="0"), ("entailment", "not_entailment")),
    "copa": (
        {"premise": "It rained.", "choice1": "I sang.", "choice2": "I got wet.", "question": "effect", "label": 1},
        Example(
            "Premise: It rained.\nQuestion: What happened as a result?\nChoice 1: I sang.\nChoice 2: I got wet.", 1
        ),
        ("choice1", "choice2"),
    ),
    "multirc": (
        {
            "paragraph": "Tom ate.",
            "question": "Who ate?",
            "answer": "Tom",
            "idx": {"paragraph": 5, "question": 2, "answer": 9},
            "label": 1,
        },
        Example(
            "Passage: Tom ate.\nQuestion: Who ate?\nAnswer: Tom\nIs the answer correct Yes or No?",
            1,
            group="5-2",
            id="5-2-9",
            together="paragraph 5",
        ),
        ("No", "Yes"),
    ),
    "wic": (
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank lends.", "idx": 1, "label": 0},
        Example(
            "Sentence 1: A river bank.\nSentence 2: A bank lends.\n"
            "Is the word 'bank' used in the same sense in both, Yes or No?",
            0,
            id="1",
        ),
        ("No", "Yes"),
    ),
    "wsc": (
        {
            "text": "Tom told Ann that he and he alone ate.",
            "span1_text": "Tom",
            "span2_text": "he",
            "span2_index": 4,
            "idx": 3,
            "label": 1,
        },
        Example("Text: Tom told Ann that *he* and he alone ate.\nDoes *he* mean 'Tom' here, Yes or No?", 1, id="3"),
        ("No", "Yes"),
    ),
}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "columns"])
@pytest.mark.parametrize("asked", ["auto", "by name"])
def test_a_row_of_every_format_becomes_its_example(load, name, asked):
    row, example, labels = ROWS[name]
    # The columns of cb and rte are the same: there the name of the file decides.
    loaded = load(row, file=f"{name}.jsonl", format="auto" if asked == "auto" else name)
    assert loaded.examples == [example]
    assert (loaded.labels, loaded.format) == (labels, name)
    assert (loaded.drops.rows, loaded.drops.kept, loaded.drops.reasons) == (1, 1, {})


def test_columns_that_could_be_two_formats_are_refused_by_name(load):
    with pytest.raises(DualHeadError, match=r"could be cb or rte\. Say which with --format"):
        load({**NLI_ROW, "label": 1})


def test_columns_that_no_format_has_are_named_with_the_remedy(load):
    with pytest.raises(DualHeadError, match=r"columns klass, words.*--columns"):
        load({"words": "x", "klass": 1})


def test_a_text_beside_another_column_that_could_be_input_is_not_guessed_to_be_all(load):
    with pytest.raises(DualHeadError, match=r"columns label, text, title.*--columns"):
        load({"title": "Ice", "text": "It is cold.", "label": "yes"})


# ---- one's own columns ------------------------------------------------------------------------------------


def test_columns_are_mapped_and_a_template_joins_them(load):
    row = {"a": "A dog runs.", "b": "An animal moves.", "why": "Dogs are animals.", "gold": "yes", "n": 12}
    columns = {"label": "gold", "rationale": "why", "id": "n"}
    assert load(row, columns=columns, template="{a} Hence {b}").examples == [
        Example("A dog runs. Hence An animal moves.", 0, "Dogs are animals.", id="12")
    ]
    assert load(row, columns={**columns, "input": ["b", "a"]}).examples[0].input == "An animal moves.\nA dog runs."


def test_an_input_ends_where_its_text_does_however_it_is_written(load):
    rows = {"title": "a", "text": "", "label": "x"}, {"title": "b", "text": " ", "label": "y"}
    columns = {"input": ["title", "text"]}
    assert [example.input for example in load(*rows, columns=columns).examples] == ["a", "b"]
    found = load(*rows, columns=columns, template="{title} {text}\n")
    assert [example.input for example in found.examples] == ["a", "b"]


def test_a_template_writes_the_input_of_a_named_format_too(load):
    loaded = load(ROWS["boolq"][0], template="{question}? {passage}")
    assert loaded.examples == [Example("is ice cold? Ice is frozen.", 1, id="4")]


def test_braces_in_a_text_are_left_alone():
    assert fill("{{x}} {a}", {"a": "{b} {0.__class__}"}) == "{x} {b} {0.__class__}"


@pytest.mark.parametrize("template", ["{a", "no column", "{}", "{a!r}", "{a:>9}", "{a[0]}"])
def test_a_template_that_names_no_columns_is_refused(load, template):
    with pytest.raises(DualHeadError, match="template"):
        load({"a": "x", "label": 0}, columns={"label": "label"}, template=template)


def test_a_column_name_that_columns_does_not_have_gets_the_nearest(load):
    with pytest.raises(DualHeadError, match=r"no 'lable'. Did you mean 'label'"):
        load({"a": "x"}, columns={"input": "a", "lable": "b"})


def test_a_missing_column_drops_the_row_and_says_where(load):
    loaded = load({"a": "x", "y": 0}, {"b": "x", "y": 0}, {"a": "z"}, columns={"input": "a", "label": "y"})
    assert len(loaded.examples) == 1
    assert loaded.drops.reasons == {"missing column 'a'": 1, "missing column 'y'": 1}
    assert loaded.drops.first["missing column 'a'"].endswith("rows.jsonl:2")


# ---- nothing is lost without a word ------------------------------------------------------------------------


def test_every_row_is_kept_or_counted_under_a_reason(load):
    loaded = load(
        triplet(),
        '{"input_text": "cut sho',
        ["a", "list"],
        triplet("  "),
        triplet(["no text"]),
        {"label": "yes"},
        triplet(label=None),
        triplet("Lone \ud800", "yes"),
        triplet("Is fire cold?", "no", rationale=None),
        format="triplets",
    )
    drops = loaded.drops
    assert [example.input for example in loaded.examples] == ["Is ice cold?", "Is fire cold?"]
    assert drops.rows == 9 == drops.kept + drops.reasons.total()
    assert drops.reasons == {
        "malformed line": 1,
        "malformed row": 1,
        "empty input": 1,
        "column 'input_text' is not text": 2,
        "missing column 'input_text'": 1,
        "no label": 1,
    }
    assert drops.first["malformed line"].endswith(":2")


def test_a_json_array_is_read_like_lines(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps([triplet(label=0), triplet("Is fire cold?", 1)], indent=1))
    assert [example.label for example in load_examples(str(file)).examples] == [0, 1]


def test_parquet_is_read_like_lines(tmp_path):
    file = tmp_path / "rows.parquet"
    table = pyarrow.Table.from_pylist([triplet(label=1.0), triplet("Is fire cold?", 0.0)])
    pyarrow.parquet.write_table(table, file)
    loaded = load_examples(str(file))
    assert ([example.label for example in loaded.examples], loaded.labels) == ([1, 0], ("0", "1"))


def test_no_usable_row_is_an_error_with_the_account(load):
    with pytest.raises(DualHeadError, match=r"first row has the columns: input_text, label(.|\n)*1 dropped: no label"):
        load(triplet(label=None))


def test_equal_inputs_are_kept_and_noted(load):
    loaded = load(triplet(), triplet("is  ICE cold?"), triplet(label="no"))
    assert len(loaded.examples) == 3
    assert loaded.drops.notes == {
        "an input that was there before": 2,
        "an input that was there before, with another label": 1,
    }


def test_max_rows_are_the_first(load):
    loaded = load(triplet("a"), triplet("b"), triplet("c"), max_rows=2)
    assert [example.input for example in loaded.examples] == ["a", "b"]


def test_held_out_inputs_that_are_trained_on_are_found_whatever_their_case():
    train = [Example("Is ice cold?"), Example("Is fire hot?")]
    assert overlap(train, [Example("Why?"), Example("is ICE  cold? "), Example("Is fire")]) == [1]


@pytest.mark.parametrize("unreadable", [{"a": 1}, [1, 2], True, "\ud800"])
def test_no_row_is_lost_for_an_id_that_is_no_text(load, unreadable):
    [example] = load({**ROWS["boolq"][0], "idx": unreadable}).examples
    assert (example.input, example.id) == (ROWS["boolq"][1].input, "")


# ---- which rationale ---------------------------------------------------------------------------------------

THREE = {**NLI_ROW, "label": 0, "explanation_1": "one", "explanation_2": "two", "explanation_3": ""}


def rationales(loaded):
    return [example.rationale for example in loaded.examples]


def test_the_first_explanation_is_taken_unless_another_or_all_are_asked_for(load):
    assert rationales(load(THREE)) == ["one"]
    assert rationales(load(THREE, explanation=2)) == ["two"]
    assert rationales(load(THREE, explanation=3)) == [""]
    loaded = load(THREE, explanation="all")
    assert rationales(loaded) == ["one", "two"]
    assert (loaded.drops.rows, loaded.drops.kept, loaded.drops.notes) == (1, 1, {})
    with pytest.raises(DualHeadError, match="from 1, or 'all'"):
        load(THREE, explanation=0)


def test_all_explanations_of_a_row_without_any_are_one_example(load):
    assert rationales(load({**NLI_ROW, "label": 0, "explanation_1": ""}, explanation="all")) == [""]


# ---- labels ------------------------------------------------------------------------------------------------


def labels_of(loaded):
    return [example.label for example in loaded.examples]


def test_names_are_sorted_and_numbers_sorted_by_size(load):
    loaded = load(triplet("a", "red"), triplet("b", "blue"), triplet("c", "red"))
    assert (loaded.labels, labels_of(loaded)) == (("blue", "red"), [1, 0, 1])
    loaded = load(triplet("a", 10), triplet("b", 9), triplet("c", "10"))
    assert (loaded.labels, labels_of(loaded)) == (("9", "10"), [1, 0, 1])


def test_numbers_are_places_in_the_names_that_are_given(load):
    rows = [triplet("a", 1), triplet("b", "blue"), triplet("c", "RED"), triplet("d", 2)]
    loaded = load(*rows, labels=["red", "blue"])
    assert (loaded.labels, labels_of(loaded)) == (("red", "blue"), [1, 1, 0])
    assert loaded.drops.reasons == {"unknown label '2'": 1}


def test_names_that_are_numbers_are_no_places(load):
    loaded = load(triplet("a", 1), triplet("b", 2), triplet("c", 0), labels=["1", "2"])
    assert labels_of(loaded) == [0, 1]
    assert loaded.drops.reasons == {"unknown label '0'": 1}


@pytest.mark.parametrize(
    ("written", "names", "labels", "note"),
    [
        (
            [True, "true", "False", False, "True"],
            ("false", "true"),
            [1, 1, 0, 0, 1],
            "'True', 'true', True are one class",
        ),
        (["Yes", "yes ", "NO", "no", "no"], ("no", "yes"), [1, 1, 0, 0, 0], "'NO', 'no' are one class, 'no'"),
        (["a b", "a  b", "A B", "c"], ("a b", "c"), [0, 0, 0, 1], "are one class, 'a b'"),
        ([0, "0", 1.0, "1.0"], ("0", "1"), [0, 0, 1, 1], "labels '1', '1.0' are one class, '1'"),
        (["0.0", "1.0"], ("0", "1"), [0, 1], None),
        ([0, "yes", 1], ("0", "1", "yes"), [0, 2, 1], "some labels are numbers and some are words: 0, 1, yes"),
        ([True, 1, False], ("1", "false", "true"), [2, 0, 1], "some labels are numbers and some are words"),
        (["a", "b"], ("a", "b"), [0, 1], None),
    ],
)
def test_spellings_of_one_label_are_one_class_and_said(load, written, names, labels, note):
    loaded = load(*(triplet(f"claim {i}", label) for i, label in enumerate(written)))
    assert (loaded.labels, labels_of(loaded)) == (names, labels)
    assert bool(loaded.drops.notes) == (note is not None)
    assert note is None or any(note in said for said in loaded.drops.notes)


def test_names_that_differ_in_case_are_two_classes_where_they_are_given(load):
    loaded = load(triplet("a", "A"), triplet("b", "a"), labels=["a", "A"])
    assert labels_of(loaded) == [1, 0]


def test_spellings_are_one_class_among_several_labels_a_row_too(load):
    loaded = load(triplet("a", ["X", "y"]), triplet("b", ["x"]), triplet("c", ["x"]), multi_label=True)
    assert (loaded.labels, labels_of(loaded)) == (("x", "y"), [(1.0, 1.0), (1.0, 0.0), (1.0, 0.0)])


def test_a_list_of_labels_in_a_table_is_no_class(tmp_path):
    (tmp_path / "a.csv").write_text('input_text,label\na,x\nb,"[0, 1]"\n')
    loaded = load_examples(str(tmp_path / "a.csv"))
    assert (loaded.labels, loaded.drops.reasons) == (("x",), {"labels written as a text, not as a list": 1})


def test_an_input_that_a_chat_template_has_written_is_noted(load):
    (note,) = load(triplet("<|im_start|>user")).drops.notes
    assert "a chat template has written before: it holds <|im_start|>" in note


def test_a_held_out_label_that_training_has_not_is_counted(load):
    train = load(triplet("a", "red"), triplet("b", "blue"))
    held = load(triplet("c", "green"), triplet("d", "blue"), labels=train.labels)
    assert labels_of(held) == [0]
    assert held.drops.reasons == {"unknown label 'green'": 1}


def test_truth_values_and_their_words_are_yes_and_no(load):
    row = ROWS["boolq"][0]
    loaded = load(*({**row, "label": label} for label in (True, False, "true", "FALSE", "yes", 1, "0")))
    assert labels_of(loaded) == [1, 0, 1, 0, 1, 1, 0]


def test_labels_of_a_named_format_are_reordered_left_out_or_renamed(load):
    rows = [{**THREE, "label": label} for label in (0, 1, 2)]
    assert labels_of(load(*rows, labels=["contradiction", "entailment", "neutral"])) == [1, 2, 0]
    two = load(*rows, labels=["contradiction", "entailment"])
    assert labels_of(two) == [1, 0]
    assert two.drops.reasons == {"unknown label '1'": 1}
    renamed = load(*rows, labels=["follows", "maybe", "never"])
    assert (renamed.labels, labels_of(renamed)) == (("follows", "maybe", "never"), [0, 1, 2])
    with pytest.raises(DualHeadError, match=r"no label 'nuetral'. Did you mean 'neutral'"):
        load(*rows, labels=["entailment", "nuetral", "contradiction"])


def test_rows_of_unknown_label_are_kept_where_that_is_asked_for(load):
    rows = [triplet("a", "yes"), triplet("b", -1), triplet("c", None), triplet("d", math.nan), {"input_text": "e"}]
    assert load(*rows).drops.reasons == {"no label": 4}
    assert labels_of(load(*rows, labelled=False)) == [0, None, None, None, None]


@pytest.mark.parametrize("written", [(-1, 0, 1), (-1.0, 0.0, 1.0), ("-1", "0", "1")])
def test_minus_one_is_a_label_where_a_class_is_called_so(load, written):
    rows = [triplet(f"row {i}", label=label) for i, label in enumerate(written)]
    found = load(*rows, labels=["-1", "0", "1"])
    assert [example.label for example in found.examples] == [0, 1, 2]
    assert load(*rows).drops.reasons == {"no label": 1}


def test_minus_one_is_a_name_and_no_place(load):
    found = load(triplet("a", label=1), triplet("b", label=-1), labels=["1", "-1"])
    assert [example.label for example in found.examples] == [0, 1]
    found = load(triplet("a", label=[-1, "up"]), labels=["up", "-1"], multi_label=True)
    assert found.examples[0].label == (1.0, 1.0)
    found = load(triplet("a", label=0), triplet("b", label=-1), labels=["-1", "up"])
    assert found.drops.reasons == {"unknown label '0'": 1}


def test_a_number_between_classes_is_no_label(load):
    loaded = load(triplet("a", 1), triplet("b", 0.4), triplet("c", {"x": 1}))
    assert labels_of(loaded) == [0]
    assert loaded.drops.reasons == {"a label that is not a class: 0.4": 1, "a label that is not a class: {'x': 1}": 1}


def test_shares_are_soft_labels(load):
    loaded = load(
        triplet("a", [0.25, 0.75]),
        triplet("b", [1, 0]),
        triplet("c", [0.5, 0.6]),
        triplet("d", [-0.5, 1.5]),
        triplet("e", [0.2, 0.3, 0.5]),
    )
    assert (loaded.labels, labels_of(loaded)) == (("0", "1"), [(0.25, 0.75), (1.0, 0.0)])
    assert loaded.drops.reasons == {
        "shares that do not sum to 1": 1,
        "shares that are not between 0 and 1": 1,
        "3 shares for 2 labels": 1,
    }


def test_shares_follow_the_names_that_are_given(load):
    row = {**THREE, "label": [0.5, 0.25, 0.25]}
    assert labels_of(load(row, labels=["contradiction", "entailment", "neutral"])) == [(0.25, 0.5, 0.25)]


def test_names_beside_shares_need_an_order(load):
    rows = [triplet("a", "yes"), triplet("b", [0.5, 0.5])]
    with pytest.raises(DualHeadError, match="names and some are shares"):
        load(*rows)
    assert labels_of(load(*rows, labels=["no", "yes"])) == [1, (0.5, 0.5)]


def test_a_row_may_have_several_labels_or_none(load):
    loaded = load(
        triplet("a", ["sad", "wet"]),
        triplet("b", []),
        triplet("c", "wet"),
        triplet("d", [0.0, 1.0, 1.0]),
        multi_label=True,
        labels=["mad", "sad", "wet"],
    )
    assert labels_of(loaded) == [(0.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0)]


def test_several_labels_name_themselves(load):
    loaded = load(triplet("a", ["wet", "sad"]), triplet("b", ["mad"]), multi_label=True)
    assert (loaded.labels, labels_of(loaded)) == (("mad", "sad", "wet"), [(0.0, 1.0, 1.0), (1.0, 0.0, 0.0)])


def test_a_list_of_labels_where_a_row_has_one_says_which_option_reads_it(load):
    reason = "a list of labels, which --problem_type multi_label_classification or --multi_label reads"
    loaded = load(triplet("a", "wet"), triplet("b", "dry"), triplet("c", ["wet", "dry"]), triplet("d", []))
    assert (loaded.labels, loaded.drops.reasons) == (("dry", "wet"), {reason: 2})
    with pytest.raises(DualHeadError, match=f"2 dropped: {reason}"):
        load(triplet("a", ["wet"]), triplet("b", ["wet", "dry"]))


def test_flags_written_as_whole_numbers_are_refused_rather_than_read_as_classes(load):
    loaded = load(triplet("a", [0, 2]), triplet("b", [0, 1, 0]), multi_label=True, labels=["x", "y", "z"])
    assert labels_of(loaded) == [(1.0, 0.0, 1.0)]
    assert loaded.drops.reasons == {"a class twice in a list of labels; flags are written 0.0 and 1.0": 1}


def test_a_label_named_twice_is_refused(load):
    with pytest.raises(DualHeadError, match="named twice"):
        load(triplet(), labels=["yes", "yes"])


# ---- folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def esnli_folder(tmp_path):
    texts = {
        "s1": ["One\u2028line.", "Two."],
        "s2": ["A.", "B."],
        "labels": ["neutral", "entailment"],
        "preproc1_expl_1": ["because", "so"],
        "preproc1_expl_2": ["since", ""],
    }
    for name, lines in texts.items():
        (tmp_path / f"{name}.dev").write_text("\n".join(lines) + ("" if "expl" in name else "\n"))
    return tmp_path


def test_the_files_of_esnli_are_read_side_by_side_and_dev_stands_in_for_train(esnli_folder):
    loaded = load_examples(str(esnli_folder))
    assert loaded.examples == [
        Example("Premise: One\u2028line.\nHypothesis: A.", 1, "because", together="One\u2028line."),
        Example("Premise: Two.\nHypothesis: B.", 0, "so", together="Two."),
    ]
    assert list(loaded.drops.notes) == [f"'{esnli_folder}' has no train split; its dev split is read instead"]
    assert rationales(load_examples(str(esnli_folder), split="validation", explanation=2)) == ["since", ""]
    with pytest.raises(DualHeadError, match=r"no split 'test'\. It has: dev"):
        load_examples(str(esnli_folder), split="test")


def test_files_of_esnli_that_do_not_belong_together_are_refused(esnli_folder):
    (esnli_folder / "labels.dev").write_text("neutral\n")
    with pytest.raises(DualHeadError, match="do not belong together"):
        load_examples(str(esnli_folder))


MADE_UP = "\n\nQ: What else?\nA: So the answer is (a) sky."
CHAINS = [
    "Fish swim. Only the sea is wet. So the answer is (b) sea." + MADE_UP,
    "Maps show roads. So the answer is (a) sky.",
    "I do not know." + MADE_UP,
    "Both hold tea. So the answer is either (e) cup or (b) sea.",
]


@pytest.fixture
def cqa_folder(tmp_path):
    rows = [
        {"id": str(i), "question": f"Q{i}", "choices": CHOICES, "answer": answer, "abstractive_explanation": "Human."}
        for i, answer in enumerate(["sea", "map", "bin", "cup"])
    ]
    (tmp_path / "cqa_train.json").write_text(jsonl(rows))
    folder = tmp_path / "palm"
    folder.mkdir()
    # Ten files: as text, 10 would come before 2.
    for number, said in enumerate([CHAINS[:1], CHAINS[1:2], CHAINS[2:3], *([[]] * 7), CHAINS[3:]]):
        (folder / f"train_CoT_{number}.json").write_text(json.dumps(said))
    return tmp_path


def test_chains_of_thought_are_cut_where_the_teacher_goes_on_and_its_answer_is_split_off(cqa_folder):
    loaded = load_examples(str(cqa_folder))
    assert [(e.label, e.rationale, e.answer) for e in loaded.examples] == [
        (1, "Fish swim. Only the sea is wet.", "(b) sea"),
        (3, "Maps show roads.", "(a) sky"),
        (2, "Human.", "(c) bin"),
        (4, "Both hold tea.", "(e) cup"),
    ]
    assert loaded.drops.notes == {
        "the teacher's answer is another than the label's": 1,
        "no teacher's answer to be read; the human explanation instead": 1,
    }


def test_chains_of_thought_that_do_not_fit_the_rows_are_refused(cqa_folder):
    file = cqa_folder / "palm" / "train_CoT_10.json"
    file.write_text("[]")
    with pytest.raises(DualHeadError, match="4 rows and 3 chains"):
        load_examples(str(cqa_folder))
    (cqa_folder / "palm" / "train_CoT_3.json").unlink()
    with pytest.raises(DualHeadError, match="one is missing"):
        load_examples(str(cqa_folder))


def test_without_chains_of_thought_the_human_explanation_is_the_rationale(load):
    row = {"question": "Q", "choices": CHOICES, "answer": "bin", "abstractive_explanation": "Bins hold."}
    [example] = load(row).examples
    assert (example.rationale, example.answer) == ("Bins hold.", "(c) bin")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "choices": {"label": list("ABCDE"), "text": CHOICES}, "answerKey": "C"},
        {
            "question": {
                "stem": "Q",
                "choices": [{"label": a, "text": b} for a, b in zip("ABCDE", CHOICES, strict=True)],
            },
            "answerKey": "C",
        },
    ],
)
def test_both_layouts_of_the_hub_list_choices_by_letter(load, row):
    loaded = load(row, {**row, "answerKey": "X"}, {**row, "answerKey": ""})
    assert loaded.examples == [Example("Q" + LISTED, 2)]
    assert loaded.drops.reasons == {"the answer is not among the choices": 1, "no label": 1}


def test_a_task_by_name_is_read_from_the_hub(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*where, data_dir, split):
        asked.append((*where, split))
        return [ROWS["boolq"][0]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    by_name = load_examples("boolq", split="validation")
    assert by_name.examples == [ROWS["boolq"][1]]
    assert load_examples("aps/super_glue", format="boolq").examples == by_name.examples
    assert asked == [("aps/super_glue", "boolq", "validation"), ("aps/super_glue", "boolq", "train")]


def test_a_task_on_the_hub_that_became_a_script_is_refused(monkeypatch, tmp_path):
    def load_dataset(*where, data_dir, split):
        raise RuntimeError("Dataset scripts are no longer supported, but found super_glue.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DualHeadError, match="without a script"):
        load_examples("boolq")


MOODS = datasets.ClassLabel(names=["sad", "happy", "calm"])


@pytest.fixture
def moods(monkeypatch, tmp_path):
    """A data set on the hub whose labels are numbers with names, written to disk and read again."""
    columns = {"said": ["a", "b", "c", "d"], "mood": [1, 0, 2, -1], "all": [[1], [0, 2], [], [1]]}
    features = {"said": datasets.Value("string"), "mood": MOODS, "all": datasets.List(MOODS)}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(tmp_path / "moods")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.load_from_disk(tmp_path / "moods"))
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda *_: [])
    monkeypatch.chdir(tmp_path)


def test_numbers_of_a_data_set_on_the_hub_are_the_names_it_has_for_them_in_its_order(moods):
    found = load_examples("me/moods", columns={"input": "said", "label": "mood"})
    assert found.labels == ("sad", "happy", "calm")
    assert [(one.input, one.label) for one in found.examples] == [("a", 1), ("b", 0), ("c", 2)]
    assert found.drops.reasons == {"no label": 1}
    every = load_examples("me/moods", columns={"input": "said", "label": "all"}, multi_label=True)
    assert every.labels == ("sad", "happy", "calm")
    assert [one.label for one in every.examples] == [(0, 1, 0), (1, 0, 1), (0, 0, 0), (0, 1, 0)]


def test_classes_of_the_hub_can_be_put_in_order_left_out_or_named_anew(moods):
    for labels, wanted in (
        (["calm", "happy", "sad"], [1, 2, 0]),
        (["sad", "happy"], [1, 0]),
        (["traurig", "froh", "ruhig"], [1, 0, 2]),
    ):
        found = load_examples("me/moods", columns={"input": "said", "label": "mood"}, labels=labels)
        assert (list(found.labels), [one.label for one in found.examples]) == (labels, wanted)


def test_an_unknown_format_gets_the_nearest(load):
    with pytest.raises(DualHeadError, match="Did you mean 'esnli'"):
        load(triplet(), format="snli")


# ---- the real files ----------------------------------------------------------------------------------------

COUNTS = [
    ("creak", "train", 10176, [5088, 5088], 10176),
    ("creak", "dev", 1371, [680, 691], 1371),
    ("esnli", "train", 9842, [3329, 3235, 3278], 9842),
    ("esnli", "test", 9824, None, 9824),
    ("cqa_palm", "train", 9741, None, 9738),
    ("cqa_palm", "test", 1221, None, 1221),
]


@pytest.mark.parametrize(("name", "split", "rows", "by_label", "by_teacher"), COUNTS)
def test_the_real_files_have_as_many_rows_as_their_sources_say(shared_data, name, split, rows, by_label, by_teacher):
    loaded = load_examples(str(shared_data / "rationales" / name), split=split)
    assert (loaded.drops.rows, loaded.drops.kept, len(loaded.examples)) == (rows, rows, rows)
    assert all(example.rationale for example in loaded.examples)
    fallback = loaded.drops.notes["no teacher's answer to be read; the human explanation instead"]
    assert rows - fallback == by_teacher
    if by_label:
        assert [labels_of(loaded).count(i) for i in range(len(loaded.labels))] == by_label


def test_the_teacher_is_right_as_often_as_the_sources_say(shared_data):
    loaded = load_examples(str(shared_data / "rationales" / "cqa_palm"), split="test")
    right = [f"({loaded.labels[example.label]})" == example.answer[:3] for example in loaded.examples]
    assert sum(right) / len(right) == pytest.approx(0.790, abs=0.005)
