"""Names in the documents that this project implements, and ours: scripts, flags, keys of YAML, Python names.

    python scripts/train.py --num_epochs 1    ->    dual-head classify train --num_train_epochs 1

`translate` does this before a command parses. A name without a counterpart is refused, with the line that does the same
here; docs/provenance/ explains them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dual_head.backbone.checkpoint import CONFIG_NAME
from dual_head.console.secrets import command_line
from dual_head.console.terminal import note
from dual_head.data.sources import PICKLES
from dual_head.errors import DualHeadError


@dataclass(frozen=True)
class Alias:
    """Our flags for a flag of the documents; none for a positional argument. `value` converts its value."""

    ours: tuple[str, ...]
    value: Callable[[str], str] = str


def translate(arguments: Sequence[str]) -> list[str]:
    """Return a command line in our spelling; print it on stderr if it changed.

    Errors: a name without a counterpart, and both spellings of one option.
    """
    command, options = _command(arguments)
    key = " ".join(command[:2] if command[:1] == ["classify"] else command[:1])
    line = [*command, *_options(options, FLAGS.get(key, {}))]
    if line != list(arguments):
        note(f"in our spelling: {command_line('dual-head', *line)}")
    return line


def _command(arguments: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """Split our command's words from the arguments after them."""
    name = arguments[0].removeprefix("./") if arguments else ""
    if name in NO_COMMANDS:
        raise DualHeadError(f"'{arguments[0]}' does not exist here. {NO_COMMANDS[name]}")
    if name in COMMANDS:
        return COMMANDS[name].split(), arguments[1:]
    words = 2 if name == "classify" else 1
    return list(arguments[:words]), arguments[words:]


def _options(arguments: Sequence[str], aliases: Mapping[str, Alias | str]) -> list[str]:
    """Replace their flags by ours, or by a positional argument."""
    line: list[str] = []
    spellings = {flag: flag for argument in arguments if (flag := argument.partition("=")[0]).startswith("--")}
    if arguments and not arguments[0].startswith("-"):
        spellings[""] = f"'{arguments[0]}'"
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        alias = aliases.get(flag.removeprefix("--")) if flag.startswith("--") else None
        if alias is None:
            line.append(word)
            continue
        if isinstance(alias, str):
            raise DualHeadError(f"{flag} {alias}")
        if not equals and (value := next(words, None)) is None:
            raise DualHeadError(f"{flag} needs a value.")
        value = alias.value(value)
        for ours in [f"--{name}" for name in alias.ours] or [""]:
            if spellings.setdefault(ours, flag) != flag:
                raise DualHeadError(f"{flag} and {spellings[ours]} mean the same. Leave one out.")
            line += [ours, value] if ours else [value]
    return line


# ---- values ------------------------------------------------------------------------------------------------


def _cache_folder(place: str) -> str:
    """The folder of a feature cache. Errors: a file of logits, which is a pickle without hidden states."""
    if Path(place).is_dir() or Path(place).suffix not in PICKLES:
        return place
    raise DualHeadError(
        f"'{place}' is not a folder of 'dual-head cache', and pickles are never read. Write the cache first: "
        "'dual-head cache --model_name_or_path M --dataset_name D --output_dir FOLDER'. Then train from it: "
        "'dual-head train iav --feature_cache FOLDER --output_dir OUT'."
    )


def _weights_folder(place: str, remedy: str) -> str:
    """The folder for a file of weights that is named as the documents do. Errors: a pickle, or no folder there."""
    path = Path(place)
    if path.suffix not in PICKLES:
        return place
    if not path.exists() and (path.parent / CONFIG_NAME).is_file():
        return str(path.parent)
    raise DualHeadError(
        f"'{place}' names a pickle. Loading one runs code, so only folders of safetensors are read. {remedy}"
    )


guides_folder = partial(
    _weights_folder,
    remedy="Train guides: 'dual-head train mav --config configs/mav.yaml --output_dir outputs/pav'. Then give their "
    "folder: 'dual-head generate outputs/pav'.",
)
_classifier_folder = partial(
    _weights_folder,
    remedy="Train a classifier: 'dual-head classify train --config configs/dhrd.yaml --output_dir outputs/dhrd'. Then "
    "give its folder: 'dual-head classify evaluate outputs/dhrd --config configs/dhrd.yaml'.",
)


def _share(value: str) -> str:
    """A share of the steps: transformers reads a warmup_steps below 1 as one. Errors: a number of steps."""
    try:
        steps = float(value)
    except ValueError:  # the flag itself refuses it
        return value
    if steps >= 1:
        raise DualHeadError(
            f"--warmup_ratio must be a share of the steps, below 1, not {value}. For a number of steps, write "
            f"--warmup_steps {value}."
        )
    return value


# ---- tables ------------------------------------------------------------------------------------------------

