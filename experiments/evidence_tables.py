"""From figures to tables, written between markers of a page.

It knows the figures of `evidence_figures` as plain values, and no rows.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evidence_figures import QUALITY, WORDS, at_divergence

BLOCK = re.compile(r"<!-- evidence:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /evidence -->", re.DOTALL)
ABLATED_AT = 2.0  # nats at which ablations are compared


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Every table that the summary has figures for, by name."""
    makers = {
        "judge": _judge,
        "search": _search,
        "main": _main,
        "trade_off": lambda summary: trade_off_table(summary["trade_off"]),
        "wins": _wins,
        "quality": _quality,
        "words": _words,
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
    names = [match["name"] for match in BLOCK.finditer(text)]
    if len(names) != text.count("<!-- evidence:") or len(set(names)) < len(names):
        raise ValueError("A marker of evidence is there twice or is not closed. Write <!-- /evidence --> after each.")

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        body = f"\n{blocks[name]}\n\n" if name in blocks else match["body"]
        return f"<!-- evidence:{name} -->\n{body}<!-- /evidence -->"

    return BLOCK.sub(block, text), sorted(set(blocks) - set(names))


def _span(value: float, interval: Sequence[float], form: str = "+.2f") -> str:
    return f"{value:{form}} ({interval[0]:{form}} to {interval[1]:{form}})"


def _judge(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            str(report["pairs"]),
            *(
                f"{share['accuracy']:.3f} ({share['interval'][0]:.3f} to {share['interval'][1]:.3f})"
                for share in report["held_out"].values()
            ),
            f"{report['held_out'][name]['by_length']:.3f}",
        ]
        for name, report in summary["judge"].items()
    ]
    objectives = next(iter(summary["judge"].values()))["held_out"]
    right = [f"right on {name} (95%)" for name in objectives]
    columns = ["judge of", "pairs trained on", *right, "the longer reply is right"]
    weak = [name for name, report in summary["judge"].items() if report["held_out"][name]["interval"][0] <= 0.5]
    warning = f"\n\nNot clearly above chance: {', '.join(weak)}. What is judged so says little." if weak else ""
    return markdown(columns, rows) + warning


def _search(summary: Mapping[str, Any]) -> str:
    def cell(rate: float, reward: float | None) -> str:
        return f"{rate:.2g}: " + ("diverged" if reward is None else f"{reward:+.2f}")

    rows = [
        [name, *(cell(*one) for one in figures["tried"]), f"{figures['rate']:.2g}"]
        for name, figures in summary["search"].items()
    ]
    tried = len(next(iter(summary["search"].values()))["tried"])
    return markdown(["method", *["learning rate: reward"] * tried, "kept"], rows)


def _main(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in summary["main"].items():
        at = figures["at"]
        best = max(at, key=lambda alpha: at[alpha]["gain"])
        rows.append(
            [
                name,
                f"{figures['parameters']:,}",
                f"{figures['seconds']:.0f}",
                f"{figures['forwards']:g}",
                " / ".join(f"{at[alpha]['reward']:+.2f} at {alpha}" for alpha in at),
                _span(at["1"]["gain"], at["1"]["interval"]),
                " / ".join(f"{gain:+.2f}" for gain in at["1"]["by_seed"]),
                f"{at['1']['kl']:.2f}",
                f"{at[best]['gain']:+.2f} at {best}",
            ]
        )
    columns = ["method", "parameters trained", "seconds to train", "forwards per token", "reward at alpha"]
    return markdown([*columns, "gain at alpha = 1 (95%)", "by seed", "KL at 1", "largest gain"], rows)


def trade_off_table(figures: Mapping[str, Any]) -> str:
    """Gains at equal divergences of `traded`, and the best of the backbone's replies."""
    reached = [
        i for i in range(len(figures["divergences"]))
        if any(points[i]["gain"] is not None for points in figures["methods"].values())
    ]  # fmt: skip

    rows = [[name, *(gain_text(points[i]) for i in reached)] for name, points in figures["methods"].items()]
    table = markdown(["gain (95%) at a KL of", *(f"{figures['divergences'][i]:g} nats" for i in reached)], rows)
    best = ", ".join(
        f"of {n} {_span(one['gain'], one['interval'])} at {one['divergence']:.2f} nats at most"
        for n, one in figures["best_of"].items()
    )
    return f"{table}\n\nThe best of the backbone's replies, chosen by the judge itself: {best}." if best else table


def gain_text(point: Mapping[str, Any]) -> str:
    """A gain at one divergence with its interval, where the curve and enough of its draws reach so far."""
    if point["gain"] is None:
        return "not reached"
    return _span(point["gain"], point["interval"]) if point["interval"] else f"{point['gain']:+.2f}"


def _wins(summary: Mapping[str, Any]) -> str:
    rows = [
        [f"{summary['wins']['of']} over {name}", str(rates["wins"]), str(rates["ties"]), str(rates["losses"]),
         f"{100 * rates['rate']:.1f}% ({100 * rates['interval'][0]:.1f} to {100 * rates['interval'][1]:.1f})",
         "" if rates["length_controlled"] is None else f"{100 * rates['length_controlled']:.1f}%"]
        for name, rates in summary["wins"]["over"].items()
    ]  # fmt: skip
    return markdown(["", "wins", "ties", "losses", "win + tie / 2 (95%)", "length-controlled"], rows)


def _quality(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{figures['reward']:+.2f}",
            *(f"{figures[column]:.2f}" for column in QUALITY),
            f"{100 * figures['finished']:.0f}%",
        ]
        for name, figures in summary["quality"].items()
    ]
    return markdown(["system at alpha = 1", "reward", *QUALITY.values(), "ended by itself"], rows)


