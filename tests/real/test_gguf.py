"""A merged guide as a GGUF: llama.cpp's converter reads it, and llama.cpp says what `generate` says.

The page docs/how-to/merge.md has these commands, the figures that this prints with -s, and the Modelfile.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from transformers import AutoTokenizer

from dual_head import AlignedModel
from dual_head.cli import main
from dual_head.demo import PUBLISHED_GUIDES

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "merge.md").read_text(encoding="utf-8")
GUIDE = PUBLISHED_GUIDES / "concise"
QUESTIONS = files("dual_head.demo").joinpath("questions.txt").read_text(encoding="utf-8").splitlines()[:12]
TOKENS = 64
MESSAGES = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\nI ask  you. "}],
    [{"role": role, "content": text} for role, text in (("user", "Hello."), ("assistant", "Hello!"), ("user", "Who?"))],
]
# In a process of its own: torch and llama.cpp each bring a runtime of threads.
ASK = """
import json, sys
import xllamacpp as llama
file, exact, questions, tokens = json.load(sys.stdin)
params = llama.CommonParams()
params.model.path = file
params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if exact:
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = llama.Server(params)
request = {"temperature": 0, "max_tokens": tokens, "logprobs": True, "top_logprobs": 1}
replies = [
    server.handle_chat_completions({"messages": [{"role": "user", "content": question}], **request})["choices"][0]
    for question in questions
]
print(json.dumps(replies))
"""


@dataclass(frozen=True)
class Reply:
    """What llama.cpp said: the text, its tokens and their log-probabilities in nats."""

    text: str
    ids: list[int]
    logprobs: list[float]


@pytest.fixture(scope="module")
def convert(smollm2, tmp_path_factory) -> Callable[[str], Path]:
    """Convert the merged guide once to each type of GGUF; skips without llama.cpp's converter, or without xllamacpp."""
    script = Path(os.environ.get("LLAMA_CPP", ROOT / ".venv" / "llama.cpp")) / "convert_hf_to_gguf.py"
    if not script.is_file():
        pytest.skip(f"no {script}; `make converter` fetches it, or set LLAMA_CPP to a folder of llama.cpp's sources")
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("no llama.cpp; pip install 'dual-head[stress]'")
    folder = tmp_path_factory.mktemp("gguf")
    merged = folder / "merged"
    assert main(["merge", str(GUIDE), "--backbone", smollm2, "--alpha", "1", "--output_dir", str(merged)]) == 0

    def to_gguf(outtype: str) -> Path:
        file = folder / f"concise-{outtype}.gguf"
        if not file.exists():
            run([sys.executable, script, merged, "--outfile", file, "--outtype", outtype])
        return file

    return to_gguf


@pytest.fixture(scope="module")
def generated(smollm2, tmp_path_factory) -> Callable[[int], list[str]]:
    """What `dual-head generate --temperature 0` answers at a strength."""
    folder = tmp_path_factory.mktemp("generated")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(QUESTIONS), encoding="utf-8")
    answers: dict[int, list[str]] = {}

    def at(alpha: int) -> list[str]:
        if alpha not in answers:
            output = folder / f"{alpha}.jsonl"
            asked = ["--backbone", smollm2, "--prompts", str(prompts), "--alpha", str(alpha), "--temperature", "0"]
            assert main(["generate", str(GUIDE), *asked, "--max_new_tokens", str(TOKENS), "--output", str(output)]) == 0
            answers[alpha] = [json.loads(line)["output"] for line in output.read_text(encoding="utf-8").splitlines()]
        return answers[alpha]

    return at


@pytest.fixture(scope="module")
def guided(smollm2) -> AlignedModel:
    """The guide beside its backbone, in fp32."""
    return AlignedModel.from_pretrained(GUIDE, backbone=smollm2).eval()


