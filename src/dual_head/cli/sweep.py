"""`dual-head sweep GUIDES`: generate at many strengths, and measure what each does."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from dual_head.cli.loading import DeviceOptions, load_guided
from dual_head.cli.prompts import PromptOptions, conversations, read_prompts
from dual_head.console.gauge import Gauge
from dual_head.console.secrets import command_line
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.figures import figures_json
from dual_head.files.lines import add_lines
from dual_head.files.places import atomic_folder, exclusive, file_digest, weights_in
from dual_head.files.reading import ANEW, json_value, read_json
from dual_head.options import option
from dual_head.options.flags import OptionParser
from dual_head.options.texts import parse_alpha

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dual_head.data import Prompt
    from dual_head.evaluate.sweep import Row
    from dual_head.model.aligned import AlignedModel
    from dual_head.model.alpha import Alpha

ROWS_FILE, SUMMARY_FILE, PICTURE_FILE = "sweep.jsonl", "sweep.json", "sweep.png"
RUN_FILE = "sweep_run.json"  # not run.json, which is training's, whose folder this may be
PLAIN_WIDTH = 140  # of a table that is not printed on a screen
LABELS = {
    "kl": "KL, nats",
    "kl_per_token": "KL per token",
    "moved": "moved per token",
    "tokens": "tokens",
    "distinct_1": "distinct 1",
    "distinct_2": "distinct 2",
    "distinct_3": "distinct 3",
    "diversity": "diversity",
}


@dataclass(kw_only=True)
class SweepOptions(PromptOptions, DeviceOptions):
    """Which strengths, of what, and what is measured."""

    output_dir: str = option(help="folder for sweep.jsonl, sweep.json and sweep.png")
    restart: bool = option(False, "delete the rows of an earlier sweep there")
    alphas: str = option("0,0.5,1,1.5,2", "strengths to sweep, with commas between", heading="strengths", commas=True)
    guide: str | None = option(None, "sweep this guide alone; default: all of them together")
    alpha: str | None = option(
        None, "strength of the other guides: a number, or name=number,...; default: what their config says"
    )
    max_new_tokens: int = option(128, "longest reply in tokens", heading="decoding", least=1)
    temperature: float = option(0.0, "0 is greedy; above it, sample", least=0)
    samples: int = option(1, "replies per prompt and strength, when sampling", least=1)
    seed: int = option(0, "makes sampling repeatable", least=0)
    reward: list[str] | None = option(
        None,
        "rule:NAME, module:function of prompt and reply, or a folder: of guides, of what 'train reward' wrote, or of a "
        "sequence classifier with one label; may be given several times",
        heading="measuring",
        repeat=True,
    )


build_parser = partial(OptionParser, SweepOptions, command="sweep", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and sweep into a folder that no other command may write to meanwhile."""
    (args,) = build_parser().read(arguments)
    prompts, alphas, alpha = read_prompts(args), _numbers(args.alphas), parse_alpha(args.alpha)
    with exclusive(args.output_dir):
        return _sweep(args, prompts, alphas, alpha, command_line("dual-head", "sweep", *arguments))


def _sweep(args: SweepOptions, prompts: "list[Prompt]", alphas: list[float], alpha: "Alpha", command: str) -> int:
    """Load, sweep the prompts that are left, summarise, print, draw."""
    output = Path(args.output_dir)
    with atomic_folder(output):
        pass  # a folder that cannot be written is refused before anything is loaded
    # Imported late: a mistyped prompt file should not wait for torch.
    from dual_head.evaluate.sweep import summarise, sweep

    rewards = _rewards(args.reward or [], args.device or "cpu")
    model, tokenizer = load_guided(args)
    questions = conversations(prompts, args, tokenizer)
    options: Any = {
        "chat_template": False,  # `conversations` has applied it
        "guide": args.guide,
        "alpha": alpha,
        "rewards": rewards,
        **{name: getattr(args, name) for name in ("max_new_tokens", "temperature", "samples", "seed")},
    }
    replies = partial(sweep, model, tokenizer, questions, alphas, **options)
    replies(start=len(questions))  # checks all and generates nothing: a mistake must not cost an earlier sweep its rows
    identity = _identity(args, model, tokenizer, questions)
    rows = _earlier_rows(output, identity, restart=args.restart, per_prompt=len(alphas) * args.samples)
    rows += _sweep_rest(replies, output, identity, rows, len(questions))
    points = summarise(rows)
    _write(output, points, command, model, guide=args.guide)
    _print(points, output)
    return 0


def _sweep_rest(
    replies: "Callable[..., list[Row]]", output: Path, identity: dict[str, Any], rows: "list[Row]", total: int
) -> "list[Row]":
    """Sweep the prompts that are left, and write each one's rows at once; the first makes the output this sweep's."""
    start = len({row.index for row in rows})
    if start:
        print(f"Going on after {start} of {total} prompts.")

    def write(prompt_rows: "list[Row]") -> None:
        if prompt_rows[0].index == start:
            with atomic_folder(output) as staging:
                (staging / RUN_FILE).write_text(json.dumps(identity, indent=2))
                (staging / ROWS_FILE).write_text("".join(f"{_line(row)}\n" for row in rows), encoding="utf-8")
        add_lines(output / ROWS_FILE, map(_line, prompt_rows))
        gauge.advance()

    with Gauge("prompts", total, done=start) as gauge:
        return replies(start=start, on_prompt=write)


