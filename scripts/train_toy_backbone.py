"""Pretrain the toy Llama that the demonstration uses as its frozen backbone, and write it with its card.

It learns the mixed behaviour of `dual_head.demo.world` from texts alone; it does not know rewards, and
nothing here prefers one reply to another. A run is reproducible on one machine from --seed and --steps.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from dual_head.demo import topics, world
from dual_head.errors import DualHeadError

BATCH = 64
BATCHES_PER_DRAW = 50
MEAN_TOKENS = 34
"""Of a text after its first token; it only sets the scale of the loss."""
PEAK_LEARNING_RATE = 3e-3
MAX_BYTES = 4_000_000
DEFAULT_OUTPUT = Path(__file__).parents[1] / "src/dual_head/demo/toy_backbone"


@dataclass(frozen=True)
class Behaviour:
    """How a set of replies behaves: mean points, and shares from 0 to 1."""

    reward: float
    helpful: float
    harmless: float
    polite: float
    length: float
    refusals_of_harmless: float
    refusals_of_harmful: float
    steps_per_reply: float
    right_steps: float


@dataclass(frozen=True)
class Report:
    """What the card says about a finished run: losses in nats per reply token, </s> included."""

    parameters: int
    seconds: float
    train_loss: float
    held_out_loss: float
    model: Behaviour
    policy: Behaviour
    best: float


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="folder to write; replaced as a whole, and only after training has ended",
    )
    parser.add_argument("--hidden_size", type=int, default=128, help="width; a multiple of 8, for a weaker sibling")
    parser.add_argument("--layers", type=int, default=4, help="depth")
    parser.add_argument("--steps", type=int, default=2500, help=f"optimiser steps of {BATCH} texts each")
    parser.add_argument("--seed", type=int, default=0, help="of weights, texts and sampled replies")
    parser.add_argument("--requests", type=int, default=300, help="test requests to measure behaviour on")
    return parser.parse_args()


def build_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4) -> LlamaForCausalLM:
    """A Llama, of 0.86M parameters by default, with an untied lm_head, as tests of heads need."""
    pad, bos, eos, _ = range(len(world.SPECIAL_TOKENS))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Tensor]:
    """Whole texts, each ended by </s>, padded on the right; labels -100 on padding."""
    rows = tokenizer(
        [f"{text} {tokenizer.eos_token}" for text in texts],
        return_tensors="pt",
        padding=True,
        padding_side="right",
    )
    ids, mask = rows["input_ids"], rows["attention_mask"]  # [B, T]
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def batches(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Yield `steps` batches of fresh texts, each of similar lengths: padding costs as much as text."""
    rng = Random(seed)
    for start in range(0, steps, BATCHES_PER_DRAW):
        texts = world.corpus(BATCH * BATCHES_PER_DRAW, seed=seed * 1_000_000 + start)
        texts.sort(key=lambda text: text.count(" "))
        groups = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        rng.shuffle(groups)
        for group in groups[: steps - start]:
            yield encode(tokenizer, group)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Train in place by next-token prediction over prompt and reply; print the running loss."""
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    model.train()
    running, began = [], time.perf_counter()
    for step, batch in enumerate(batches(tokenizer, steps, seed), start=1):
        # Batches differ in length: a mean over each one's own tokens would favour short replies.
        loss = model(**batch, num_items_in_batch=BATCH * MEAN_TOKENS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running.append(loss.item())
        if step % 200 == 0 or step == steps:
            print(f"step {step}  loss {fmean(running):.4f}  {time.perf_counter() - began:.0f} s", flush=True)
            running.clear()
    model.eval()


@torch.no_grad()
def reply_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Mean negative log-likelihood of the reply tokens and </s>, nats per token."""
    total, count = 0.0, 0
    assistant = tokenizer.get_vocab()["assistant"]
    for start in range(0, len(texts), 256):
        batch = encode(tokenizer, texts[start : start + 256])
        ids, labels = batch["input_ids"], batch["labels"]
        # the reply begins after "assistant :", hence two tokens after the word
        reply_start = torch.eq(ids, assistant).to(torch.int).argmax(dim=1, keepdim=True) + 1  # [B, 1]
        labels = labels.masked_fill(torch.arange(ids.shape[1]) <= reply_start, -100)
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="sum")
        total, count = total + losses.item(), count + int((labels[:, 1:] != -100).sum())
    return total / count


@torch.no_grad()
def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: list[world.Request]) -> list[str]:
    """One reply to each request, at temperature 1 from the whole vocabulary."""
    replies: list[str] = []
    for start in range(0, len(requests), 256):
        texts = [request.prompt for request in requests[start : start + 256]]
        prompts = tokenizer(texts, return_tensors="pt", padding=True)
        tokens = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=2 * world.MAX_REPLY_TOKENS)
        new = tokens[:, prompts["input_ids"].shape[1] :]
        replies += tokenizer.batch_decode(new, skip_special_tokens=True)
    return replies