def run(command: list[object], **options: Any) -> str:
    """What a command prints; its own errors where it fails."""
    process = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def ask(file: Path, *, exact: bool) -> list[Reply]:
    """What llama.cpp answers greedily; exact: with an fp32 cache and plain attention, else by its defaults."""
    choices = json.loads(run([sys.executable, "-c", ASK], input=json.dumps([str(file), exact, QUESTIONS, TOKENS])))
    tokens = [choice["logprobs"]["content"] for choice in choices]
    return [
        Reply(choice["message"]["content"], [token["id"] for token in row], [token["logprob"] for token in row])
        for choice, row in zip(choices, tokens, strict=True)
    ]


def largest_difference(replies: list[Reply], guided: AlignedModel, tokenizer) -> float:
    """By how many nats the guided model and llama.cpp differ on a token that llama.cpp chose."""
    differences = []
    for question, reply in zip(QUESTIONS, replies, strict=True):
        message = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            logits = guided(torch.tensor([prompt + reply.ids]), alpha=1.0).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(reply.ids)[:, None])[:, 0]
        differences.append((chosen - torch.tensor(reply.logprobs)).abs().max().item())
    return max(differences)


# The smallest lead of a best token is 0.003 logits: 15 times what fp32 moves a logit, and less than f16 does.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("outtype", "exact", "least", "nats"),
    [("f32", True, 12, 1e-3), ("f32", False, 11, 0.03), ("f16", True, 11, 0.03), ("f16", False, 11, 0.04)],
    ids=["f32-exact", "f32-default", "f16-exact", "f16-default"],
)
def test_llama_cpp_says_what_generate_says(outtype, exact, least, nats, smollm2, convert, generated, guided):
    replies = ask(convert(outtype), exact=exact)
    expected = generated(1)
    equal = sum(reply.text == text for reply, text in zip(replies, expected, strict=True))
    difference = largest_difference(replies, guided, AutoTokenizer.from_pretrained(smollm2))
    settings = "fp32 cache, no flash attention" if exact else "defaults"
    print(f"| {outtype} | {settings} | {equal} of {len(expected)} | {difference:.4f} |")
    assert equal >= least
    assert difference < nats


@pytest.mark.slow
def test_the_words_are_the_guides_and_not_the_backbones(convert, generated):
    replies = ask(convert("f16"), exact=False)
    assert all(reply.text != text for reply, text in zip(replies, generated(0), strict=True))


@pytest.mark.slow
def test_the_python_of_the_page_prints_what_generate_prints(convert, generated):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    file = convert("f32")
    (question,) = [question for question in QUESTIONS if question in block]
    assert f'"{file.name}"' in block
    printed = run([sys.executable, "-c", block], cwd=file.parent)
    assert printed == generated(1)[QUESTIONS.index(question)] + "\n"


@pytest.mark.parametrize("messages", MESSAGES, ids=["question", "system", "turns"])
def test_the_modelfile_of_the_page_writes_what_the_chat_template_writes(messages, smollm2):
    (modelfile,) = re.findall(r"^```\n(FROM .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)
    (system,) = re.findall(r"^SYSTEM (.*)$", modelfile, re.MULTILINE)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert f'PARAMETER stop "{tokenizer.eos_token}"\n' in modelfile
    # Of Go's templates it needs a loop and two fields, which Jinja writes in another way.
    of_jinja = {
        "{{ range .Messages }}": "{% for message in messages %}",
        "{{ .Role }}": "{{ message.role }}",
        "{{ .Content }}": "{{ message.content }}",
        "{{ end }}": "{% endfor %}",
    }
    assert set(re.findall(r"{{.*?}}", template)) == set(of_jinja)
    for go, jinja in of_jinja.items():
        template = template.replace(go, jinja)
    # Ollama puts the line SYSTEM before a conversation that brings no system message.
    asked = messages if messages[0]["role"] == "system" else [{"role": "system", "content": system}, *messages]
    written = jinja2.Template(template, keep_trailing_newline=True).render(messages=asked)
    assert written == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
