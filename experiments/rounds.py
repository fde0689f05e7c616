"""Whether a second round on the model's own replies pays: one round and two of equal cost, in the small world.

    python experiments/rounds.py --output_dir rounds --page docs/results/methods.md

One round samples four replies of the backbone to each of 2 N requests. Two rounds sample four to each of N requests
from the backbone, and four from the first round's guide. Both train on about as many pairs, scored by the world's exact
reward, and answer the same new requests. What is done is skipped.
"""

import random
from pathlib import Path
from typing import Any

from evidence_answers import answered, base_of
from evidence_figures import compared, differences, traded
from evidence_script import circumstances, parsed, publish, same_arguments, world_parser
from evidence_tables import markdown, trade_off_table
from evidence_worlds import Demo

from dual_head import AlignedModel, GuideTrainingArguments, method
from dual_head.demo import TOY_BACKBONE, world
from dual_head.rounds import Rounds, Sampling

ALPHAS = (0.25, 0.5, 1.0, 1.5, 2.0)
SMALL = {"requests": 8, "seeds": 1, "prompts": 4, "new_tokens": 8}


def exact(prompt: Any, reply: str) -> float:
    """The world's points of a reply."""
    return world.reward(world.parse_request(f"user : {prompt[-1]['content']} assistant :"), reply).total


def guide(folder: Path, requests: int, rounds: int, seed: int, new_tokens: int) -> Path:
    """The guide of the last of so many rounds on requests of the training side."""
    drawn = list(world.all_requests("train"))
    random.Random(seed).shuffle(drawn)

    def training(place: str) -> GuideTrainingArguments:
        return GuideTrainingArguments(
            output_dir=place, learning_rate=3e-3, num_train_epochs=2, per_device_train_batch_size=8, seed=seed,
            lr_scheduler_type="cosine", save_strategy="no", eval_strategy="no", disable_tqdm=True,
        )  # fmt: skip

    run = Rounds(
        folder=folder, backbone=str(TOY_BACKBONE), prompts=[request.text for request in drawn[:requests]],
        reward=("exact", exact), method=method("hidden").with_options({"beta": 0.5}), training=training,
        sampling=Sampling(max_new_tokens=new_tokens), held_out=0.1, seed=seed,
    )  # fmt: skip
    for done in run.run(rounds):
        print(f"{folder.name}: round {done.number}, {done.pairs} pairs, sampled {done.sampled:.2f}", flush=True)
    return folder / f"round-{rounds}" / "guide"


def main() -> None:
    """Train both, answer, and write the tables."""
    parser = world_parser(__doc__)
    parser.add_argument("--requests", type=int, default=200, help="N")
    args = parsed(parser, SMALL)
    same_arguments(args)
    demo = Demo(folder=args.output_dir)
    asked = demo.asked("test", args.prompts)
    plans = {"one round": (2 * args.requests, 1), "two rounds": (args.requests, 2)}
    rows: dict[str, list] = {name: [] for name in plans}
    base = []
    for seed in range(args.seeds):
        for name, (requests, rounds) in plans.items():
            folder = args.output_dir / f"{name.replace(' ', '-')}-s{seed}"
            place = guide(folder, requests, rounds, seed, args.new_tokens)
            rows[name].append(
                answered(folder / "test.jsonl", demo, asked, ALPHAS, seed=seed,
                         model=lambda place=place: AlignedModel.from_pretrained(str(place)))
            )  # fmt: skip
        base.append(
            answered(
                args.output_dir / f"base-{seed}.jsonl", demo, asked, (0.0,), seed=seed, model=lambda: base_of(demo)
            )
        )
    alphas = [f"{alpha:g}" for alpha in ALPHAS]
    figures = {name: compared(answers, base, alphas) for name, answers in rows.items()}
    at_equal = traded(rows, base)
    table = markdown(
        ["guide", *(f"gain at alpha {alpha} (KL)" for alpha in alphas)],
        [[name, *(f"{at[a]['gain']:+.2f} ({at[a]['kl']:.2f})" for a in alphas)] for name, at in figures.items()],
    )
    more = differences(rows["two rounds"], rows["one round"], base)
    curves = {**at_equal["methods"], "two rounds less one": more}
    blocks = {"rounds": f"{table}\n\n{trade_off_table({**at_equal, 'methods': curves, 'best_of': {}})}"}
    about = circumstances() | {"requests": args.requests, "seeds": args.seeds, "prompts": args.prompts}
    publish(
        args.output_dir,
        {"about": about, "at": figures, "trade_off": at_equal, "difference": more},
        blocks,
        args.page,
        name="rounds",
    )


if __name__ == "__main__":
    main()
