"""`dual-head ablate CONFIG`: train variants of a method on the same pairs, and tabulate the differences.

CONFIG is a training config with two more keys: `variants`, from a name to the options that it changes, and `seeds`.
With `evaluate` (a benchmark, a judge and other options of `dual-head eval`), every variant also answers questions
beside the first one. A finished run is not trained again, a stopped one goes on.
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from dual_head.console.secrets import is_secret, masked_values
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive
from dual_head.files.reading import read_json, reading
from dual_head.options import Options, option
from dual_head.options.config_file import read_options, require_no_code
from dual_head.options.flags import OptionParser, before_parsing

OWN = ("variants", "seeds", "evaluate")
RUNS = "runs"
TABLE = "ablation.json"
PAGE = "ablation.md"
FIRST = ("accuracy", "accuracy_over_base", "preference", "next_token", "kl")  # columns, where there are such figures
REPORT = "report.json"
AGAIN = "Delete the folder of the run, and run the same command again."


@dataclass(kw_only=True)
class AblationOptions(Options):
    """Which variants, and where to."""

    plan: str = option(
        help="YAML with method, variants, seeds and the options of training", positional=True, metavar="CONFIG"
    )
    output_dir: str = option(help="folder for runs, ablation.json and ablation.md")


build_parser = partial(
    OptionParser,
    AblationOptions,
    command="ablate",
    description=__doc__,
    epilog="Every other option is handed to 'dual-head train' for all variants, such as --model_name_or_path, "
    "--dataset_name or --max_steps.",
)


def run(arguments: Sequence[str]) -> int:
    """Parse, and ablate into a folder that is held."""
    config = before_parsing(arguments).config
    args, flags = build_parser().parse_known_args([config, *arguments] if config else list(arguments))
    plan = read_plan(Path(args.plan), allow_code=args.allow_code)
    with exclusive(args.output_dir):
        return _ablate(args, flags, plan)


def _ablate(args: Any, flags: Sequence[str], plan: Mapping[str, Any]) -> int:
    """Train each variant with each seed, evaluate, tabulate."""
    output, console = Path(args.output_dir), Terminal()
    # Imported late: a mistyped config should not wait for torch.
    from dual_head.cli import eval as evaluation
    from dual_head.cli import train

    if plan["evaluate"] and not args.allow_code:
        # As it will be read: a value may hold a flag.
        said = evaluation_arguments(plan["evaluate"], dict.fromkeys(plan["variants"], output))
        parsed = evaluation.build_parser().namespace([*said, "--output_dir", str(output)])
        require_no_code(vars(parsed), Path(args.plan))
    runs: dict[str, dict[int, Path]] = {name: {} for name in plan["variants"]}
    for number, (name, seed) in enumerate([(name, seed) for name in runs for seed in plan["seeds"]], 1):
        folder = output / RUNS / f"{slug(name)}-seed{seed}"
        console.rule(f"{name}, seed {seed} ({number} of {len(runs) * len(plan['seeds'])})")
        options = variant(plan, name)
        secrets = [part for key in filter(is_secret, options) for part in (f"--{key}", str(options[key]))]
        options = {key: value for key, value in options.items() if not is_secret(key)}
        config = _write_config(folder.with_suffix(".yaml"), options)
        # Whatever is said on the command line is for every variant, and stronger than the file.
        said = ["--config", str(config), "--output_dir", str(folder), "--seed", str(seed), *secrets, *flags]
        said += ["--allow_code"] if args.allow_code else []
        if code := train.run([plan["method"], *said]):
            return code
        runs[name][seed] = folder
    with reading(f"The reports in '{output / RUNS}' cannot be compared", AGAIN):
        rows = [_row(name, folders) for name, folders in runs.items()]
    if plan["evaluate"]:
        for seed in plan["seeds"]:
            said = evaluation_arguments(plan["evaluate"], {name: runs[name][seed] for name in runs})
            if code := evaluation.run([*said, "--output_dir", str(output / f"evaluation-seed{seed}")]):
                return code
        _add_win_rates(rows, [output / f"evaluation-seed{seed}" for seed in plan["seeds"]])
    _write(output, plan, rows)
    _print(console, output, rows)
    return 0


# ---- the plan ----------------------------------------------------------------------------------------------


def read_plan(file: Path, *, allow_code: bool = False) -> dict[str, Any]:
    """Read CONFIG: {"method", "variants": {name: options}, "seeds", "evaluate", "shared": all other options}.

    Errors: an unreadable file, no method, no variants, a variant that is no mapping, two of the same folder, code that
    is named without `allow_code`.
    """
    values = read_options(file, allow_code=allow_code)
    if not isinstance(values.get("variants"), dict):
        near = get_close_matches("variants", map(str, values), n=1)
        typed = f" It has '{near[0]}': is that what you meant?" if near and near[0] != "variants" else ""
        raise DualHeadError(f"'{file}' has no 'variants': a mapping from a name to the options it changes.{typed}")
    if "method" not in values:
        raise DualHeadError(f"'{file}' does not say which method. Add 'method: dual_head', or another.")
    variants = {str(name): changes or {} for name, changes in values["variants"].items()}
    wrong = [name for name, changes in variants.items() if not isinstance(changes, dict)]
    if wrong:
        raise DualHeadError(f"The variant '{wrong[0]}' in '{file}' must be a mapping of options; {{}} changes nothing.")
    if not variants or len({slug(name) for name in variants}) < len(variants):
        raise DualHeadError(f"The variants in '{file}' need names that differ in more than case and punctuation.")
    seeds, evaluate = values.get("seeds", [0]), values.get("evaluate") or {}
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise DualHeadError(f"'seeds' in '{file}' is a list of whole numbers, such as [0, 1, 2], not {seeds!r}.")
    if not isinstance(evaluate, dict) or (evaluate and not {"benchmark", "judge"} <= evaluate.keys()):
        raise DualHeadError(f"'evaluate' in '{file}' is a mapping with at least 'benchmark' and 'judge'.")
    shared = {key: value for key, value in values.items() if key not in (*OWN, "method")}
    return {
        "method": values["method"],
        "variants": variants,
        "seeds": seeds,
        "evaluate": evaluate,
        "shared": shared,
    }


def variant(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The training config of one variant: the shared one, with sections merged and all else replaced."""
    config = {"method": plan["method"], **plan["shared"]}
    for key, value in plan["variants"][name].items():
        old = config.get(key)
        config[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return config


def slug(name: str) -> str:
    """A name as a folder: lower case, digits, points and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "variant"


def evaluation_arguments(evaluate: Mapping[str, Any], folders: Mapping[str, Path]) -> list[str]:
    """Arguments of `dual-head eval` that compare every variant with the first; a list repeats its flag."""
    options = {key: value for key, value in evaluate.items() if key != "benchmark"}
    said = [str(evaluate["benchmark"])]
    for name, folder in folders.items():
        said += ["--models", f"{slug(name)}={folder}"]
    for key, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value is not False:
                said += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return said


def _write_config(file: Path, config: Mapping[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return file


# ---- the table ---------------------------------------------------------------------------------------------


def _row(name: str, folders: Mapping[int, Path]) -> dict[str, Any]:
    """Held-out figures of one variant: with one seed its interval over pairs, with several the range of seeds."""
    reports = [_report(folder)["held_out"] for folder in folders.values()]
    figures: dict[str, Any] = {}
    for metric in reports[0]:
        means = [report[metric]["mean"] for report in reports]
        if None in means:
            continue  # not finite for every pair
        spread = reports[0][metric]["interval"] if len(means) == 1 else [min(means), max(means)]
        figures[metric] = {"mean": statistics.fmean(means), "spread": spread, "by_seed": means}
    return {"variant": name, "seeds": list(folders), "pairs": _pairs(reports), "held_out": figures}


def _report(folder: Path) -> dict[str, Any]:
    return read_json(folder / REPORT, AGAIN)


def _pairs(reports: Sequence[Mapping[str, Any]]) -> int:
    return next((value["pairs"] for value in reports[0].values()), 0)


def _add_win_rates(rows: list[dict[str, Any]], evaluations: Sequence[Path]) -> None:
    """Add to every row but the first its win rate over the first variant, averaged over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in evaluations:
        for pair in _report(folder)["pairs"]:
            found.setdefault(pair["a"], []).append(pair)
    for row in rows[1:]:
        own = found.get(slug(row["variant"]), [])
        rates = [pair["rate"] for pair in own]
        if rates:
            spread = own[0]["interval"] if len(own) == 1 else [min(rates), max(rates)]
            row["win_rate"] = {"mean": statistics.fmean(rates), "spread": spread, "by_seed": rates}


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in FIRST if any(name in row["held_out"] for row in rows)]


