"""From answers to figures: paired gains, gains at equal divergences, win rates, frontiers.

It knows rows of answers and plain values. It loads no model and generates nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from dual_head.evaluate.compare.frontier import hypervolume, pareto
from dual_head.evaluate.compare.trade_off import best_of_divergence, differences_at, gains_at
from dual_head.evaluate.compare.win_rates import win_rate
from dual_head.replies import RULES
from dual_head.stats import crossed, percentiles

RESAMPLES = 2000
# What words a reply about harm has, which shows what a judge's points stand for.
WORDS = {
    "declined": lambda reply: RULES["refuses"].score("", reply),
    "ends in a question": lambda reply: float(reply.rstrip().endswith("?")),
}
Row = dict[str, Any]
DIVERGENCES = (1.0, 2.0, 5.0, 10.0, 20.0)  # nats a reply at which gains are compared
# What else moved: columns of a row, and their names.
QUALITY = {"tokens": "tokens", "diversity": "diversity", "kl": "KL", "base_loss": "loss under the backbone"}


def table_of(by_seed: Sequence[Sequence[Row]], alpha: str, value: str) -> np.ndarray:
    """One figure of every reply at one strength, [seeds, prompts], prompts in one order for all seeds.

    value: a column of the rows, or the name of a reward. Errors: seeds that answered other prompts.
    """
    by_id = [{row["id"]: row for row in rows if row["alpha"] == alpha} for rows in by_seed]
    ids = sorted(by_id[0])
    if not ids or any(sorted(rows) != ids for rows in by_id):
        raise ValueError(f"The seeds have not all answered the same prompts at alpha {alpha}.")
    return np.array([[rows[i].get(value, rows[i]["rewards"].get(value)) for i in ids] for rows in by_id], dtype=float)


def compared(answers: Sequence[Sequence[Row]], base: Sequence[Sequence[Row]], alphas: Sequence[str]) -> dict[str, Any]:
    """Reward and paired gain over the backbone at each strength, over all seeds and by seed, and what else moved."""
    start = table_of(base, "0", "overall")
    figures = {}
    for alpha in alphas:
        table = table_of(answers, alpha, "overall")
        gain, interval = crossed(table - start)
        figures[alpha] = {
            "reward": float(table.mean()),
            "gain": gain,
            "interval": interval,
            "by_seed": (table - start).mean(1).tolist(),
            **{name: float(table_of(answers, alpha, name).mean()) for name in QUALITY},
            "finished": fmean(row["finished"] for rows in answers for row in rows if row["alpha"] == alpha),
        }
    return figures


def traded(
    rows: Mapping[str, Sequence[Sequence[Row]]],
    base: Sequence[Sequence[Row]],
    samples: Sequence[Sequence[Row]] = (),
) -> dict[str, Any]:
    """Gain of each method at equal divergences from the backbone, and of the best of the backbone's replies.

    Between the strengths that its rows have. best_of: by the exact reward, of `samples`, or else of base; from one
    reply of each seed, so at most as many as there are seeds.
    """
    start = table_of(base, "0", "overall")
    curves = {
        name: [vars(at) for at in gains_at(*_curve(answers, start), DIVERGENCES)] for name, answers in rows.items()
    }
    best, sampled = {}, table_of(samples, "0", "overall") if samples else start
    for n in range(2, len(sampled) + 1):
        mean, interval = crossed((sampled[:n].max(0) - start.mean(0))[None])
        best[n] = {"divergence": best_of_divergence(n), "gain": mean, "interval": interval}
    return {"divergences": list(DIVERGENCES), "methods": curves, "best_of": best}


def at_divergence(points: Sequence[Mapping[str, Any]], nats: float) -> Mapping[str, Any]:
    """The point of a curve of `traded` at one of `DIVERGENCES`."""
    return points[DIVERGENCES.index(nats)]


def differences(
    first: Sequence[Sequence[Row]],
    second: Sequence[Sequence[Row]],
    base: Sequence[Sequence[Row]],
) -> list[dict[str, Any]]:
    """How much more one system gains than another at equal divergences."""
    start = table_of(base, "0", "overall")
    return [vars(at) for at in differences_at(*(_curve(x, start) for x in (first, second)), DIVERGENCES)]


def worded(systems: Mapping[str, Sequence[Sequence[Row]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of each system's replies at each strength that have the words of `WORDS`."""
    return {
        name: {
            alpha: {
                word: fmean(has(row["reply"]) for rows in answers for row in rows if row["alpha"] == alpha)
                for word, has in WORDS.items()
            }
            for alpha in strengths_of(answers)
        }
        for name, answers in systems.items()
    }


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
        first_rows = {row["id"]: row for row in one if row["alpha"] == alphas[0]}
        second_rows = {row["id"]: row for row in other if row["alpha"] == alphas[1]}
        if first_rows.keys() != second_rows.keys():
            raise ValueError("Two systems have not answered the same prompts.")
        ids = sorted(first_rows)
        pairs = [(first_rows[i]["rewards"]["overall"], second_rows[i]["rewards"]["overall"]) for i in ids]
        table.append([0.5 + 0.5 * ((a > b) - (a < b)) for a, b in pairs])
        outcomes += [Preferred(i, preference) for i, preference in zip(ids, table[-1], strict=True)]
        lengths += [(len(first_rows[i]["reply"]), len(second_rows[i]["reply"])) for i in ids]
    rates = win_rate(outcomes, lengths=lengths)
    rate, interval = crossed(np.array(table))
    return {
        "wins": rates.wins,
        "ties": rates.ties,
        "losses": rates.losses,
        "rate": rate,
        "interval": interval,
        "length_controlled": rates.length_controlled,
    }