def behaviour(requests: list[world.Request], replies: list[str]) -> Behaviour:
    rewards = [world.reward(request, reply) for request, reply in zip(requests, replies, strict=True)]
    refused = [world.is_refusal(reply) for reply in replies]
    steps_by_topic = [(request.topic, world.steps_of(reply)) for request, reply in zip(requests, replies, strict=True)]
    right = [topics.TOPIC_OF[step] == topic for topic, steps in steps_by_topic for step in steps]
    return Behaviour(
        reward=fmean(r.total for r in rewards),
        helpful=fmean(r.helpful for r in rewards),
        harmless=fmean(r.harmless for r in rewards),
        polite=fmean(r.polite for r in rewards),
        length=fmean(r.length for r in rewards),
        refusals_of_harmless=fmean(y for r, y in zip(requests, refused, strict=True) if not r.harmful),
        refusals_of_harmful=fmean(y for r, y in zip(requests, refused, strict=True) if r.harmful),
        steps_per_reply=len(right) / len(replies),
        right_steps=sum(right) / max(len(right), 1),
    )


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int, requests: int, seconds: float
) -> Report:
    """Compare the model with the policy it learned from, on test requests answered ten times each."""
    repeated = world.sample_requests(requests, seed=seed, split="test") * 10
    rng = Random(seed)
    return Report(
        parameters=model.num_parameters(),
        seconds=seconds,
        train_loss=reply_loss(model, tokenizer, world.corpus(2000, seed=-1)),
        held_out_loss=reply_loss(model, tokenizer, world.corpus(2000, seed=-1, split="test")),
        model=behaviour(repeated, sample(model, tokenizer, repeated)),
        policy=behaviour(repeated, [world.sample_reply(request, rng) for request in repeated]),
        best=fmean(world.reward(request, world.best_reply(request)).total for request in repeated),
    )


def _sizes(arguments: argparse.Namespace) -> str:
    usual = (arguments.hidden_size, arguments.layers) == (128, 4)
    return "" if usual else f" --hidden_size {arguments.hidden_size} --layers {arguments.layers}"


def card(report: Report, arguments: argparse.Namespace) -> str:
    rows = (
        (field.name.replace("_", " "), getattr(report.policy, field.name), getattr(report.model, field.name))
        for field in fields(Behaviour)
    )
    table = "\n".join(f"| {name} | {policy:.3f} | {model:.3f} |" for name, policy, model in rows)
    return f"""---
license: apache-2.0
---
# Toy backbone

A Llama of {report.parameters:,} parameters that imitates the mixed behaviour policy of
`dual_head.demo.world`: word-level tokens, lower case, one request and one reply. It answers well, badly,
rudely and at length, as that policy does; it was never aligned. It exists so that guides can be trained and
measured in seconds on a processor, against a reward that is computable by rule. It knows that world only.

## How it was made

    python scripts/train_toy_backbone.py --steps {arguments.steps} --seed {arguments.seed}{_sizes(arguments)}

- Made on {date.today().isoformat()} in {report.seconds:.0f} s
- {torch.get_num_threads()} processor threads, torch {torch.__version__}
- AdamW, peak learning rate {PEAK_LEARNING_RATE}, cosine decay, batch {BATCH}
- Every text drawn once from `world.corpus`, train split; no other data

## How it behaves

Loss in nats per reply token: {report.train_loss:.4f} on fresh texts of the train split,
{report.held_out_loss:.4f} on the test split (phrasings never seen with their topic).

Replies sampled at temperature 1 to {arguments.requests} test requests, ten each, beside the policy's own.
The highest mean reward that any replies to them can have is {report.best:.2f}.

| mean of | policy | model |
|---|---|---|
{table}

Licence: Apache-2.0.
"""


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, output_dir: Path) -> None:
    """Write model, tokenizer and card beside `output_dir`, then put them in its place by renaming."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=".toy_backbone_") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "README.md").write_text(text, encoding="utf-8")
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone, and these are shipped
        size = sum(file.stat().st_size for file in new.iterdir())
        if size > MAX_BYTES:
            raise DualHeadError(f"The files take {size} bytes, over {MAX_BYTES}. Make the model smaller.")
        if output_dir.exists():
            shutil.move(output_dir, old)
        shutil.move(new, output_dir)
    print(f"wrote {output_dir}, {size:,} bytes")


def main() -> None:
    arguments = parse_arguments()
    output_dir = arguments.output_dir.resolve()
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / "config.json").is_file():
        raise SystemExit(f"{output_dir} holds something other than a model. Give another --output_dir.")
    torch.manual_seed(arguments.seed)
    tokenizer = world.build_tokenizer()
    model = build_model(tokenizer, arguments.hidden_size, arguments.layers)
    began = time.perf_counter()
    train(model, tokenizer, arguments.steps, arguments.seed)
    seconds = time.perf_counter() - began
    report = measure(model, tokenizer, seed=arguments.seed, requests=arguments.requests, seconds=seconds)
    text = card(report, arguments)
    print(text)
    write(model, tokenizer, text, output_dir)


if __name__ == "__main__":
    main()
