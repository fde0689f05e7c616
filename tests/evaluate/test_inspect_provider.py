"""Guided models in Inspect: three tasks of local files, at strengths of the model, of a task and of guides by name."""

import asyncio
import json

import pytest
from files import ASKED, BAD, GOOD, write_backbone, write_guides

from dual_head import AlignedModel, DualHeadError, RewardHeadConfig
from dual_head.guides.linear import LinearConfig

pytest.importorskip("inspect_ai", reason="needs pip install 'dual-head[inspect]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

from inspect_ai import Task, eval  # noqa: E402
from inspect_ai.dataset import MemoryDataset, Sample, json_dataset  # noqa: E402
from inspect_ai.model import ChatMessageUser, ContentImage, GenerateConfig, get_model  # noqa: E402
from inspect_ai.scorer import exact, includes, match  # noqa: E402
from inspect_ai.solver import generate, system_message  # noqa: E402
from inspect_ai.tool import ToolInfo  # noqa: E402

from dual_head.evaluate import inspect_provider  # noqa: E402, F401 - what the entry point does

TOKENS = 6
QUESTIONS = [f"{ASKED[i]} can i {BAD[i]}" for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two guides that change what the backbone says."""
    place = tmp_path_factory.mktemp("inspect")
    backbone = write_backbone(place / "backbone", spread=0.3)
    guides = {"gated": RewardHeadConfig(num_heads=2, head_dim=4), "plain": LinearConfig()}
    write_guides(place / "guides", backbone, guides, spread=0.5, alpha={"plain": 0.5})
    return place / "guides"


@pytest.fixture(scope="module")
def library(folder):
    return AlignedModel.from_pretrained(str(folder))


def reply(library, question, alpha, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return library.generate(messages, alpha=alpha, max_new_tokens=TOKENS, do_sample=False)


def score(log) -> float:
    assert log.status == "success", log.error
    (scores,) = log.results.scores
    return next(scores.metrics[name].value for name in ("accuracy", "mean") if name in scores.metrics)


@pytest.mark.parametrize(
    ("arguments", "alpha"),
    [
        ({}, {"gated": 1.0, "plain": 0.5}),
        ({"alpha": 0}, 0.0),
        ({"alpha": "gated:2+plain:-1"}, {"gated": 2.0, "plain": -1.0}),
    ],
)
def test_three_tasks_of_local_files_have_the_replies_of_the_library(folder, library, tmp_path, arguments, alpha):
    replies = [reply(library, question, alpha) for question in QUESTIONS]
    brief = [reply(library, question, alpha, "be brief") for question in QUESTIONS]
    rows = [{"input": question, "target": text} for question, text in zip(QUESTIONS, replies, strict=True)]
    rows[1]["target"] = "something else"
    file = tmp_path / "exact.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [Sample(input=question, target=text.split()[-1]) for question, text in zip(QUESTIONS, replies, strict=True)]
    systems = [Sample(input=question, target=text) for question, text in zip(QUESTIONS, brief, strict=True)]
    tasks = [
        Task(json_dataset(str(file)), solver=generate(), scorer=exact(), name="whole"),
        Task(MemoryDataset(words), solver=generate(), scorer=includes(), name="word"),
        Task(MemoryDataset(systems), solver=[system_message("be brief"), generate()], scorer=match(), name="system"),
    ]
    logs = eval(
        tasks, model=f"dual_head/{folder}", model_args=arguments, log_dir=str(tmp_path / "logs"), display="none",
        max_tokens=TOKENS, max_tasks=1,
    )  # fmt: skip
    by_name = {log.eval.task: score(log) for log in logs}
    assert by_name == {"whole": 0.75, "word": 1.0, "system": 1.0}


@pytest.fixture
def model(folder):
    model = get_model(f"dual_head/{folder}", memoize=False)
    yield model
    model.api.close()


def test_a_task_may_ask_at_a_strength_of_its_own(model, library):
    texts = {alpha: said(model, QUESTIONS[0], extra_body={"alpha": alpha}).completion for alpha in (0.0, 3.0)}
    assert texts == {alpha: reply(library, QUESTIONS[0], alpha) for alpha in texts}


def test_several_choices_come_with_their_log_probabilities_and_counts(model):
    options = {"num_choices": 3, "temperature": 1.0, "seed": 1, "logprobs": True, "top_logprobs": 2}
    output, again = (said(model, QUESTIONS[0], **options) for _ in range(2))
    assert [choice.message.text for choice in output.choices] == [choice.message.text for choice in again.choices]
    assert len({choice.message.text for choice in output.choices}) > 1
    first = output.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in first)
    assert output.usage.output_tokens == sum(len(choice.logprobs.content) for choice in output.choices)


def test_a_prompt_that_fills_the_context_is_no_error_of_the_evaluation(model):
    output = said(model, " ".join(GOOD * 500))
    assert output.stop_reason == "model_length"


@pytest.mark.parametrize(
    ("config", "words"),
    [({"best_of": 3}, "does not take best_of"), ({"extra_body": {"top": 1}}, "no top"), ({"effort": "low"}, "effort")],
)
def test_what_is_not_supported_is_refused_by_name(model, config, words):
    with pytest.raises(DualHeadError, match=words):
        said(model, "a", **config)


def test_tools_and_images_are_refused(model):
    with pytest.raises(DualHeadError, match="no tools"):
        said(model, "a", tools=[ToolInfo(name="t", description="")])
    with pytest.raises(DualHeadError, match="holds image"):
        said(model, [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])])


def test_a_plain_model_is_inspects_own_matter(folder):
    with pytest.raises(DualHeadError, match="There are no guides"):
        get_model(f"dual_head/{folder.parent / 'backbone'}")


def said(model, asked, *, tools=(), **options):
    """The output of one request."""
    config = GenerateConfig(max_tokens=TOKENS, **options)
    return asyncio.run(model.generate(asked, tools=list(tools), config=config))
