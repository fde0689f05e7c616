"""From answers to figures to tables: paired gains, win rates, quality, frontiers, written between markers of a page.

It knows rows of answers and plain values. It loads no model and generates nothing.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from dual_head.evaluate.compare.frontier import hypervolume, pareto
from dual_head.evaluate.compare.trade_off import best_of_divergence, differences_at, gains_at
from dual_head.evaluate.compare.win_rates import win_rate
from dual_head.stats import crossed, percentiles

RESAMPLES = 2000
BLOCK = re.compile(r"<!-- evidence:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /evidence -->", re.DOTALL)
Row = dict[str, Any]
ABLATED_AT = 2.0  # nats at which ablations are compared
DIVERGENCES = (1.0, 2.0, 5.0, 10.0, 20.0)  # nats a reply at which gains are compared
QUALITY = {"tokens": "tokens", "diversity": "diversity", "kl": "KL", "base_loss": "loss under the backbone"}


# ---- figures --------------------------------------------------------------------------------------------


def table_of(by_seed: Sequence[Sequence[Row]], alpha: str, value: str) -> np.ndarray:
    """One figure of every reply at one strength, [seeds, prompts], prompts in one order for all seeds.

    value: a column of the rows, or the name of a reward. Errors: seeds that answered other prompts.
    """
    own = [{row["id"]: row for row in rows if row["alpha"] == alpha} for rows in by_seed]
    ids = sorted(own[0])
    if not ids or any(sorted(rows) != ids for rows in own):
        raise ValueError(f"The seeds have not all answered the same prompts at alpha {alpha}.")
    return np.array([[rows[i].get(value, rows[i]["rewards"].get(value)) for i in ids] for rows in own], dtype=float)


def compared(own: Sequence[Sequence[Row]], base: Sequence[Sequence[Row]], alphas: Sequence[str]) -> dict[str, Any]:
    """Reward and paired gain over the backbone at each strength, over all seeds and by seed, and what else moved."""
    start = table_of(base, "0", "overall")
    found = {}
    for alpha in alphas:
        table = table_of(own, alpha, "overall")
        gain, interval = crossed(table - start)
        found[alpha] = {
            "reward": float(table.mean()),
            "gain": gain,
            "interval": interval,
            "by_seed": (table - start).mean(1).tolist(),
            **{name: float(table_of(own, alpha, name).mean()) for name in QUALITY},
            "finished": fmean(row["finished"] for rows in own for row in rows if row["alpha"] == alpha),
        }
    return found


def traded(
    rows: Mapping[str, Sequence[Sequence[Row]]],
    base: Sequence[Sequence[Row]],
    samples: Sequence[Sequence[Row]] = (),
) -> dict[str, Any]:
    """Gain of each method at equal divergences from the backbone, and of the best of the backbone's replies.

    Between the strengths that its rows have. best_of: by the exact reward, of `samples`, or else of base; from one reply of each seed, so at most as many as
    there are seeds.
    """
    start = table_of(base, "0", "overall")
    curves = {
        name: [vars(at) for at in gains_at(*_curve(own, start), DIVERGENCES)] for name, own in rows.items()
    }
    best, sampled = {}, table_of(samples, "0", "overall") if samples else start
    for n in range(2, len(sampled) + 1):
        mean, interval = crossed((sampled[:n].max(0) - start.mean(0))[None])
        best[n] = {"divergence": best_of_divergence(n), "gain": mean, "interval": interval}
    return {"divergences": list(DIVERGENCES), "methods": curves, "best_of": best}


def differences(
    first: Sequence[Sequence[Row]],
    second: Sequence[Sequence[Row]],
    base: Sequence[Sequence[Row]],
) -> list[dict[str, Any]]:
    """How much more one system gains than another at equal divergences."""
    start = table_of(base, "0", "overall")
    return [vars(at) for at in differences_at(*(_curve(x, start) for x in (first, second)), DIVERGENCES)]


def strengths_of(rows: Sequence[Sequence[Row]]) -> list[str]:
    """The strengths at which a system answered, from the smallest."""
    return sorted({row["alpha"] for row in rows[0]}, key=float)


def _curve(rows: Sequence[Sequence[Row]], start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divergences and gains over `start`, [strengths, seeds, prompts]."""
    tables = [(table_of(rows, at, "kl"), table_of(rows, at, "overall") - start) for at in strengths_of(rows)]
    return np.stack([kl for kl, _ in tables]), np.stack([gain for _, gain in tables])


