"""A low-rank edit of the hidden state against heads as wide as the vocabulary, on the same pairs, by exact reward.

    python experiments/hidden_vs_full_width.py --output_dir hidden-vs-full

Each kind of guide gets the same small search (learning rate, weight of the KL term), with a seed and requests that are
used for nothing else. The setting with the highest exact reward at alpha = 1 is trained with three seeds, of pairs and
weights, and all answer the same 300 new requests. The objective is IAV's for all of them, with beta = 0.5.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from world_runs import train, write, write_pairs

from dual_head import AlignedModel
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import measure
from dual_head.demo.world import Request, sample_requests
from dual_head.model.pretrained import load_tokenizer
from dual_head.stats import crossed

GUIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "full-width head (IAV)": ("iav", {}),
    "full-width head, rank 16": ("iav", {"rank": 16}),
    "hidden-space, rank 64": ("hidden", {"rank": 64}),
    "hidden-space, rank 16": ("hidden", {"rank": 16}),
}
RATES, KLS, SEEDS = (1e-3, 3e-3), (0.0, 0.1), (0, 1, 2)
SEARCH = 3  # the seed of the search


def main() -> None:
    """Search, repeat, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=300)
    args = parser.parse_args()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    unseen, searched = (sample_requests(args.prompts, seed=seed, split="test") for seed in (SEEDS[0], SEARCH))
    for label, (name, options) in GUIDES.items():
        settings = [(rate, kl) for rate in RATES for kl in KLS]
        search = {setting: _run(name, options, *setting, SEARCH, searched, output, args.steps) for setting in settings}
        best = max(search, key=lambda setting: search[setting]["reward"])
        runs = [_run(name, options, *best, seed, unseen, output, args.steps) for seed in SEEDS]
        results[label] = {
            "best": {"learning_rate": best[0], "lambda_kl": best[1]},
            "search": [{"setting": setting, **_brief(run)} for setting, run in search.items()],
            "runs": [_brief(run) for run in runs],
            "gain": crossed([run["gains"] for run in runs]),
        }
        print(_row(label, results[label]), flush=True)
    command = "python experiments/hidden_vs_full_width.py"
    write(output / "hidden_vs_full_width.json", command, guides=results)


def _run(
    name: str,
    options: dict[str, Any],
    rate: float,
    kl: float,
    seed: int,
    requests: Sequence[Request],
    output: Path,
    steps: int,
) -> dict[str, Any]:
    chosen = {"beta": 0.5, "lambda_l2": 0.0, "lambda_kl": kl, **options}
    trainer = train(
        name,
        str(TOY_BACKBONE),
        write_pairs(output, 4000, seed),
        output / "guide",
        options=chosen,
        rate=rate,
        steps=steps,
        seed=seed,
    )
    seconds = json.loads((output / "guide" / "report.json").read_text())["seconds"]
    model, tokenizer = AlignedModel.from_pretrained(str(output / "guide")), load_tokenizer(str(output / "guide"))
    base, guided = measure(model, tokenizer, requests, (0.0, 1.0), seed=seed)
    gains = [a - b for a, b in zip(guided.rewards(), base.rewards(), strict=True)]
    return {
        "seed": seed,
        "reward": statistics.fmean(guided.rewards()),
        "gains": gains,
        "kl": guided.kl(),
        "seconds": seconds,
        "ms_per_step": 1000 * seconds / trainer.state.global_step,
        "parameters": sum(x.numel() for x in model.stored().values()),
    }


def _brief(run: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in run.items() if key != "gains"}, "gain": statistics.fmean(run["gains"])}


def _row(label: str, result: dict[str, Any]) -> str:
    runs, (gain, (low, high)) = result["runs"], result["gain"]
    by_seed = " / ".join(f"{run['gain']:+.2f}" for run in runs)
    kls = " / ".join(f"{run['kl']:.1f}" for run in runs)
    step = statistics.fmean(run["ms_per_step"] for run in runs)
    best = f"lr {result['best']['learning_rate']:g}, KL {result['best']['lambda_kl']:g}"
    return (
        f"| {label} | {runs[0]['parameters']:,} | {best} | {gain:+.2f} ({low:+.2f} to {high:+.2f}) | {by_seed} | "
        f"{kls} | {step:.0f} |"
    )


if __name__ == "__main__":
    main()
