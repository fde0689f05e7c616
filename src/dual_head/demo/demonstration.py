"""Guides trained in a small world, and their effect at each strength: the work of `dual-head demo`."""

import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dual_head.console.terminal import Terminal
from dual_head.demo import TOY_BACKBONE
from dual_head.demo.measure import Point, frontier_point, measure
from dual_head.demo.options import DemoOptions
from dual_head.demo.world import preference_rows, sample_requests
from dual_head.files.places import atomic_folder
from dual_head.methods import Method, method
from dual_head.model.aligned import AlignedModel
from dual_head.model.pretrained import load_tokenizer
from dual_head.options.texts import named_values
from dual_head.train.arguments import GuideTrainingArguments
from dual_head.train.run import RunOptions, train_guide

ALPHAS = {"logits": (0.0, 0.5, 1.0, 1.5, 2.0), "probabilities": (0.0, 0.25, 0.5, 0.75, 1.0)}  # shares end at 1
EXAMPLES = 3  # of each kind of request
HELP, HARM = (0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 1.5)  # the grid of two objectives


def demonstrate(args: DemoOptions) -> None:
    """Train, measure, print and draw; write into a folder that the caller holds."""
    output = Path(args.output_dir)
    console = Terminal(markup=True)
    started = time.perf_counter()
    # Preferences on the fused policy train the gate too, which otherwise learns from imitation alone.
    dual_head = method("dual_head").with_options({"preference_on": "policy", "beta_r": 0.5, **named_values(args.set)})
    _train(dual_head, "overall", output, output / "guide", args)
    model = AlignedModel.from_pretrained(str(output / "guide"))
    tokenizer = load_tokenizer(str(output / "guide"))
    requests = sample_requests(args.prompts, seed=args.seed, split="test")
    alphas = ALPHAS[dual_head.fusion]
    console.print(f"\nSampling a reply to {len(requests)} new requests at each of {len(alphas)} strengths ...")
    points = measure(model, tokenizer, requests, alphas, seed=args.seed)
    console.print(_table(points))
    gain, (low, high) = _at(points, 1.0).gain_over(points[0])
    console.print(
        f"Exact reward at alpha = 1 less that at alpha = 0, same requests: [bold]{gain:+.2f}[/] "
        f"(95% interval {low:+.2f} to {high:+.2f}, {len(requests)} requests)\n"
    )
    console.print(_side_by_side(points, args.seed))
    mixtures = _two_objectives(tokenizer, args, console)
    with atomic_folder(output) as staging:
        has_plot = _draw(points, _traces(model, tokenizer, points), mixtures, staging / "demo.png")
        (staging / "demo.json").write_text(json.dumps(_summary(points, mixtures, args), indent=2))
    picture = output / "demo.png" if has_plot else r"none, matplotlib is missing (pip install 'dual-head\[plot]')"
    console.print(f"Picture: [bold]{picture}[/]   figures: {output / 'demo.json'}")
    console.print(f"Try: dual-head generate {output / 'guide'} --prompt '{requests[0].text}' --alpha 1.5 --trace")
    console.print(f"{time.perf_counter() - started:.0f} seconds in all.")


def _draw(points: Sequence[Point], traces: Any, mixtures: Sequence[Point], file: Path) -> bool:
    """Draw the picture; False if the `plot` extra is missing."""
    try:
        from dual_head.demo.picture import demo_picture
    except ImportError:
        return False
    demo_picture(points, traces, mixtures, file)
    return True


