"""`dual-head rounds METHOD`: train a guide on the model's own replies to your prompts, scored by a reward.

Each round samples replies, pairs the best with the worst by the reward, trains the method, and measures gain and
divergence on prompts that are held out. The next round samples from the guide. A stopped command goes on where it was.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from dual_head.cli.prompts import PromptOptions, conversations, read_prompts
from dual_head.console.secrets import command_line
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive
from dual_head.files.reading import read_json
from dual_head.options import option
from dual_head.options.flags import OptionParser
from dual_head.options.texts import named_values

if TYPE_CHECKING:
    from dual_head.rounds import Rounds

RUN_FILE = "rounds_run.json"  # not run.json, which is training's, whose folder this may be
PLAIN_WIDTH = 120
SHARED = ("rounds", "output_dir")  # what may change between two runs of one folder
OF_STEPS = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")  # which a fit in one pass has not


@dataclass(kw_only=True)
class RoundsOptions(PromptOptions):
    """Which model, which prompts, which reward, and how it is trained."""

    method: str = option(help="what is trained: hidden, iav, dual_head, ...", positional=True)
    model_name_or_path: str = option(help="backbone: a folder, or a name on the hub", heading="what is trained")
    reward: str = option(
        help="rule:NAME (concise, plain, positive, bulleted, refuses), module:function of prompt and reply, or a "
        "folder of guides, of what 'train reward' wrote, or of a sequence classifier with one label"
    )
    output_dir: str = option(help="folder for replies, pairs and the guide of every round")
    rounds: int = option(2, "how often", least=1)
    set: list[str] = option([], "options of the method", nargs="*", metavar="NAME=VALUE")
    replies: int = option(4, "replies sampled to a prompt", heading="sampling", least=2)
    max_new_tokens: int = option(128, "longest reply in tokens", least=1)
    temperature: float = option(1.0, "of sampling", above=0)
    top_k: int = option(0, "sample among this many tokens; 0: all", least=0)
    alpha: float = option(1.0, "strength at which guides are sampled from and measured", above=0)
    held_out: float = option(0.2, "share of prompts to measure on", above=0, below=1)
    batch_size: int = option(64, "replies at a time", least=1)
    learning_rate: float = option(1e-3, "peak learning rate", heading="training", above=0)
    num_train_epochs: float = option(2.0, "epochs over the pairs of all rounds so far", above=0)
    per_device_train_batch_size: int = option(8, "pairs a step", least=1)
    seed: int = option(0, "seed of sampling and training", least=0)


build_parser = partial(OptionParser, RoundsOptions, command="rounds", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and run the rounds in a folder that is held."""
    (args,) = build_parser().read(arguments)
    if args.raw:
        raise DualHeadError("Rounds train on conversations, and --raw continues texts. Leave out --raw.")
    prompts = read_prompts(args)
    with exclusive(args.output_dir):
        _require_same(args, options := _identity(args, prompts))
        rounds = _rounds(args, prompts)
        _record(args, options, command_line("dual-head", "rounds", *arguments))  # not of a command that was refused
        return _run(args, rounds)


def _rounds(args: RoundsOptions, prompts: Sequence[Any]) -> "Rounds":
    """What is asked for. Errors: no such method, reward, model, or option."""
    # Imported late: a mistyped prompt file should not wait for torch.
    from dual_head.evaluate.judges.base import chosen_device
    from dual_head.evaluate.rewards import load_reward
    from dual_head.methods import method
    from dual_head.model.pretrained import load_tokenizer
    from dual_head.rounds import Rounds, Sampling
    from dual_head.train.arguments import GuideTrainingArguments

    recipe = method(args.method).with_options(named_values(args.set))
    if recipe.peer is not None:
        raise DualHeadError(
            f"'{args.method}' is trained by another trainer. Rounds train guides: hidden, iav, mav, ..."
        )
    steps: dict[str, Any] = {name: getattr(args, name) for name in OF_STEPS}
    changed = [f"--{name}" for name, value in steps.items() if value != getattr(RoundsOptions, name)]
    if recipe.fit is not None and changed:
        raise DualHeadError(
            f"'{args.method}' is computed in one pass over the pairs, not in steps. Leave out {', '.join(changed)}."
        )
    steps |= {"lr_scheduler_type": "cosine", "save_strategy": "no", "eval_strategy": "no"}
    reward = load_reward(args.reward, device=chosen_device("auto"))
    messages = conversations(prompts, args, load_tokenizer(args.model_name_or_path))

    def training(folder: str) -> GuideTrainingArguments:
        return GuideTrainingArguments(output_dir=folder, seed=args.seed, **({} if recipe.fit else steps))

    sampling = Sampling(
        count=args.replies, max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_k=args.top_k,
        rows=args.batch_size,
    )  # fmt: skip
    return Rounds(
        folder=Path(args.output_dir), backbone=args.model_name_or_path, prompts=messages, reward=reward, method=recipe,
        training=training, sampling=sampling, alpha=args.alpha, held_out=args.held_out, seed=args.seed,
    )  # fmt: skip


def _run(args: RoundsOptions, rounds: "Rounds") -> int:
    table = Table(box=box.SIMPLE_HEAD, title=f"{rounds.reward[0]} on held-out prompts at alpha {args.alpha:g}")
    for column in ("round", "pairs", "sampled", "reward", "gain (95%)", "KL, nats", "ended"):
        table.add_column(column, justify="right")
    for one in rounds.run(args.rounds):
        at = one.measured
        gain = f"{at.gain:+.3g} ({at.interval[0]:+.3g} to {at.interval[1]:+.3g})"
        cells = (f"{one.sampled:.3g}", f"{at.reward:.3g}", gain, f"{at.kl:.2f}", f"{100 * at.finished:.0f}%")
        table.add_row(str(one.number), str(one.pairs), *cells)
        print(f"round {one.number}: gain {gain}, KL {at.kl:.2f}", flush=True)
    console = Terminal(plain_width=PLAIN_WIDTH, soft_wrap=True)
    console.print(table)
    guide = Path(args.output_dir) / f"round-{args.rounds}" / "guide"
    console.print(f"The last guide: {guide}   figures: {Path(args.output_dir) / 'rounds.json'}")
    return 0


def _identity(args: RoundsOptions, prompts: Sequence[Any]) -> dict[str, Any]:
    """What the rounds of a folder have in common: options, and the contents of prompts and reward."""
    from dual_head.evaluate.rewards import reward_identity

    options = {name: value for name, value in asdict(args).items() if name not in SHARED}
    options["prompts"] = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    options["contents of the reward"] = hashlib.sha256(reward_identity(args.reward).encode()).hexdigest()[:16]
    return options


def _require_same(args: RoundsOptions, options: dict[str, Any]) -> None:
    """Refuse a folder of other rounds."""
    file = Path(args.output_dir) / RUN_FILE
    if not file.is_file():
        return
    there = read_json(file, "Choose another --output_dir.").get("options", {})
    if odd := next((name for name in options if there.get(name) != options[name]), None):
        raise DualHeadError(
            f"'{args.output_dir}' has rounds with {odd} {there.get(odd)!r}, not {options[odd]!r}. Choose another "
            "--output_dir."
        )


def _record(args: RoundsOptions, options: dict[str, Any], command: str) -> None:
    with atomic_folder(Path(args.output_dir)) as staging:
        (staging / RUN_FILE).write_text(json.dumps({"command": command, "options": options}, indent=2))
