"""`dual-head ablate CONFIG`: train variants of a method on the same pairs, and tabulate the differences.

CONFIG is a training config with two more keys: `variants`, from a name to the options that it changes, and `seeds`.
With `evaluate` (a benchmark, a judge and other options of `dual-head eval`), every variant is also compared with the
first one by its answers. A finished run is not trained again, a stopped one goes on.
"""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dual_head.console.secrets import is_secret, masked_values
from dual_head.console.terminal import Terminal, figures_table
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive
from dual_head.files.reading import read_json, reading
from dual_head.options import Options, option
from dual_head.options.config_file import read_options, require_no_code
from dual_head.options.flags import OptionParser, before_parsing

KEYS = ("method", "variants", "seeds", "evaluate")  # of a plan; all others are options of training
RUNS = "runs"
TABLE = "ablation.json"
PAGE = "ablation.md"
FIRST = ("accuracy", "accuracy_over_base", "preference", "kto", "next_token", "kl")  # columns, if the reports have them
REPORT = "report.json"
AGAIN = "Delete the folder of the run, and run the same command again."
# Options of one run, and what to say for all runs instead.
OF_ONE_RUN = {
    "seed": "Say 'seeds: [0, 1, 2]' in the config.",
    "output_dir": "Leave it out: each run has a folder in the --output_dir of the command.",
    "resume_from_checkpoint": "Leave it out: what was stopped goes on by itself.",
}


@dataclass(kw_only=True)
class AblationOptions(Options):
    """Which variants, and where they are written."""

    plan: str = option(
        help="YAML with method, variants, seeds and the options of training", positional=True, metavar="CONFIG"
    )
    output_dir: str = option(help="folder for runs, ablation.json and ablation.md")


build_parser = partial(
    OptionParser,
    AblationOptions,
    command="ablate",
    description=__doc__,
    epilog="All other options go to 'dual-head train' for every variant, such as --model_name_or_path, "
    "--dataset_name or --max_steps.",
)


def run(arguments: Sequence[str]) -> int:
    """Parse, and ablate into a folder that is held."""
    config = before_parsing(arguments).config
    args, flags = build_parser().parse_known_args([config, *arguments] if config else list(arguments))
    names = [flag.split("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")]
    _require_shared(names, "on the command line")
    plan = read_plan(Path(args.plan), allow_code=args.allow_code)
    with exclusive(args.output_dir):
        return _ablate(args, flags, plan)


def _ablate(args: Any, flags: Sequence[str], plan: Mapping[str, Any]) -> int:
    """Train each variant with each seed, evaluate, tabulate."""
    output, console = Path(args.output_dir), Terminal()
    # Imported late: a mistyped config should not wait for torch.
    from dual_head.cli import eval as evaluation
    from dual_head.cli import train

    if plan["evaluate"]:
        # As it will be parsed after the training: a value may hold a flag.
        arguments = evaluation_arguments(plan["evaluate"], dict.fromkeys(plan["variants"], output))
        options = evaluation.read([*arguments, "--output_dir", str(output)])
        if not args.allow_code:
            require_no_code(vars(options), Path(args.plan))
    folders: dict[str, dict[int, Path]] = {name: {} for name in plan["variants"]}
    runs = [(name, seed) for name in folders for seed in plan["seeds"]]
    for number, (name, seed) in enumerate(runs, 1):
        folder = output / RUNS / f"{slug(name)}-seed{seed}"
        console.rule(f"{name}, seed {seed} ({number} of {len(runs)})")
        config = variant(plan, name)
        secrets = [word for key in filter(is_secret, config) for word in (f"--{key}", str(config[key]))]
        file = _write_config(folder.with_suffix(".yaml"), {k: v for k, v in config.items() if not is_secret(k)})
        # The command line holds for every variant, and overrides the file.
        arguments = ["--config", str(file), "--output_dir", str(folder), "--seed", str(seed), *secrets, *flags]
        if code := train.run([plan["method"], *arguments, *(["--allow_code"] if args.allow_code else [])]):
            return code
        folders[name][seed] = folder
    with reading(f"The reports in '{output / RUNS}' cannot be compared", AGAIN):
        rows = [_row(name, by_seed) for name, by_seed in folders.items()]
    if plan["evaluate"]:
        evaluations = {seed: output / f"evaluation-seed{seed}" for seed in plan["seeds"]}
        for seed, folder in evaluations.items():
            arguments = evaluation_arguments(plan["evaluate"], {name: folders[name][seed] for name in folders})
            if code := evaluation.run([*arguments, "--output_dir", str(folder)]):
                return code
        _add_win_rates(rows, list(evaluations.values()))
    _write(output, plan, rows, console)
    return 0


# ---- the plan ----------------------------------------------------------------------------------------------


