"""The reference job: one small Llama with random weights, and preference pairs of two shapes made of random ids.

    python benchmarks/job.py --data DIR    # makes hh_lengths.json again, from HH-RLHF and the Llama-2 tokenizer in DIR

Speed depends on shapes alone, so no text is needed: "full" pairs fill every position (prompt 256, each response 256),
"hh" pairs have the lengths of real ones, from the committed hh_lengths.json. It knows no guide, no peer and no clock.
"""

import argparse
import gzip
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

Kind = Literal["full", "hh"]
Row = dict[str, list[int]]
Triple = tuple[int, int, int]  # tokens of prompt, chosen, rejected

VOCAB, SEQUENCE, PROMPT = 32000, 512, 256
SPECIAL = 3  # ids below are padding, BOS and EOS
PAD = 0
LENGTHS = Path(__file__).parent / "hh_lengths.json"
TRIPLES = 512
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def main() -> None:
    """Write hh_lengths.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="has hh_rlhf/ and lm/llama2_tokenizer/; DUAL_HEAD_DATA where it is not given")
    data = parser.parse_args().data or os.environ.get("DUAL_HEAD_DATA")
    if data is None:
        parser.error("give --data DIR, or set DUAL_HEAD_DATA")
    triples = sampled_lengths(Path(data), TRIPLES, seed=0)
    rows = ",\n".join(f"    {json.dumps(triple)}" for triple in triples)
    about = "tokens of prompt, chosen and rejected in pairs of HH-RLHF's test splits; Llama-2 tokenizer, BOS and EOS in"
    LENGTHS.write_text(f'{{\n  "about": "{about}",\n  "lengths": [\n{rows}\n  ]\n}}\n')
    print(f"{len(triples)} triples in {LENGTHS}")


# ---- models ----------------------------------------------------------------------------------------------


def config(*, vocab_size: int = VOCAB, hidden_size: int = 512, layers: int = 8) -> LlamaConfig:
    """The job's Llama: 8 heads, an MLP of 2.69 times the width, embeddings not tied, no token that ends a reply."""
    made = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=1376 * hidden_size // 512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=1,
    )
    made.eos_token_id = None  # every side generates as many tokens as it is asked for
    return made


def language_model(seed: int = 0, **sizes: int) -> LlamaForCausalLM:
    """A random decoder; sizes: options of `config`."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**sizes)).eval()


def reward_model(seed: int = 1, **sizes: int) -> LlamaForSequenceClassification:
    """A random model of one score per sequence, as large as the language model."""
    torch.manual_seed(seed)
    made = config(**sizes)
    made.num_labels = 1
    return LlamaForSequenceClassification(made).eval()


# ---- pairs -----------------------------------------------------------------------------------------------


def pairs(kind: Kind, count: int, seed: int = 0, *, vocab_size: int = VOCAB, sequence: int = SEQUENCE) -> list[Row]:
    """Make `count` pairs of random ids, {"prompt_ids", "chosen_ids", "rejected_ids"}, no sequence above `sequence`.

    kind: "full", half prompt and half response; "hh", lengths of real pairs, drawn without repetition.
    Errors: unknown kinds, more "hh" pairs than there are lengths.
    """
    draw = random.Random(seed)
    if kind == "full":
        half = sequence // 2
        triples = [(half, sequence - half, sequence - half)] * count
    elif kind == "hh":
        triples = [capped(triple, sequence) for triple in draw.sample(lengths(), count)]
    else:
        raise ValueError(f"There are no pairs of kind '{kind}'. Ask for 'full' or 'hh'.")
    return [
        {name: draw.choices(range(SPECIAL, vocab_size), k=length) for name, length in zip(COLUMNS, triple, strict=True)}
        for triple in triples
    ]


def prompts(batch: int, length: int, seed: int = 0, *, vocab_size: int = VOCAB) -> Tensor:
    """Random prompts of one length, [batch, length]."""
    return torch.randint(SPECIAL, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: Sequence[Row], length: int = SEQUENCE) -> dict[str, Tensor]:
    """The naive batch: every sequence padded on the right to `length`, all chosen first, then all rejected.

    Gives input_ids, attention_mask and response_mask, [2 pairs, length]. Errors: a sequence above `length`.
    """
    sequences = [(row["prompt_ids"], row[side]) for side in COLUMNS[1:] for row in rows]
    input_ids = torch.full((len(sequences), length), PAD)
    attention_mask, response_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for i, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        if end > length:
            raise ValueError(f"A sequence of {end} tokens does not fit in {length}.")
        input_ids[i, :end] = torch.tensor(prompt + response)
        attention_mask[i, :end] = 1
        response_mask[i, len(prompt) : end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "response_mask": response_mask}


# ---- lengths of real pairs -------------------------------------------------------------------------------


def lengths(file: Path = LENGTHS) -> list[Triple]:
    """Read the committed lengths, uncapped."""
    return [(prompt, chosen, rejected) for prompt, chosen, rejected in json.loads(file.read_text())["lengths"]]


def capped(triple: Triple, limit: int) -> Triple:
    """Cut responses to what the prompt leaves, or to half the limit; then the prompt to what the longer one leaves."""
    prompt, chosen, rejected = triple
    room = max(limit // 2, limit - prompt)
    chosen, rejected = min(chosen, room), min(rejected, room)
    return min(prompt, limit - max(chosen, rejected)), chosen, rejected


def sampled_lengths(data: Path, count: int, *, seed: int) -> list[Triple]:
    """Lengths of `count` pairs of HH-RLHF's files under data, every file in proportion to its size."""
    from sentencepiece import SentencePieceProcessor  # only whoever makes the file again needs it

    tokenizer = SentencePieceProcessor(model_file=str(data / "lm" / "llama2_tokenizer" / "tokenizer.model"))
    texts = [text for file in sorted((data / "hh_rlhf").glob("*.jsonl.gz")) for text in _texts(file)]

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text.strip())) + 1  # BOS before a prompt, EOS after a response

    prompt_and_responses = random.Random(seed).sample(texts, count)
    return [(tokens(prompt), tokens(chosen), tokens(rejected)) for prompt, chosen, rejected in prompt_and_responses]


def _texts(file: Path) -> Iterator[tuple[str, str, str]]:
    """Prompt and both last replies of every pair whose conversations differ in nothing else."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            before, turn, chosen = row["chosen"].rpartition("\n\nAssistant:")
            prompt = before + turn
            if turn and row["rejected"].startswith(prompt) and "\n\nHuman:" not in row["rejected"][len(prompt) :]:
                yield prompt, chosen, row["rejected"][len(prompt) :]


if __name__ == "__main__":
    main()