def _words(summary: Mapping[str, Any]) -> str:
    rows = [
        [name, alpha, *(f"{100 * shares[word]:.0f}%" for word in WORDS)]
        for name, at in summary["words"].items()
        for alpha, shares in at.items()
    ]
    return markdown(["system", "alpha", *WORDS], rows)


def _two(summary: Mapping[str, Any]) -> str:
    rows = [
        [name, _span(figures["hypervolume"], figures["interval"], ".2f"), str(len(figures["frontier"])),
         " ".join(_point(figures["points"][a]) for a in figures["frontier"])]
        for name, figures in summary["two"]["methods"].items()
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
    for label, figures in summary["ablation"].items():
        at, change = figures["at"]["1"], figures["change"]
        of = _span(change["mean"], change["interval"]) if change else ""
        equal = at_divergence(figures["trade_off"], ABLATED_AT)
        row = [label, figures["method"], _span(at["gain"], at["interval"]), f"{at['kl']:.2f}", of, gain_text(equal)]
        rows.append(row)
    columns = ["setting", "method", "gain at alpha = 1 (95%)", "KL at 1", "against the method itself (95%)"]
    columns.append(f"gain at a KL of {ABLATED_AT:g} nats")
    return markdown(columns, rows)


def _transfer(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in summary["transfer"].items():
        at = figures["at"]
        rewards = " / ".join(f"{point['reward']:+.2f}" for point in at.values())
        rows.append([name, rewards, _span(at["1"]["gain"], at["1"]["interval"]), f"{at['1']['kl']:.2f}"])
    alphas = " / ".join(next(iter(summary["transfer"].values()))["at"])
    return markdown(["system", f"reward at alpha {alphas}", "gain at alpha = 1 (95%)", "KL at 1"], rows)


def _costs(summary: Mapping[str, Any]) -> str:
    costs = summary["costs"]
    rows = [
        [
            row["system"],
            str(row["batch_size"]),
            f"{row['added']:,}",
            f"{row['forwards']:g}",
            f"{row['prefill_ms']:.1f}",
            f"{row['decode_ms']:.2f}",
            "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"]),
            f"{row['tokens_per_s']:.0f}",
            f"{row['peak_mib']:.0f}" if row["peak_mib"] is not None else "",
        ]
        for row in costs["rows"]
    ]
    first = costs["rows"][0]
    columns = ["system at alpha = 1", "batch", "parameters beside the backbone", "forwards per token"]
    columns += ["prefill ms", "ms a token", "x the backbone", "tokens/s", "MiB"]
    note = (
        f"{first['new_tokens']} greedy tokens after {first['prompt_tokens']}, {first['rounds']} rounds in turns, "
        f"{costs['threads']} threads; medians, and ratios of the same round with their smallest and largest."
    )
    return f"{markdown(columns, rows)}\n\n{note}"