def read_plan(file: Path, *, allow_code: bool = False) -> dict[str, Any]:
    """Read CONFIG: {"method", "variants": {name: options}, "seeds", "evaluate", "shared": all other options}.

    Errors: an unreadable file, no method, no variants, a variant that is not a mapping, two of one folder, an option of
    one run, a comparison with another than the first, code that is named without `allow_code`.
    """
    values = read_options(file, allow_code=allow_code)
    if not isinstance(values.get("variants"), dict):
        names = get_close_matches("variants", map(str, values), n=1)
        typo = f" It has '{names[0]}': is that what you meant?" if names and names[0] != "variants" else ""
        raise DualHeadError(f"'{file}' has no 'variants': a mapping from a name to the options it changes.{typo}")
    if "method" not in values:
        raise DualHeadError(f"'{file}' names no method. Add 'method: dual_head', or another.")
    variants = {str(name): changes or {} for name, changes in values["variants"].items()}
    for name, changes in variants.items():
        if not isinstance(changes, dict):
            raise DualHeadError(f"The variant '{name}' in '{file}' must be a mapping of options; {{}} changes nothing.")
    if not variants or len({slug(name) for name in variants}) < len(variants):
        raise DualHeadError(f"The variants in '{file}' need names that differ in more than case and punctuation.")
    seeds, evaluate = values.get("seeds", [0]), values.get("evaluate") or {}
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise DualHeadError(f"'seeds' in '{file}' must be a list of whole numbers, such as [0, 1, 2], not {seeds!r}.")
    if not isinstance(evaluate, dict) or (evaluate and not {"benchmark", "judge"} <= evaluate.keys()):
        raise DualHeadError(f"'evaluate' in '{file}' must be a mapping with at least 'benchmark' and 'judge'.")
    first = slug(next(iter(variants)))
    if (against := evaluate.get("against")) not in (None, "all", first):
        raise DualHeadError(
            f"Win rates in '{file}' are over the first variant, '{first}', not over '{against}'. Put that one first, "
            "or say 'against: all'."
        )
    shared = {key: value for key, value in values.items() if key not in KEYS}
    for options in (shared, *variants.values()):
        _require_shared(options, f"in '{file}'")
    return dict(zip(KEYS, (values["method"], variants, seeds, evaluate), strict=True), shared=shared)


def _require_shared(names: Iterable[Any], where: str) -> None:
    """Refuse options of one run among those of all runs."""
    for name in names:
        if remedy := OF_ONE_RUN.get(str(name).replace("-", "_")):
            raise DualHeadError(f"'{name}' {where} is of one run, and these are several. {remedy}")


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
    words = [str(evaluate["benchmark"])]
    for name, folder in folders.items():
        words += ["--models", f"{slug(name)}={folder}"]
    for key, values in evaluate.items():
        for value in values if isinstance(values, list) else [values]:
            if key != "benchmark" and value is not None and value is not False:
                words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return words


def _write_config(file: Path, config: Mapping[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    return file


# ---- the table ---------------------------------------------------------------------------------------------


def _row(name: str, folders: Mapping[int, Path]) -> dict[str, Any]:
    """Held-out figures of one variant."""
    reports = [_report(folder)["held_out"] for folder in folders.values()]
    figures = {}
    for metric, first in reports[0].items():
        means = [report[metric]["mean"] for report in reports]
        if None not in means:  # that is not finite for every pair
            figures[metric] = _figure(means, first["interval"])
    pairs = next((first["pairs"] for first in reports[0].values()), 0)
    return {"variant": name, "seeds": list(folders), "pairs": pairs, "held_out": figures}


def _report(folder: Path) -> dict[str, Any]:
    return read_json(folder / REPORT, AGAIN)


def _add_win_rates(rows: list[dict[str, Any]], evaluations: Sequence[Path]) -> None:
    """Add to every row but the first its win rate over the first variant, averaged over seeds."""
    first = slug(rows[0]["variant"])
    pairs = [pair for folder in evaluations for pair in _report(folder)["pairs"]]
    for row in rows[1:]:
        if rates := [pair for pair in pairs if (pair["a"], pair["b"]) == (slug(row["variant"]), first)]:
            row["win_rate"] = _figure([pair["rate"] for pair in rates], rates[0]["interval"])


def _figure(means: list[float], interval: list[float]) -> dict[str, Any]:
    """The mean of seeds, with their range; of one seed, with its interval over pairs."""
    spread = interval if len(means) == 1 else [min(means), max(means)]
    return {"mean": statistics.fmean(means), "spread": spread, "by_seed": means}


def _write(output: Path, plan: Mapping[str, Any], rows: list[dict[str, Any]], console: Terminal) -> None:
    """Write the table as JSON and Markdown, and print it."""
    metrics = [name for name in FIRST if any(name in row["held_out"] for row in rows)]
    wins = ["win rate"] if any("win_rate" in row for row in rows) else []
    lines = [
        [
            row["variant"],
            *(_cell(row["held_out"].get(name)) for name in metrics),
            *(_cell(row.get("win_rate")) for _ in wins),
        ]
        for row in rows
    ]
    heads = ["variant", *metrics, *wins]
    seeds = len(rows[0]["seeds"])
    spread = "95% intervals over pairs" if seeds == 1 else f"means of {seeds} seeds, with the least and the greatest"
    title = f"{rows[0]['pairs']} held-out pairs; {spread}{'; win rates over the first variant' if wins else ''}."
    page = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))
    with atomic_folder(output) as staging:
        (staging / TABLE).write_text(json.dumps({"plan": masked_values(plan), "rows": rows}, indent=2))
        (staging / PAGE).write_text(f"{title}\n\n{page}\n")
    console.print(figures_table(title, heads, lines))
    console.print(f"table   {output / PAGE}\nfigures {output / TABLE}", soft_wrap=True)


def _cell(figure: Mapping[str, Any] | None) -> str:
    return "" if figure is None else "{mean:.3f} ({spread[0]:.3f} to {spread[1]:.3f})".format(**figure)
