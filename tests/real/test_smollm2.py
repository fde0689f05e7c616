"""What holds on tiny random models holds on a real one: a chat template, tied weights, logits that mean something.

SmolLM2-135M-Instruct as scripts/real_backbone.py writes it, loaded once in each process. What is made of it is small,
so that xdist may hand these tests to whom it likes.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dual_head import AlignedModel, HiddenConfig, PromptContrastConfig, RewardHeadConfig
from dual_head.backbone.checkpoint import guide_folders
from dual_head.backbone.decoder import Backbone
from dual_head.cli import main
from dual_head.demo import PUBLISHED_GUIDES
from dual_head.model.collection import load_collection

pytestmark = pytest.mark.real

DIALOGUES = [
    ("What is the capital of France?", "Paris.", "I do not know."),
    ("What colour is the sky?", "Blue.", "Who cares."),
    ("Name a fruit.", "An apple.", "No."),
    ("How many legs has a cat?", "Four.", "Go away."),
    ("Name a large animal.", "An elephant.", "Why?"),
    ("What is two plus two?", "Four.", "Ask somebody else."),
]
QUESTION = DIALOGUES[0][0]
TEMPLATED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
TEXT = "The capital of France is"
IM_START, IM_END = 1, 2
CLOSE = {"atol": 2e-4, "rtol": 1e-5}  # of logits up to 30, in fp32


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def plain(smollm2):
    """The model as transformers alone loads it: nothing of it is frozen, and nothing is ours."""
    return AutoModelForCausalLM.from_pretrained(smollm2).eval()


@pytest.fixture(scope="module")
def guided(smollm2, tokenizer):
    """A hidden edit and a gated head, their every weight random: both change what is said."""
    guides = {"hidden": HiddenConfig(rank=4), "head": RewardHeadConfig(rank=4, num_heads=2, head_dim=8)}
    model = AlignedModel.from_backbone(smollm2, guides, tokenizer=tokenizer).eval()
    torch.manual_seed(0)
    for parameter in model.guides.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def data(smollm2, tmp_path_factory) -> list[str]:
    """Options of a run on six preference pairs of messages, one short sentence a reply."""
    file = tmp_path_factory.mktemp("real") / "pairs.jsonl"
    with file.open("w") as stream:
        for question, chosen, rejected in DIALOGUES:
            row = {
                "prompt": user_says(question),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            stream.write(json.dumps(row) + "\n")
    return ["--model_name_or_path", smollm2, "--dataset_name", str(file), "--held_out", "0.2"]


def user_says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(*arguments: object) -> None:
    assert main([str(part) for part in arguments]) == 0


def train(method: str, output: Path, *arguments: object, steps: int) -> Path:
    """Train by the command, two pairs a step."""
    sizes = ["--max_steps", steps, "--per_device_train_batch_size", 2, "--learning_rate", 0.01]
    quiet = ["--save_strategy", "no", "--disable_tqdm", True, "--logging_steps", 1]
    run("train", method, "--output_dir", output, *arguments, *sizes, *quiet)
    return output


@pytest.fixture(scope="module")
def guide(data, tmp_path_factory) -> Path:
    """A hidden guide, trained for a few steps from hidden states on disk."""
    folder = tmp_path_factory.mktemp("real")
    run("cache", *data, "--method", "hidden", "--output_dir", folder / "features")
    return train("hidden", folder / "guide", "--feature_cache", folder / "features", "--rank", 8, steps=4)


def test_in_bf16_it_keeps_continuations_of_one_prompt_apart(smollm2):
    """Its first tokens are special and hardly trained, and rounding moves their hidden states by a tenth."""
    lm = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    assert Backbone(lm).why_no_shared_prompts(longest=64) is None


def test_the_tokenizer_is_that_of_the_model(tokenizer, plain):
    """Digits stand alone and spaces keep together before them, as on the hub; transformers' reader of GGUF loses it."""
    assert tokenizer.apply_chat_template(user_says(QUESTION), tokenize=False, add_generation_prompt=True) == TEMPLATED
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (IM_START, IM_END, IM_END)
    assert tokenizer.tokenize("a  12 <|im_end|>") == ["a", "ĠĠ", "1", "2", "Ġ", "<|im_end|>"]
    assert tokenizer(TEMPLATED).input_ids.count(IM_START) == 3
    assert tokenizer.model_max_length == plain.config.max_position_embeddings == 8192
    assert plain.generation_config.eos_token_id == plain.generation_config.pad_token_id == IM_END


