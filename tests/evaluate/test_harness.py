"""The adapter of lm-evaluation-harness: its own numbers on a plain model, ours at any strength, from local files."""

import json
import math

import pytest
import torch
from files import ASKED, BAD, GOOD, write_backbone, write_guides
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.evaluate.metrics.likelihood import continuation_logps, perplexity

pytest.importorskip("lm_eval", reason="needs pip install 'dual-head[harness]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

from dual_head.evaluate.harness import harness_model, load_harness_model, main, run_harness  # noqa: E402

CHOICES = [
    {"question": f"{ASKED[i]} {ASKED[i + 1]}", "choices": [GOOD[i], BAD[i], GOOD[i + 1]], "gold": i % 3}
    for i in range(6)
]
TEXTS = [{"text": " ".join((ASKED + GOOD)[i : i + 9 * i + 3])} for i in range(4)]
ASKS = [{"question": f"{ASKED[i]} can i {BAD[i]}"} for i in range(3)]
TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "local_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
    "local_reply": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["?"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone whose logits differ by more than rounding, and guides on it."""
    place = tmp_path_factory.mktemp("harness")
    write_backbone(place / "backbone", spread=0.3)
    write_guides(place / "guides", place / "backbone", {"g": RewardHeadConfig(num_heads=2, head_dim=4)}, spread=0.5)
    return place


@pytest.fixture(scope="module")
def guided(place):
    return AlignedModel.from_pretrained(str(place / "guides"))


@pytest.fixture(scope="module")
def tokenizer(place):
    return AutoTokenizer.from_pretrained(place / "backbone")


@pytest.fixture(scope="module")
def plain(place):
    return AutoModelForCausalLM.from_pretrained(place / "backbone").eval()


@pytest.fixture
def tasks(tmp_path, monkeypatch, guided, tokenizer):
    """Three tasks of local files; the replies asked for are what the model says at strength 1, but for one."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    said = guided.generate(
        [row["question"] for row in ASKS], tokenizer=tokenizer, alpha=1.0, temperature=0, max_new_tokens=6
    )
    replies = [{**row, "answer": text.split("?")[0]} for row, text in zip(ASKS, said, strict=True)]
    replies[1]["answer"] = "something else"
    for (name, body), rows in zip(TASKS.items(), (CHOICES, TEXTS, replies), strict=True):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
            f"{body}metadata: {{version: 1.0}}\n"
        )
    return tmp_path


def requests(pairs):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def numbers(results: dict) -> dict[str, float]:
    return {
        f"{task} {name.removesuffix(',none')}": value
        for task, own in results["results"].items()
        for name, value in own.items()
        if name.endswith(",none") and "stderr" not in name
    }


def test_three_tasks_of_local_files_have_the_values_computed_by_hand(tasks, guided, tokenizer):
    options = {"include_path": tasks, "batch_size": 4, "bootstrap_iters": 0}
    found = numbers(run_harness(guided, tokenizer, list(TASKS), alpha=1.0, **options))
    right = 0
    for row in CHOICES:
        pairs = [(row["question"], f" {choice}") for choice in row["choices"]]
        logps = [x.logp for x in continuation_logps(guided, tokenizer, pairs, alpha=1.0)]
        right += logps.index(max(logps)) == row["gold"]
    assert found["local_choice acc"] == pytest.approx(right / len(CHOICES))
    # Each text is one window: <s> is seen first, and the tokenizer's own <s> is a token of the text for the harness.
    logp = words = 0.0
    for row in TEXTS:
        ids = tokenizer(row["text"])["input_ids"]
        with torch.no_grad():
            logps = guided(torch.tensor([[1, *ids]]), alpha=1.0).logits[0].double().log_softmax(-1)
        logp += sum(logps[t, token].item() for t, token in enumerate(ids))
        words += len(row["text"].split())
    assert found["local_text word_perplexity"] == pytest.approx(math.exp(-logp / words), rel=1e-4)
    assert found["local_reply exact_match"] == pytest.approx(2 / 3)


def test_the_harness_own_command_line_runs_guides_at_a_strength(tasks, place, guided, tokenizer, monkeypatch):
    arguments = {"--model": "dual_head", "--model_args": f"pretrained={place / 'guides'},alpha=1.0"}
    arguments |= {"--include_path": tasks, "--batch_size": 4, "--output_path": tasks / "out", "--device": "cpu"}
    line = [str(part) for pair in arguments.items() for part in pair]
    monkeypatch.setattr("sys.argv", ["lm-eval", "run", *line, "--tasks", ",".join(TASKS)])
    main()
    (file,) = (tasks / "out").rglob("results_*.json")
    results = run_harness(guided, tokenizer, list(TASKS), alpha=1.0, include_path=tasks, bootstrap_iters=0)
    assert numbers(json.loads(file.read_text())) == pytest.approx(numbers(results))