def frontiers(rows: Mapping[str, Sequence[Sequence[Row]]], objectives: Sequence[str]) -> dict[str, Any]:
    """Mean of each objective at every set of strengths of each method over its seeds, and the volume they dominate.

    The volume is measured from the worst of all points in each objective, the same for every method; nothing of none.
    gains: of all objectives over the backbone, for every set of guides at 1, paired by prompt.
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
    reference = np.min([table.mean((1, 2)).min(0) for table in values.values()], axis=0)
    figures: dict[str, Any] = {"objectives": list(objectives), "reference": reference.tolist(), "methods": {}}
    for name, table in values.items():
        points = table.mean((1, 2))
        figures["methods"][name] = {
            "points": {alpha: point.tolist() for alpha, point in zip(alphas[name], points, strict=True)},
            "frontier": [alphas[name][i] for i in pareto(points)],
            "hypervolume": hypervolume(points, reference),
            "interval": percentiles(np.array([hypervolume(one, reference) for one in _redrawn(table)])),
            "gains": _gains(table, alphas[name], objectives),
        }
    return figures


def _gains(values: np.ndarray, alphas: Sequence[str], objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Paired gains of values [points, seeds, prompts, objectives] over the point where all strengths are 0."""
    at = {tuple(json.loads(alpha)[name] for name in objectives): x for alpha, x in zip(alphas, values, strict=True)}
    start = at.get((0.0,) * len(objectives))
    gains = []
    for point in sorted(product((1.0, 0.0), repeat=len(objectives)), key=sum)[1:]:  # one guide, two, ..., all
        if point in at and start is not None:
            spans = [crossed(at[point][..., k] - start[..., k]) for k in range(len(objectives))]
            gains.append({"alpha": point, "gains": [{"mean": mean, "interval": interval} for mean, interval in spans]})
    return gains


def _redrawn(values: np.ndarray) -> Iterator[np.ndarray]:
    """Means [points, k] of values [points, seeds, prompts, k], seeds and prompts both resampled."""
    rng = np.random.default_rng(0)
    _, seeds, prompts, _ = values.shape
    for _ in range(RESAMPLES):
        drawn = values[:, rng.integers(0, seeds, seeds)].mean(1)
        yield drawn[:, rng.integers(0, prompts, prompts)].mean(1)