@pytest.mark.parametrize(
    ("prompt", "written", "options"),
    [
        pytest.param(QUESTION, TEMPLATED, {}, id="a question, by the chat template"),
        pytest.param(TEXT, TEXT, {"chat_template": False}, id="a text, as it is"),
    ],
)
def test_at_zero_a_prompt_gets_the_reply_that_transformers_alone_gives(
    prompt, written, options, guided, plain, tokenizer
):
    ids = tokenizer(written, return_tensors="pt")
    output = plain.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids.input_ids.shape[1] :]
    reply = tokenizer.decode(output, skip_special_tokens=True)
    assert "Paris" in reply
    options = {**options, "tokenizer": tokenizer, "max_new_tokens": 6}
    assert guided.generate(prompt, alpha=0.0, **options) == reply
    assert guided.generate(prompt, alpha=1.0, **options) != reply


@pytest.mark.parametrize("rows", [1, 2, 3])
@torch.no_grad()
def test_at_zero_logits_are_the_bits_of_the_model_as_transformers_loads_it(guided, plain, tokenizer, rows):
    questions = [question for question, _, _ in DIALOGUES[:rows]]
    batch = tokenizer(questions, return_tensors="pt", padding=True, padding_side="left")
    for keep in (0, 1):
        expected = plain(**batch, logits_to_keep=keep).logits
        assert torch.equal(guided(**batch, alpha=0.0, logits_to_keep=keep).logits, expected)
        assert not torch.equal(guided(**batch, alpha=1.0, logits_to_keep=keep).logits, expected)


def test_a_system_prompt_as_a_guide_gives_the_reply_of_the_request_with_it(smollm2, plain, tokenizer):
    """At alpha 1, z(request) + z(prompt) - z(request); the template's own system turn is in its place."""
    system, question = "Your name is Tom, and you are a cat.", "What is your name?"
    model = AlignedModel.from_backbone(smollm2, {}, tokenizer=tokenizer)
    model.attach("tom", PromptContrastConfig(positive=system, negative=None))
    batch = tokenizer.apply_chat_template(
        [{"role": "system", "content": system}, *user_says(question)],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    output = plain.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1] :]
    reply = tokenizer.decode(output, skip_special_tokens=True)
    assert model.generate(question, max_new_tokens=8) == reply
    assert model.generate(question, alpha=0.0, max_new_tokens=8) != reply


@torch.no_grad()
def test_token_by_token_with_a_cache_logits_are_those_of_one_pass(guided, tokenizer):
    prompt = tokenizer(TEMPLATED, return_tensors="pt")
    ids = torch.cat([prompt.input_ids, torch.tensor([tokenizer("The capital").input_ids])], dim=1)
    whole = guided(input_ids=ids, alpha=1.0).logits
    length = prompt.input_ids.shape[1]
    step = guided(input_ids=ids[:, :length], alpha=1.0, use_cache=True)
    torch.testing.assert_close(step.logits, whole[:, :length], **CLOSE)
    for i in range(length, ids.shape[1]):
        step = guided(input_ids=ids[:, i : i + 1], alpha=1.0, past_key_values=step.past_key_values, use_cache=True)
        torch.testing.assert_close(step.logits, whole[:, i : i + 1], **CLOSE)