@dataclass(frozen=True)
class Preferred:
    """Which of two replies scored higher."""

    question: str
    preference: float
    inconsistent: bool = False  # a score does not depend on the order

    @property
    def result(self) -> str:
        """win, tie or loss."""
        return {1.0: "win", 0.5: "tie", 0.0: "loss"}[self.preference]


def preferred(first: Sequence[Sequence[Row]], second: Sequence[Sequence[Row]], alphas: tuple[str, str]) -> dict:
    """Win rate of one system over another by reward: a win where it is higher, a tie where equal, seed by seed.

    Its interval is `crossed`: seeds and prompts are both resampled.
    """
    outcomes, lengths, table = [], [], []
    for one, other in zip(first, second, strict=True):
        ours = {row["id"]: row for row in one if row["alpha"] == alphas[0]}
        theirs = {row["id"]: row for row in other if row["alpha"] == alphas[1]}
        if ours.keys() != theirs.keys():
            raise ValueError("Two systems have not answered the same prompts.")
        ids = sorted(ours)
        pairs = [(ours[i]["rewards"]["overall"], theirs[i]["rewards"]["overall"]) for i in ids]
        table.append([0.5 + 0.5 * ((a > b) - (a < b)) for a, b in pairs])
        outcomes += [Preferred(i, own) for i, own in zip(ids, table[-1], strict=True)]
        lengths += [(len(ours[i]["reply"]), len(theirs[i]["reply"])) for i in ids]
    found = win_rate(outcomes, lengths=lengths)
    rate, interval = crossed(np.array(table))
    return {
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "rate": rate,
        "interval": interval,
        "length_controlled": found.length_controlled,
    }


def frontiers(rows: Mapping[str, Sequence[Sequence[Row]]], objectives: Sequence[str]) -> dict[str, Any]:
    """Mean of each objective at every set of strengths of each method over its seeds, and the volume they dominate.

    The volume is measured from the worst of all points in each objective, the same for every method; nothing of none.
    gains: of all objectives over the backbone, for each guide at 1 by itself and for all at 1, paired by prompt.
    """
    if not rows:
        return {}
    values: dict[str, np.ndarray] = {}
    alphas: dict[str, list[str]] = {}
    for name, by_seed in rows.items():
        alphas[name] = list(dict.fromkeys(row["alpha"] for row in by_seed[0]))
        values[name] = np.stack(
            [np.stack([table_of(by_seed, alpha, objective) for objective in objectives], -1) for alpha in alphas[name]]
        )  # [points, seeds, prompts, objectives]
    reference = np.min([own.mean((1, 2)).min(0) for own in values.values()], axis=0)
    figures: dict[str, Any] = {"objectives": list(objectives), "reference": reference.tolist(), "methods": {}}
    for name, own in values.items():
        points = own.mean((1, 2))
        figures["methods"][name] = {
            "points": {alpha: point.tolist() for alpha, point in zip(alphas[name], points, strict=True)},
            "frontier": [alphas[name][i] for i in pareto(points)],
            "hypervolume": hypervolume(points, reference),
            "interval": percentiles(np.array([hypervolume(one, reference) for one in _redrawn(own)])),
            "gains": _gains(own, alphas[name], objectives),
        }
    return figures


def _gains(values: np.ndarray, alphas: Sequence[str], objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Paired gains of values [points, seeds, prompts, objectives] over the point where all strengths are 0."""
    at = {tuple(json.loads(alpha)[name] for name in objectives): x for alpha, x in zip(alphas, values, strict=True)}
    start = at.get((0.0,) * len(objectives))
    alone = [tuple(float(i == k) for i in range(len(objectives))) for k in range(len(objectives))]
    gains = []
    for point in [*alone, (1.0,) * len(objectives)]:
        if point in at and start is not None:
            spans = [crossed(at[point][..., k] - start[..., k]) for k in range(len(objectives))]
            gains.append({"alpha": point, "gains": [{"mean": mean, "interval": interval} for mean, interval in spans]})
    return gains


def _redrawn(values: np.ndarray) -> Iterator[np.ndarray]:
    """Means [points, k] of values [points, seeds, prompts, k], seeds and prompts both resampled."""
    rng = np.random.default_rng(0)
    _, seeds, prompts, _ = values.shape
    for _ in range(RESAMPLES):
        own = values[:, rng.integers(0, seeds, seeds)].mean(1)
        yield own[:, rng.integers(0, prompts, prompts)].mean(1)


# ---- tables ---------------------------------------------------------------------------------------------


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Every table that the summary has figures for, by name."""
    makers = {
        "judge": _judge,
        "search": _search,
        "main": _main,
        "trade_off": lambda summary: trade_off_table(summary["trade_off"]),
        "wins": _wins,
        "quality": _quality,
        "two": _two,
        "ablation": _ablation,
        "transfer": _transfer,
        "costs": _costs,
    }
    world = summary["about"]["world"]
    return {f"{world}-{name}": make(summary) for name, make in makers.items() if summary.get(name)}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows))