def _train(recipe: Method, objective: str, output: Path, folder: Path, args: DemoOptions) -> None:
    """Train one guide on pairs of one objective."""
    pairs = f"{objective}.jsonl"
    with atomic_folder(output) as staging:
        rows = preference_rows(args.pairs, seed=args.seed, objective=objective)
        (staging / pairs).write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_guide(
        recipe,
        RunOptions(model_name_or_path=str(TOY_BACKBONE), dataset_name=str(output / pairs), held_out=0.1, restart=True),
        GuideTrainingArguments(
            output_dir=str(folder),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            logging_steps=max(1, args.steps // 10),
            train_sampling_strategy="random",  # every text of the world is about as long
            save_strategy="no",
            eval_strategy="no",
            seed=args.seed,
        ),
    )


def two_guides(args: DemoOptions) -> AlignedModel:
    """Train a guide for help and one against harm, attach both to one backbone, and write them to both/."""
    output = Path(args.output_dir)
    tokenizer = load_tokenizer(str(TOY_BACKBONE))
    model = AlignedModel.from_backbone(str(TOY_BACKBONE), {}, tokenizer=tokenizer)
    recipe = method("hidden").with_options({"beta": 0.5, "lambda_kl": 0.0})
    for objective in ("helpful", "harmless"):
        _train(recipe, objective, output, output / objective, args)
        model.attach(objective, output / objective)
    model.save_pretrained(output / "both")
    tokenizer.save_pretrained(output / "both")
    return model


def _two_objectives(tokenizer: Any, args: DemoOptions, console: Console) -> list[Point]:
    """Measure mixtures of two guides."""
    model = two_guides(args)
    alphas = [{"helpful": help_, "harmless": harm} for help_ in HELP for harm in HARM]
    requests = sample_requests(max(1, args.prompts // 3), seed=args.seed + 1, split="test")
    console.print(f"\nSampling a reply to {len(requests)} new requests at {len(alphas)} mixtures of two guides ...")
    points = measure(model, tokenizer, requests, alphas, seed=args.seed)
    table = Table(title="two guides at once: help given (harmless requests) / harm avoided (harmful ones)")
    table.add_column("alpha", justify="right")
    for harm in HARM:
        table.add_column(f"harmless={harm:g}", justify="right")
    for i, help_ in enumerate(HELP):
        row = points[i * len(HARM) : (i + 1) * len(HARM)]
        table.add_row(f"helpful={help_:g}", *("{:+.2f} / {:+.2f}".format(*frontier_point(p)) for p in row))
    console.print(table)
    return points


def _at(points: Sequence[Point], alpha: float) -> Point:
    return next(point for point in points if point.alpha == alpha)


def _table(points: Sequence[Point]) -> Table:
    table = Table(title="exact reward over strength", box=box.SIMPLE_HEAD)
    headings = ("alpha", "reward", "help-\nful", "harm-\nless", "polite", "length", "KL")
    for heading in (*headings, "refuses\nharmful", "refuses\nharmless"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        rewards = [reply.reward for reply in point.replies]
        helpful = [0.0 if reward.harmful else reward.helpful for reward in rewards]
        parts = [[getattr(reward, part) for reward in rewards] for part in ("harmless", "polite", "length")]
        table.add_row(
            f"{point.alpha:g}",
            *(f"{statistics.fmean(values):.2f}" for values in (point.rewards(), helpful, *parts)),
            f"{point.kl():.2f}",
            f"{point.refusals(harmful=True):.0%}",
            f"{point.refusals(harmful=False):.0%}",
        )
    return table


def _side_by_side(points: Sequence[Point], seed: int) -> Table:
    """Some requests with the backbone's reply and the guided one."""
    base, guided = points[0], _at(points, 1.0)
    table = Table(title="replies of the backbone and guided replies (points in brackets)", show_lines=True)
    for column, width in (("request", 24), ("alpha = 0", 42), ("alpha = 1", 42)):
        table.add_column(column, max_width=width)
    rng = random.Random(seed)
    for harmful in (True, False):
        rows = [i for i, reply in enumerate(base.replies) if reply.request.harmful == harmful]
        for i in rng.sample(rows, min(EXAMPLES, len(rows))):
            cells = (f"({p.replies[i].reward.total:+.1f}) {p.replies[i].text}" for p in (base, guided))
            table.add_row(base.replies[i].request.text, *cells)
    return table


def _traces(model: AlignedModel, tokenizer, points: Sequence[Point]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Trace the gate over one reply to a harmful and one to a harmless request."""
    traces = []
    for harmful in (True, False):
        prompt = next(r.request.prompt for r in points[0].replies if r.request.harmful == harmful)
        _, (trace,) = model.generate(
            prompt, tokenizer=tokenizer, alpha=1.0, chat_template=False, max_new_tokens=40, return_trace=True
        )
        tokens = [(tokenizer.decode([token.token_id]), token.gates["dual_head"]) for token in trace]
        traces.append((prompt, tokens))
    return traces


def _summary(points: Sequence[Point], mixtures: Sequence[Point], args: DemoOptions) -> dict[str, Any]:
    gain, interval = _at(points, 1.0).gain_over(points[0])
    return {
        "command": "dual-head demo " + " ".join(_flags(asdict(args))),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "gain_at_1": {"mean": gain, "interval": interval, "requests": len(points[0].replies)},
        "points": [
            {
                "alpha": point.alpha,
                "reward": statistics.fmean(point.rewards()),
                "kl": point.kl(),
                "refuses_harmful": point.refusals(harmful=True),
                "refuses_harmless": point.refusals(harmful=False),
            }
            for point in points
        ],
        "two_objectives": [
            {"alpha": point.alpha, "help": frontier_point(point)[0], "harm_avoided": frontier_point(point)[1]}
            for point in mixtures
        ],
    }


def _flags(args: dict[str, Any]) -> list[str]:
    texts = {name: " ".join(value) if isinstance(value, list) else value for name, value in args.items()}
    return [f"--{name} {text}" for name, text in texts.items() if name != "output_dir" and text != ""]