def test_a_guide_trained_from_a_cache_is_the_one_trained_beside_the_backbone(guide, data, tmp_path):
    streamed = train("hidden", tmp_path, *data, "--rank", 8, steps=4)
    models = [AlignedModel.from_pretrained(folder) for folder in (guide, streamed)]
    cached, beside = (dict(model.guides.named_parameters()) for model in models)
    assert cached.keys() == beside.keys() != set()
    for name, tensor in cached.items():
        torch.testing.assert_close(tensor, beside[name], atol=1e-4, rtol=1e-3)
    report = json.loads((guide / "report.json").read_text())
    assert report["held_out"]["margin"]["mean"] > 0  # chosen replies gain on rejected ones


def test_a_merged_model_says_what_the_guided_one_says_without_us(guide, tmp_path):
    run("merge", guide, "--alpha", 1, "--output_dir", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    model = AlignedModel.from_pretrained(guide)
    prompt = model.own_tokenizer()(TEMPLATED, return_tensors="pt")
    with torch.no_grad():
        expected = model(**prompt, alpha=1.0).logits
        torch.testing.assert_close(merged(**prompt).logits, expected, atol=5e-4, rtol=1e-4)
        assert (model(**prompt, alpha=0.0).logits - expected).abs().max() > 0.01
    del merged
    shutil.rmtree(tmp_path / "merged")  # 655 MB, and pytest keeps what its last three runs wrote


@pytest.mark.slow
def test_a_reward_model_judges_by_the_ids_it_was_trained_on(guide, data, tokenizer, tmp_path):
    reward = train("reward", tmp_path / "reward", *data, steps=2)
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"messages": user_says(question)}) + "\n" for question, _, _ in DIALOGUES[:2])
    )
    systems = f"base={guide}@0,guided={guide}@1"
    asked = ["--source", tmp_path / "questions.jsonl", "--models", systems, "--max_new_tokens", 12]
    run("eval", "prompts", *asked, "--judge", f"reward:{reward}", "--output_dir", tmp_path / "eval")
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    (pair,) = report["pairs"]
    assert pair["wins"] + pair["ties"] + pair["losses"] == 2
    answer = rows_of(tmp_path / "eval" / "answers" / "base.jsonl")[0]
    assert "Paris" in answer["replies"][0]
    verdicts = rows_of(tmp_path / "eval" / "verdicts" / "verdicts.jsonl")
    classifier = AlignedModel.from_pretrained(reward).guide("reward").tuned
    ids = tokenizer(TEMPLATED + answer["replies"][0] + "<|im_end|>", return_tensors="pt")
    with torch.no_grad():
        scores = classifier.score(classifier.model(**ids).last_hidden_state)[0, -2:, 0].tolist()
    judged = [verdict["value"] for verdict in verdicts]
    # At EOS, where training reads it, although EOS is this tokenizer's padding too; not at the token before.
    assert any(value == pytest.approx(scores[1], abs=1e-4) for value in judged)
    assert not any(value == pytest.approx(scores[0], abs=1e-4) for value in judged)


def test_published_guides_are_of_this_model_and_each_acts_when_it_is_asked_to(smollm2, tokenizer, plain):
    folders = guide_folders(PUBLISHED_GUIDES)
    if not folders:
        pytest.skip(f"no published guides in {PUBLISHED_GUIDES}")
    model = load_collection(folders, smollm2, tokenizer=tokenizer)
    ids = tokenizer(TEMPLATED, return_tensors="pt").input_ids
    with torch.no_grad():
        base = plain(ids).logits
        assert torch.equal(model(ids).logits, base)
        for name in folders:
            assert not torch.allclose(model(ids, alpha={name: 1.0}).logits, base, **CLOSE)


def test_published_guides_are_small_and_have_their_cards_and_their_probes():
    folders = guide_folders(PUBLISHED_GUIDES)
    if not folders:
        pytest.skip(f"no published guides in {PUBLISHED_GUIDES}")
    files = [file for file in PUBLISHED_GUIDES.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2e6
    for name, folder in folders.items():
        assert (Path(folder) / "README.md").read_text().startswith(("#", "---")), name
        assert json.loads((Path(folder) / "config.json").read_text())["backbone_probe"], name
