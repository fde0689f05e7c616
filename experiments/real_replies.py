"""Replies of a real chat model to people's prompts, scored by every rule, and the pairs of each objective.

    python experiments/real_replies.py --backbone .venv/real/smollm2 --data DATA --output_dir real

Prompts for training are the openings of HH-RLHF's dialogues, in the part that no test reads; prompts for testing are
AlpacaEval's instructions, and HH-RLHF's harmful openings for refusals. Every prompt asks for one or two sentences, so
that most replies end by themselves: a reply that was cut has no end to learn from. Harmful openings come after turns
that show how to decline, which no pair has: by itself the model hardly does. Replies are appended as they are sampled:
the same command goes on where it was stopped.
"""

import argparse
import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from evidence_data import opening, pairs_of, part_of, write_json, write_rows
from tqdm import tqdm

from dual_head import AlignedModel
from dual_head.data import Cut, Message
from dual_head.errors import DualHeadError
from dual_head.files.lines import add_lines
from dual_head.model.pretrained import load_tokenizer
from dual_head.replies import RULES, best_with_worst
from dual_head.replies.pairs import brief, conversation
from dual_head.replies.sample import sample_replies

LONGEST_PROMPT = 64  # tokens of a training prompt, without the template's own
PROMPTS = {"helpful": 320, "harmless": 120}
COUNT, NEW_TOKENS, TEMPERATURE, TOP_K = 4, 96, 0.9, 50
KINDS = {"refuses": "harmless"}  # whose prompts an objective learns from; helpful for the others
# Turns before prompts of a kind while they are sampled, which no pair has.
EXAMPLES = {
    "harmless": (
        ("How do I steal a car?", "I'm sorry, but I can't help with that. Stealing harms the person who owns the car."),
        ("What do bees eat?", "Bees eat nectar and pollen, which they collect from flowers."),
        ("Write an insult for my sister.", "I'm sorry, but I can't help with that. Insults hurt people."),
    )
}
DEV_SHARE = 0.25  # of the instructions kept for testing


def kind_of(objective: str) -> str:
    """Whose prompts an objective is trained and measured on."""
    return KINDS.get(objective, "helpful")


def examples(kind: str) -> tuple[Message, ...]:
    """The turns before prompts of a kind, where they have some."""
    return tuple(
        {"role": role, "content": text}
        for exchange in EXAMPLES.get(kind, ())
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    )


def openings(data: Path, kind: str, part: str) -> list[str]:
    """What people first said in one part of HH-RLHF's dialogues, each once, in an order of its own."""
    prompts = {opening(pair.prompt) for pair in pairs_of(data, kind) if part_of(pair.prompt) == part}
    texts = sorted(text for text in prompts if text.strip())
    Random(0).shuffle(texts)
    return texts


def instructions(data: Path, part: str) -> list[str]:
    """AlpacaEval's instructions for the search ("dev") or for every table ("test"), each once."""
    file = data / "eval" / "alpaca_eval" / "gpt4_1106_preview_outputs.json.gz"
    if not file.is_file():
        raise DualHeadError(f"There is no file '{file}'. Give the folder that holds hh_rlhf and eval with --data.")
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        texts = sorted({row["instruction"] for row in json.load(stream)})
    shares = {"dev": DEV_SHARE, "test": 1 - DEV_SHARE}
    chosen = [text for text in texts if part_of(text, shares) == part]
    Random(0).shuffle(chosen)
    return chosen


def training_prompts(data: Path, tokenizer: Any, counts: dict[str, int]) -> list[tuple[str, str]]:
    """(kind, text) of the prompts that are sampled from, short ones, the same for the same counts."""
    chosen = []
    for kind, count in counts.items():
        texts = [text for text in openings(data, kind, "train") if len(tokenizer(text).input_ids) <= LONGEST_PROMPT]
        if len(texts) < count:
            raise DualHeadError(f"There are {len(texts)} short prompts of the kind {kind}, and {count} are wanted.")
        chosen += [(kind, brief(text)) for text in texts[:count]]
    return chosen


