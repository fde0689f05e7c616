"""Time of one training step and of one decoded token with a hidden-space edit and with heads as wide as the vocabulary.

    python experiments/guide_step_time.py

A random Llama (hidden 512, 8 layers, V = 32000), 4 pairs of 192 tokens of which 64 are prompt, IAV's objective; and 32
greedy tokens for 4 prompts. The guides take turns for several rounds in one process; ratios are to the full-width head
of the same round.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dual_head import AlignedModel, PairCollator, method
from dual_head.methods import Method
from dual_head.train.step import GuidedLoss

GUIDES: dict[str, Method] = {
    "full-width head (IAV)": method("iav"),
    "full-width head, rank 64": method("iav").with_options({"rank": 64}),
    "hidden-space, rank 64": method("hidden"),
    "reward head and gate (Dual-Head)": method("dual_head"),
}
PROMPT, REPLY, PAIRS, NEW = 64, 128, 4, 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
    )
    lm = LlamaForCausalLM(config)
    lm.generation_config.eos_token_id = None
    models = {label: AlignedModel.from_backbone(lm, chosen.guides()) for label, chosen in GUIDES.items()}
    ids = torch.randint(3, 32000, (PAIRS, PROMPT + 2 * REPLY)).tolist()
    batch = PairCollator(0)(
        [{"prompt_ids": row[:PROMPT], "chosen_ids": row[PROMPT:-REPLY], "rejected_ids": row[-REPLY:]} for row in ids]
    )
    steps = {label: _training_step(models[label], chosen, batch) for label, chosen in GUIDES.items()}
    prompts = torch.tensor(ids)[:, :PROMPT]
    decode = {label: _decoding(model, prompts) for label, model in models.items()}
    result = {
        "command": f"python experiments/guide_step_time.py --rounds {rounds}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "training_step": _rounds(steps, rounds),
        "decoded_token": _rounds(decode, rounds),
        "parameters": {label: sum(x.numel() for x in model.stored().values()) for label, model in models.items()},
    }
    print(json.dumps(result, indent=2))


def _training_step(model: AlignedModel, chosen: Method, batch: dict) -> Callable[[], float]:
    loss = GuidedLoss(model, chosen, guide=chosen.name).train()

    def run() -> float:
        started = time.perf_counter()
        loss(**batch)["loss"].backward()
        seconds = time.perf_counter() - started
        model.guides.zero_grad()
        return seconds

    return run


def _decoding(model: AlignedModel, prompts: torch.Tensor) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        model.generate(prompts, alpha=1.0, do_sample=False, max_new_tokens=NEW)
        return (time.perf_counter() - started) / NEW

    return run


def _rounds(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict]:
    for run in runs.values():
        run()  # the first is never counted
    seconds = [{label: run() for label, run in runs.items()} for _ in range(rounds)]
    first = next(iter(runs))
    out = {}
    for label in runs:
        ratios = [row[label] / row[first] for row in seconds]
        out[label] = {
            "ms": round(1000 * statistics.median(row[label] for row in seconds), 1),
            "ratio": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return out


if __name__ == "__main__":
    main()