def replaced(text: str, blocks: Mapping[str, str]) -> tuple[str, list[str]]:
    """Put tables between their markers, `<!-- evidence:NAME -->` and `<!-- /evidence -->`; which had no place.

    Errors: a marker that is not closed, or is there twice.
    """
    names = [found["name"] for found in BLOCK.finditer(text)]
    if len(names) != text.count("<!-- evidence:") or len(set(names)) < len(names):
        raise ValueError("A marker of evidence is there twice or is not closed. Write <!-- /evidence --> after each.")

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        body = f"\n{blocks[name]}\n\n" if name in blocks else found["body"]
        return f"<!-- evidence:{name} -->\n{body}<!-- /evidence -->"

    return BLOCK.sub(block, text), sorted(set(blocks) - set(names))


def _span(value: float, interval: Sequence[float], form: str = "+.2f") -> str:
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


def _judge(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            str(said["pairs"]),
            *(
                f"{own['accuracy']:.3f} ({own['interval'][0]:.3f} to {own['interval'][1]:.3f})"
                for own in said["held_out"].values()
            ),
            f"{said['held_out'][name]['by_length']:.3f}",
        ]
        for name, said in summary["judge"].items()
    ]
    columns = [
        "judge of",
        "pairs trained on",
        "right on overall",
        "on helpful",
        "on harmless",
        "the longer reply is right",
    ]
    weak = [name for name, said in summary["judge"].items() if said["held_out"][name]["interval"][0] <= 0.5]
    warning = f"\n\nNot clearly above chance: {', '.join(weak)}. What is judged so says little." if weak else ""
    return markdown(columns, rows) + warning


def _search(summary: Mapping[str, Any]) -> str:
    def cell(rate: float, reward: float | None) -> str:
        return f"{rate:.2g}: " + ("diverged" if reward is None else f"{reward:+.2f}")

    rows = [
        [name, *(cell(*one) for one in own["tried"]), f"{own['rate']:.2g}"] for name, own in summary["search"].items()
    ]
    tried = len(next(iter(summary["search"].values()))["tried"])
    return markdown(["method", *["learning rate: reward"] * tried, "kept"], rows)