def sample(
    backbone: str, data: Path, folder: Path, counts: dict[str, int], count: int, new_tokens: int, dtype: str = "auto"
) -> None:
    """Append replies.jsonl, a row to a prompt, until every prompt has its replies."""
    tokenizer: Any = load_tokenizer(backbone)
    prompts, file = training_prompts(data, tokenizer, counts), folder / "replies.jsonl"
    rows = {(row["kind"], row["prompt"]) for row in read(file)}
    done = {i for i, prompt in enumerate(prompts) if prompt in rows}
    if len(done) == len(prompts):
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = AlignedModel.from_backbone(backbone, {}, tokenizer=tokenizer, dtype=dtype)
    conversations = [(*examples(kind), *conversation(text)) for kind, text in prompts]
    replies = sample_replies(
        model, tokenizer, conversations, count=count, max_new_tokens=new_tokens, temperature=TEMPERATURE, top_k=TOP_K,
        done=done,
    )  # fmt: skip
    start = time.perf_counter()
    for i, texts in tqdm(replies, total=len(prompts), initial=len(done), desc="prompts", mininterval=10):
        kind, text = prompts[i]
        now = time.perf_counter()  # replies are sampled many at a time: only the sum of these is a time
        row = {
            "kind": kind, "prompt": text, "replies": texts, "cut": [isinstance(reply, Cut) for reply in texts],
            "seconds": round(now - start, 2),
        }  # fmt: skip
        start = now
        add_lines(file, [json.dumps(row, ensure_ascii=False)], remedy="Choose another --output_dir.")


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of replies, those that were cut as `Cut`."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError):  # the end of the file, or a line that a killed run cut
                row = json.loads(line)
                row["replies"] = [Cut(x) if cut else x for x, cut in zip(row["replies"], row["cut"], strict=True)]
                yield row


def write_pairs(folder: Path, objectives: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Write pairs-OBJECTIVE.jsonl; say how many there are, of how many prompts, and how far apart."""
    about = {}
    for objective in objectives:
        rule, pairs, gaps, prompts = RULES[objective].score, [], [], 0
        for row in read(folder / "replies.jsonl"):
            if row["kind"] != kind_of(objective):
                continue
            prompts += 1
            prompt = conversation(row["prompt"])
            scores = [rule(prompt, reply) for reply in row["replies"]]
            if pair := best_with_worst(prompt, row["replies"], scores):
                pairs.append(pair)
                gaps.append(max(scores) - min(scores))
        Random(0).shuffle(pairs)  # replies come by the length of their prompts, and who reads the first pairs wants any
        write_rows(folder / f"pairs-{objective}.jsonl", pairs)
        about[objective] = {"prompts": prompts, "pairs": len(pairs), "mean_gap": sum(gaps) / max(1, len(gaps))}
    return about


def main() -> None:
    """Sample what is not there, and write the pairs of every rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="a chat model, as scripts/real_backbone.py writes it")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hh_rlhf and eval")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--helpful", type=int, default=PROMPTS["helpful"], help="prompts of that kind")
    parser.add_argument("--harmless", type=int, default=PROMPTS["harmless"])
    parser.add_argument("--count", type=int, default=COUNT, help="replies to a prompt")
    parser.add_argument("--max_new_tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--dtype", default="auto", help="of the model [that of its files]")
    args = parser.parse_args()
    counts = {"helpful": args.helpful, "harmless": args.harmless}
    sample(args.backbone, args.data, args.output_dir, counts, args.count, args.max_new_tokens, args.dtype)
    about = write_pairs(args.output_dir, list(RULES))
    write_json(args.output_dir / "pairs.json", about)
    for objective, figures in about.items():
        print(objective, figures)
    lengths = Counter(cut for row in read(args.output_dir / "replies.jsonl") for cut in row["cut"])
    print(f"{lengths[True]} of {lengths.total()} replies stopped at the limit of tokens.")


if __name__ == "__main__":
    main()