def _cells(row: Mapping[str, Any], columns: Sequence[str], *, wins: bool) -> list[str]:
    cells = [_figure(row["held_out"].get(name)) for name in columns]
    return [row["variant"], *cells, *([_figure(row.get("win_rate"))] if wins else [])]


def _figure(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["spread"]
    return f"{value['mean']:.3f} ({low:.3f} to {high:.3f})"


def _write(output: Path, plan: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    columns, wins = _columns(rows), any("win_rate" in row for row in rows)
    heads = ["variant", *columns, *(["win rate over the first"] if wins else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_cells(row, columns, wins=wins))} |" for row in rows]
    with atomic_folder(output) as staging:
        (staging / TABLE).write_text(json.dumps({"plan": masked_values(plan), "rows": rows}, indent=2))
        (staging / PAGE).write_text(f"{_about(rows)}\n\n" + "\n".join(lines) + "\n")


def _about(rows: Sequence[Mapping[str, Any]]) -> str:
    seeds = len(rows[0]["seeds"])
    spread = "95% intervals over pairs" if seeds == 1 else f"means of {seeds} seeds, with the least and the greatest"
    return f"{rows[0]['pairs']} held-out pairs; {spread}."


def _print(console: Console, output: Path, rows: list[dict[str, Any]]) -> None:
    columns, wins = _columns(rows), any("win_rate" in row for row in rows)
    table = Table("variant", title=_about(rows), box=box.SIMPLE_HEAD)
    for name in (*columns, *(["win rate"] if wins else [])):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, columns, wins=wins))
    console.print(table)
    console.print(f"table   {output / PAGE}\nfigures {output / TABLE}", soft_wrap=True)
