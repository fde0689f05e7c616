"""Weak to strong in the demonstration world: guides trained on a small backbone steer a larger one.

    python scripts/train_toy_backbone.py --output_dir weak --hidden_size 48 --layers 2 --steps 1200
    python experiments/weak_to_strong.py --weak weak --output_dir weak-to-strong

Four ways, all trained on the weak backbone only, against two trained on the strong one:
a head moved with pooled hidden states; the same with its map of hidden states trained on the strong backbone; an
autoregressive reward model (GenARM); and a weak guided model, z_strong + alpha (z_weak_guided - z_weak).
"""

import argparse
from functools import partial
from pathlib import Path

from world_runs import ALPHAS, SETTINGS, gain_of, result, rewards_of, train, write, write_pairs

from dual_head import AlignedModel
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import measure
from dual_head.demo.world import sample_requests
from dual_head.guides.language_model import LanguageModelConfig
from dual_head.model.pretrained import load_tokenizer


def main() -> None:
    """Train on the weak and the strong backbone, move, measure."""
    args = _arguments()
    output, weak, strong = Path(args.output_dir), str(Path(args.weak).resolve()), str(TOY_BACKBONE)
    pairs = write_pairs(output, args.pairs, args.seed)

    def trained(name: str, backbone: str, folder: str, **run: str) -> None:
        options, rate = SETTINGS[name]
        once = partial(train, options=options, rate=rate, steps=args.steps, seed=args.seed)
        once(name, backbone, pairs, output / folder, **run)

    for name in ("iav", "hidden", "genarm"):
        trained(name, weak, f"weak_{name}")
    trained("hidden", strong, "strong_hidden")
    trained("iav", strong, "strong_iav")
    trained("iav", strong, "adapted_iav", move_guides=str(output / "weak_iav"))
    tokenizer = load_tokenizer(strong)
    steered = AlignedModel.from_backbone(strong, {}, tokenizer=tokenizer)
    weak = str((output / "weak_hidden").resolve())
    steered.attach("guided", LanguageModelConfig(model=weak, against="unguided", tune="none"))
    systems = {
        "weak, hidden-space guide": AlignedModel.from_pretrained(output / "weak_hidden"),
        "strong, its own hidden-space guide": AlignedModel.from_pretrained(output / "strong_hidden"),
        "strong, its own head (IAV)": AlignedModel.from_pretrained(output / "strong_iav"),
        "weak head moved, pooled": _moved(output / "weak_iav", strong),
        "weak head moved, trained adapter": AlignedModel.from_pretrained(output / "adapted_iav"),
        "weak GenARM steers strong": _moved(output / "weak_genarm", strong),
        "weak guided model steers strong": steered,
    }
    requests = sample_requests(args.prompts, seed=args.seed, split="test")
    results = {}
    for name, model in systems.items():
        figures = results[name] = result(measure(model, tokenizer, requests, ALPHAS, seed=args.seed))
        print(f"| {name} | {rewards_of(figures)} | {gain_of(figures)} | {figures['kl'][1.0]:.2f} |", flush=True)
    command = f"python experiments/weak_to_strong.py --weak {args.weak} --steps {args.steps} --seed {args.seed}"
    write(output / "weak_to_strong.json", command, requests=len(requests), systems=results)


def _moved(guides: Path, backbone: str) -> AlignedModel:
    return AlignedModel.from_pretrained(guides, backbone=backbone, switch=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", required=True, help="a smaller backbone of the world's tokenizer")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