def _line(row: "Row") -> str:
    return json.dumps(asdict(row), ensure_ascii=False)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise DualHeadError(f"--alphas takes numbers with commas between, such as 0,0.5,1, not '{text}'.") from error


def _rewards(specs: Sequence[str], device: str) -> dict[str, Any]:
    from dual_head.evaluate.rewards import load_reward

    rewards: dict[str, Any] = {}
    for spec in specs:
        name, reward = load_reward(spec, device=device)
        if name in rewards:
            raise DualHeadError(f"Two rewards are named '{name}'. Rename a function or a folder, or leave one out.")
        rewards[name] = reward
    return rewards


# ---- a sweep that may have been stopped --------------------------------------------------------------------


def _identity(
    args: SweepOptions, model: "AlignedModel", tokenizer: "PreTrainedTokenizerBase", questions: list[Any]
) -> dict[str, Any]:
    """Collect what makes a sweep this sweep: one that goes on must agree on all of it."""
    from dual_head.backbone.fingerprint import digest, sketch, tokenizer_fingerprint

    names = ("guide", "alpha", "max_new_tokens", "temperature", "samples", "seed")
    sketches = {name: sketch(tensor) for name, tensor in model.stored().items()}
    place = Path(args.guides).resolve() if Path(args.guides).exists() else args.guides
    return {
        "guides": f"{place}, {digest(sketches, 12)}",
        "backbone": model.backbone.fingerprint().short,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": str(model.dtype),
        "prompts": f"{len(questions)}, {digest(questions, 12)}",
        "alphas": _numbers(args.alphas),
        "rewards": sorted(args.reward or []),
        "data": _sources(args),
        **{name: getattr(args, name) for name in names},
    }


def _sources(args: SweepOptions) -> dict[str, Any]:
    """{file: size and SHA-256} of the weights of guides and rewards, and of the modules that rewards are in."""
    from dual_head.evaluate.rewards import load_reward

    specs = args.reward or []
    files = [file for place in (args.guides, *specs) if Path(place).is_dir() for file in weights_in(Path(place))]
    modules = [inspect.getmodule(load_reward(spec)[1]) for spec in specs if not Path(spec).is_dir()]
    # Python's builtin modules have no file.
    files += [Path(file) for module in modules if (file := getattr(module, "__file__", None))]
    return {str(file.resolve()): file_digest(file) for file in files}


def _earlier_rows(output: Path, identity: dict[str, Any], *, restart: bool, per_prompt: int) -> "list[Row]":
    """The rows of prompts that are done, after checking that they are this sweep's; a cut line ends the reading."""
    from dual_head.evaluate.sweep import Row
    from dual_head.train.identity import check_same_run

    file, record = output / ROWS_FILE, output / RUN_FILE
    if restart or not file.exists():
        return []
    check_same_run(read_json(record, ANEW) if record.is_file() else {}, identity, str(output))
    rows: list[Row] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            rows.append(Row(**json_value(line)))
        except (ValueError, TypeError):
            break
    return rows[: len(rows) // per_prompt * per_prompt]


# ---- what is written and shown -----------------------------------------------------------------------------


def _write(
    output: Path, points: list[dict[str, Any]], command: str, model: "AlignedModel", *, guide: str | None
) -> None:
    from dual_head.evaluate.report.tables import heading

    names = [guide] if guide else list(model.config.alpha or {})
    summary = {**heading(command, str(model.device)), "swept": names, "points": points}
    with atomic_folder(output) as staging:
        (staging / SUMMARY_FILE).write_text(figures_json(summary), encoding="utf-8")
        try:
            from dual_head.evaluate.sweep_plots import sweep_picture
        except ImportError:
            return  # _print says so
        sweep_picture(
            points, staging / PICTURE_FILE, axis="alpha" + (f" of {names[0]}" if len(names) == 1 else " of all guides")
        )


def _print(points: list[dict[str, Any]], output: Path) -> None:
    console = Terminal(plain_width=PLAIN_WIDTH)
    table = Table("alpha", title=f"means over {points[0]['prompts']} prompts", box=box.SIMPLE_HEAD)
    for point in points:
        table.add_column(f"{point['alpha']:g}", justify="right", overflow="fold")
    lines = {label: [point["metrics"][name]["mean"] for point in points] for name, label in LABELS.items()}
    lines |= {name: [point["rewards"][name]["mean"] for point in points] for name in points[0]["rewards"]}
    for label, means in lines.items():
        table.add_row(label, *(f"{mean:.3g}" if math.isfinite(mean) else "-" for mean in means))
    console.print(table)
    if infinite := [label for label, means in lines.items() if not all(map(math.isfinite, means))]:
        console.print(f"- stands where a reply has NaN or infinity: {', '.join(infinite)}.", soft_wrap=True)
    if empty := {f"{point['alpha']:g}": point["empty"] for point in points if point["empty"]}:
        counts = ", ".join(f"{count} at {alpha}" for alpha, count in empty.items())
        total = sum(point["replies"] for point in points)
        console.print(f"{sum(empty.values())} of {total} replies are empty, and these means include them: {counts}.")
    console.print(f"replies   {output / ROWS_FILE}", soft_wrap=True)
    console.print(f"figures   {output / SUMMARY_FILE}, with 95% intervals", soft_wrap=True)
    picture = output / PICTURE_FILE
    missing = "none: matplotlib is missing (pip install 'dual-head[plot]')"
    console.print(f"picture   {picture if picture.is_file() else missing}", soft_wrap=True)