def _main(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, own in summary["main"].items():
        at = own["at"]
        best = max(at, key=lambda alpha: at[alpha]["gain"])
        rows.append(
            [
                name,
                f"{own['parameters']:,}",
                f"{own['forwards']:g}",
                " / ".join(f"{at[alpha]['reward']:+.2f} at {alpha}" for alpha in at),
                _span(at["1"]["gain"], at["1"]["interval"]),
                " / ".join(f"{gain:+.2f}" for gain in at["1"]["by_seed"]),
                f"{at['1']['kl']:.2f}",
                f"{at[best]['gain']:+.2f} at {best}",
            ]
        )
    columns = ["method", "parameters trained", "forwards per token", "reward at alpha"]
    return markdown([*columns, "gain at alpha = 1 (95%)", "by seed", "KL at 1", "largest gain"], rows)


def trade_off_table(figures: Mapping[str, Any]) -> str:
    """Gains at equal divergences of `traded`, and the best of the backbone's replies."""
    reached = [
        i for i in range(len(figures["divergences"]))
        if any(points[i]["gain"] is not None for points in figures["methods"].values())
    ]  # fmt: skip

    rows = [[name, *(_gain_at(points[i]) for i in reached)] for name, points in figures["methods"].items()]
    table = markdown(["gain (95%) at a KL of", *(f"{figures['divergences'][i]:g} nats" for i in reached)], rows)
    best = ", ".join(
        f"of {n} {_span(one['gain'], one['interval'])} at {one['divergence']:.2f} nats at most"
        for n, one in figures["best_of"].items()
    )
    return f"{table}\n\nThe best of the backbone's replies by the exact reward: {best}." if best else table


def _gain_at(point: Mapping[str, Any]) -> str:
    if point["gain"] is None:
        return "not reached"
    return _span(point["gain"], point["interval"]) if point["interval"] else f"{point['gain']:+.2f}"


def _wins(summary: Mapping[str, Any]) -> str:
    rows = [
        [f"{summary['wins']['of']} over {name}", str(own["wins"]), str(own["ties"]), str(own["losses"]),
         f"{100 * own['rate']:.1f}% ({100 * own['interval'][0]:.1f} to {100 * own['interval'][1]:.1f})",
         "" if own["length_controlled"] is None else f"{100 * own['length_controlled']:.1f}%"]
        for name, own in summary["wins"]["over"].items()
    ]  # fmt: skip
    return markdown(["", "wins", "ties", "losses", "win + tie / 2 (95%)", "length-controlled"], rows)


def _quality(summary: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{own['reward']:+.2f}", *(f"{own[column]:.2f}" for column in QUALITY), f"{100 * own['finished']:.0f}%"]
        for name, own in summary["quality"].items()
    ]
    return markdown(["system at alpha = 1", "reward", *QUALITY.values(), "ended by itself"], rows)


def _two(summary: Mapping[str, Any]) -> str:
    rows = [
        [name, _span(own["hypervolume"], own["interval"], ".2f"), str(len(own["frontier"])),
         " ".join(_point(own["points"][a]) for a in own["frontier"])]
        for name, own in summary["two"]["methods"].items()
    ]  # fmt: skip
    note = f"Volume over the worst of all points, {_point(summary['two']['reference'])}."
    columns = [
        "method",
        "hypervolume (95%)",
        "points no other beats",
        f"({', '.join(summary['two']['objectives'])}) at these",
    ]
    text = f"{markdown(columns, rows)}\n\n{note}"
    gains = [
        [name, *(f"{alpha:g}" for alpha in at["alpha"]), *(_span(x["mean"], x["interval"]) for x in at["gains"])]
        for name, figures in summary["two"]["methods"].items()
        for at in figures.get("gains", ())
    ]
    if not gains:
        return text
    names = summary["two"]["objectives"]
    columns = ["method", *(f"alpha of {name}" for name in names), *(f"gain in {name} (95%)" for name in names)]
    return f"{text}\n\n{markdown(columns, gains)}"


def _point(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:+.2f}' for value in values)})"


def _ablation(summary: Mapping[str, Any]) -> str:
    rows = []
    for label, own in summary["ablation"].items():
        at, change = own["at"]["1"], own["change"]
        of = _span(change["mean"], change["interval"]) if change else ""
        equal = next(point for point in own["trade_off"] if point["divergence"] == ABLATED_AT)
        row = [label, own["method"], _span(at["gain"], at["interval"]), f"{at['kl']:.2f}", of, _gain_at(equal)]
        rows.append(row)
    columns = ["setting", "method", "gain at alpha = 1 (95%)", "KL at 1", "against the method itself (95%)"]
    columns.append(f"gain at a KL of {ABLATED_AT:g} nats")
    return markdown(columns, rows)


def _transfer(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, own in summary["transfer"].items():
        at = own["at"]
        rewards = " / ".join(f"{point['reward']:+.2f}" for point in at.values())
        rows.append([name, rewards, _span(at["1"]["gain"], at["1"]["interval"]), f"{at['1']['kl']:.2f}"])
    alphas = " / ".join(next(iter(summary["transfer"].values()))["at"])
    return markdown(["system", f"reward at alpha {alphas}", "gain at alpha = 1 (95%)", "KL at 1"], rows)


def _costs(summary: Mapping[str, Any]) -> str:
    found = summary["costs"]
    rows = [
        [
            own["system"],
            str(own["batch_size"]),
            f"{own['added']:,}",
            f"{own['forwards']:g}",
            f"{own['prefill_ms']:.1f}",
            f"{own['decode_ms']:.2f}",
            "{median:.2f} ({low:.2f} to {high:.2f})".format(**own["ratio"]),
            f"{own['tokens_per_s']:.0f}",
            f"{own['peak_mib']:.0f}" if own["peak_mib"] is not None else "",
        ]
        for own in found["rows"]
    ]
    first = found["rows"][0]
    columns = ["system at alpha = 1", "batch", "parameters beside the backbone", "forwards per token"]
    columns += ["prefill ms", "ms a token", "x the backbone", "tokens/s", "MiB"]
    note = (
        f"{first['new_tokens']} greedy tokens after {first['prompt_tokens']}, {first['rounds']} rounds in turns, "
        f"{found['threads']} threads; medians, and ratios of the same round with their smallest and largest."
    )
    return f"{markdown(columns, rows)}\n\n{note}"