def test_the_model_of_a_command_line_has_strengths_by_name_and_is_refused_by_name(place):
    lm = load_harness_model(str(place / "guides"), alpha="g:0.5", batch_size="4")
    assert (lm.alpha, lm.batch_size) == ({"g": 0.5}, 4)
    for arguments, words in (
        ({"pretrained": str(place / "guides"), "strength": 1}, "no argument 'strength'"),
        ({}, "needs a model"),
        ({"pretrained": "nowhere/at/all"}, "There is no system"),
        ({"pretrained": str(place / "guides"), "alpha": "much"}, "could not convert"),
    ):
        with pytest.raises(DualHeadError, match=words):
            load_harness_model(**arguments)


def test_at_strength_zero_all_is_what_the_harness_says_of_the_backbone(tasks, place, guided, tokenizer):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(place / "backbone"), device="cpu", batch_size=4),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    ours = run_harness(guided, tokenizer, list(TASKS), alpha=0.0, include_path=tasks, bootstrap_iters=0)
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-4)


def test_likelihoods_of_a_plain_model_are_those_of_the_harness(place, plain, tokenizer):
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(place / "backbone"), device="cpu", batch_size=3)
    ours = harness_model(plain, tokenizer, batch_size=2)
    long = " ".join(ASKED * 4)  # 80 words in a context of 64
    pairs = [
        ("ask0 ask1", " good1"),
        ("", "good2 good3"),
        ("ask4 ", "bad1 bad2"),
        (long, " good1 bad1"),
        ("a", " time ?"),
    ]
    both = zip(ours.loglikelihood(requests(pairs)), theirs.loglikelihood(requests(pairs)), strict=True)
    for (logp, greedy), (their_logp, their_greedy) in both:
        assert logp == pytest.approx(their_logp, abs=1e-4)
        assert greedy == their_greedy
    texts = [(long,), ("once upon a time",)]
    rolled = ours.loglikelihood_rolling(requests(texts)), theirs.loglikelihood_rolling(requests(texts))
    assert rolled[0] == pytest.approx(rolled[1], abs=1e-4)
    assert rolled[0][0] < -100


def test_generation_of_a_plain_model_is_that_of_the_harness(place, plain, tokenizer):
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(place / "backbone"), device="cpu", batch_size=2)
    options = {"until": ["?"], "max_gen_toks": 8, "do_sample": False}
    asked = requests([(row["question"], options) for row in ASKS])
    replies = harness_model(plain, tokenizer).generate_until(asked)
    assert replies == theirs.generate_until(asked)
    assert all(replies)


def test_a_small_context_is_room_for_prompt_and_reply(plain, guided, tokenizer):
    for model in (plain, guided):
        lm = harness_model(model, tokenizer)
        assert (lm.max_length, lm.max_gen_toks) == (64, 32)
    tokenizer.pad_token, before = None, tokenizer.pad_token
    try:
        harness_model(plain, tokenizer)
        assert tokenizer.pad_token is None  # the caller's own tokenizer is left alone
    finally:
        tokenizer.pad_token = before


def test_fewer_documents_may_be_asked_for(tasks, plain, tokenizer):
    found = run_harness(plain, tokenizer, ["local_text"], include_path=tasks, limit=1, bootstrap_iters=0)
    assert found["n-samples"]["local_text"]["effective"] == 1
    by_hand = perplexity(plain, tokenizer, [f"<s> {TEXTS[0]['text']}"])[0]
    words = len(TEXTS[0]["text"].split())
    assert numbers(found)["local_text word_perplexity"] == pytest.approx(by_hand ** ((words + 1) / words), rel=1e-4)


def test_tasks_that_are_not_there_are_refused(tasks, plain, tokenizer, monkeypatch):
    import lm_eval.tasks

    class Small(lm_eval.tasks.TaskManager):
        def __init__(self, *, include_defaults=True, **places):
            super().__init__(include_defaults=False, **places)  # thousands of files are not read for a test

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Small)
    with pytest.raises(DualHeadError, match="Did you mean 'local_text'"):
        run_harness(plain, tokenizer, ["local_tex"], include_path=tasks)
    with pytest.raises(DualHeadError, match="lm-eval ls tasks"):
        run_harness(plain, tokenizer, ["mmlu_of_tomorrow"], include_path=tasks)
    with pytest.raises(DualHeadError, match="no tasks"):
        run_harness(plain, tokenizer, [])
    with pytest.raises(DualHeadError, match="no folder of tasks"):
        run_harness(plain, tokenizer, ["local_text"], include_path=tasks / "none")


@pytest.mark.parametrize("size", ["auto", "auto:4", "8", 0, -1, 2.0, True, None])
def test_a_batch_size_that_is_no_number_of_rows_is_refused(plain, tokenizer, size):
    with pytest.raises(DualHeadError, match=r"batch_size must be a whole number of at least 1, not .*such as 16"):
        run_harness(plain, tokenizer, ["counting"], batch_size=size)


def test_without_the_harness_the_line_that_brings_it_is_said(plain, tokenizer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DualHeadError, match=r"pip install 'dual-head\[harness\]'"):
        harness_model(plain, tokenizer)