# As printed after `python`, or alone.
COMMANDS = {
    "scripts/training/train_dual_head.py": "train dual_head",
    "scripts/evaluation/evaluate_hh_rlhf.py": "eval hh",
    "src/training/train_main.py": "train iav",
    "src/caching/cache_reference_logits.py": "cache --method iav",
    "src/inference.py": "generate",
    "train.py": "train mav",
    "inference.py": "generate",
    "scripts/train.py": "classify train",
    "scripts/evaluate.py": "classify evaluate",
    "evaluate": "classify evaluate",
}
NO_COMMANDS = {
    "train.sh": "IAV is 'dual-head train iav --config configs/iav.yaml --output_dir outputs/iav_training', where "
    "--model_name_or_path and --dataset_name name others than the config does; hh-rlhf is Dahoas/full-hh-rlhf. MAV is "
    "'dual-head train mav --config configs/mav.yaml --output_dir outputs/pav', and its variables are flags: "
    "--layer_selection uniform, --beta 0.2, --lambda_l2 0.001, --learning_rate 5e-5. For several GPUs write "
    "'accelerate launch -m dual_head' in the place of dual-head.",
    "cache.sh": "No cache of reference logits is needed. Hidden states are kept by 'dual-head cache --method iav "
    "--model_name_or_path argsearch/llama-7b-sft-float32 --dataset_name Dahoas/full-hh-rlhf --max_length 2048 "
    "--output_dir cache/iav', and read by 'dual-head train iav --feature_cache cache/iav "
    "--output_dir outputs/iav_training'.",
    "scripts/generate_iav.py": "Answers are written by 'dual-head eval hh --models iav=FOLDER --num_samples 300 "
    "--output_dir OUT'; for hh put alpaca or arena.",
}

_GUIDES: dict[str, Alias] = {
    "model_name": Alias(("model_name_or_path",)),
    "cache_file": Alias(("feature_cache",), _cache_folder),
    "num_epochs": Alias(("num_train_epochs",)),
    "batch_size": Alias(("per_device_train_batch_size",)),
    "grad_accum": Alias(("gradient_accumulation_steps",)),
    "seq_length": Alias(("max_length",)),
    "warmup_ratio": Alias(("warmup_steps",), _share),
}
CLASSIFIERS: dict[str, Alias] = {
    "name_or_path": Alias(("model_name_or_path",)),
    "train_file": Alias(("dataset_name",)),
    "eval_file": Alias(("eval_dataset_name",)),
    "batch_size": Alias(("per_device_train_batch_size", "per_device_eval_batch_size")),
    "num_epochs": Alias(("num_train_epochs",)),
    "checkpoint": Alias(("resume_from_checkpoint",)),
    "dropout_prob": Alias(("dropout",)),
}
# By our command; a text tells why a flag does not exist, and what to use.
FLAGS: dict[str, Mapping[str, Alias | str]] = {
    "train": _GUIDES,
    "cache": {
        "model_name": Alias(("model_name_or_path",)),
        "split": Alias(("dataset_split",)),
        "max_seq_length": Alias(("max_length",)),
        "output_path": Alias(("output_dir",)),
    },
    "generate": {
        "alignment_checkpoint": Alias((), guides_folder),
        "base_model": Alias(("backbone",)),
        "demo_model_switching": "does not exist here. 'dual-head inspect FOLDER --against NAME' tells whether guides "
        "fit another backbone, and 'dual-head generate FOLDER --backbone NAME' generates with it.",
    },
    "eval": {
        "model_path": Alias(("models",)),
        "baseline_models": "does not name folders. Give each system its path: 'dual-head eval hh --models "
        "dual_head=PATH,DPO=PATH,GenARM=PATH,ARGS=PATH --output_dir OUT'.",
    },
    "classify train": CLASSIFIERS,
    "classify compare": CLASSIFIERS,
    "classify evaluate": {"checkpoint": Alias((), _classifier_folder)},
}

# Arguments of the DHRD README's DualHeadReasoningModel, as `from_backbone` has them.
CONSTRUCTOR = {"model_name_or_path": "backbone", "dropout_prob": "dropout"}
_TRACKED = (
    "transformers reports to MLflow: 'dual-head classify train --config configs/dhrd.yaml --report_to mlflow', or "
    "report_to='mlflow' of the training arguments. The variables MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and "
    "MLFLOW_TAGS say where, and under which name."
)
PYTHON = {
    "IAVLoss": "The loss is the method's: dual_head.method('iav') has its terms, and dual_head.GuideTrainer uses them.",
    "IAVTrainer": "Guides are trained by dual_head.GuideTrainer, or by 'dual-head train iav --config configs/iav.yaml "
    "--output_dir outputs/iav_training'.",
    "DHRDDataset": "Rows are read by dual_head.classify.data.load.load_examples, and written as tokens by "
    "dual_head.classify.data.tokenize.tokenize_examples.",
    "load_json_dataset": "Rows are read by dual_head.classify.data.load.load_examples, and written as tokens by "
    "dual_head.classify.data.tokenize.tokenize_examples.",
    "DHRDTrainer": "Classifiers are trained by dual_head.classify.train.trainer.ClassifierTrainer, or by "
    "'dual-head classify train --config configs/dhrd.yaml'.",
    "DHRDEvaluator": "Classifiers are measured by dual_head.classify.evaluate.run.measure, or by "
    "'dual-head classify evaluate FOLDER --dataset FILE'.",
    "configure_mlflow": _TRACKED,
    "enable_autologging": _TRACKED,
    "mlflow_run": _TRACKED,
}
