"""One small command of every kind that writes, and ways in which writing goes wrong."""

import argparse
import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from classifiers import write_dhrd
from files import ASKED, write_backbone, write_guides, write_pairs

from dual_head import cli
from dual_head.cli import classify, main
from dual_head.guides.linear import LinearConfig

FEW = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--eval_strategy", "no", "--disable_tqdm", "true"]
DATA = ["--model_name_or_path", "{backbone}", "--dataset_name", "{pairs}"]
ROWS = ["--model_name_or_path", "{backbone}", "--dataset_name", "{rows}", "--max_input_length", "12", *FEW]
REPLIES = ["--max_new_tokens", "2", "--prompt", "ask1 ask2", "--raw"]

# OUT is the folder that is written to, or holds the file that is.
WRITERS = {
    "train": ["train", "hidden", *DATA, *FEW, "--output_dir", "OUT"],
    "cache": ["cache", *DATA, "--output_dir", "OUT"],
    "generate": ["generate", "{guides}", *REPLIES, "--output", "OUT/replies.jsonl"],
    "sweep": ["sweep", "{guides}", *REPLIES, "--alphas", "0,1", "--output_dir", "OUT"],
    "eval": [
        *["eval", "prompts", "--source", "{prompts}", "--models", "a={guides}@0,b={guides}@1", "--judge", "rule"],
        *["--max_new_tokens", "2", "--raw", "--skip_measures", "--output_dir", "OUT"],
    ],
    "ablate": ["ablate", "{ablation}", *DATA, *FEW, "--output_dir", "OUT"],
    "compose": ["compose", "a={guides}", "b={guides}", "--output_dir", "OUT"],
    "score": ["score", "{guides}", "--replies", "{replies}", "--output", "OUT/scores.jsonl"],
    "rounds": [
        *["rounds", "hidden", "--model_name_or_path", "{backbone}", "--reward", "{guides}", "--prompts", "{requests}"],
        *["--chat", "--rounds", "1", "--max_new_tokens", "4", "--held_out", "0.3", "--output_dir", "OUT"],
    ],
    "merge": ["merge", "{guides}", "--output_dir", "OUT"],
    "demo": ["demo", "--pairs", "8", "--steps", "1", "--prompts", "2", "--output_dir", "OUT"],
    "classify train": ["classify", "train", *ROWS, "--output_dir", "OUT"],
    "classify compare": [
        *["classify", "compare", *ROWS, "--controls", "none", "--seeds", "0", "--resamples", "100"],
        *["--output_dir", "OUT"],
    ],
    "classify evaluate": [
        *["classify", "evaluate", "{classifier}", "--dataset", "{rows}", "--split", "train", "--resamples", "100"],
        *["--output_dir", "OUT"],
    ],
    "classify predict": [
        *["classify", "predict", "{classifier}", "--input", "{rows}", "--window", "8", "--output", "OUT/classes.jsonl"],
    ],
    "classify export": ["classify", "export", "{classifier}", "--output_dir", "OUT"],
    "classify lint": ["classify", "lint", "--dataset", "{rows}", "--no_probe", "--output", "OUT/lint.json"],
    "classify rationales": [
        *["classify", "rationales", "--dataset", "{rows}", "--teacher", "http://127.0.0.1:9/v1", "--model", "none"],
        *["--max_rows", "2", "--max_retries", "0", "--output", "OUT/rationales.jsonl"],
    ],
}
READERS = {"inspect": ["inspect", "{guides}"], "serve": ["serve", "{guides}"]}


def every_command() -> set[str]:
    """Names of all commands, as the command line lists them."""
    return {name for name in cli.COMMANDS if name != "classify"} | {f"classify {name}" for name in classify.COMMANDS}


def write_inputs(root: Path) -> dict[str, str]:
    """What the commands read: {name: path}."""
    classifier = write_dhrd(root, head="linear")
    backbone = write_backbone(root / "plain")
    rows = [
        {"input_text": f"ask{i} ask{i + 1}", "label": "yes" if i % 2 else "no", "rationale": f"good{i % 8}"}
        for i in range(16)
    ]
    (root / "rows.json").write_text(json.dumps(rows))
    (root / "prompts.txt").write_text("\n".join(ASKED[:3]))
    (root / "requests.txt").write_text("\n".join(f"ask{i % 8} ask{i // 8}" for i in range(24)))
    replies = [{"prompt": f"ask{i}", "reply": f" good{i} bad{i}"} for i in range(4)]
    (root / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in replies))
    (root / "ablation.yaml").write_text("method: hidden\nseeds: [0]\nvariants:\n  whole: {}\n")
    return {
        "backbone": str(backbone),
        "guides": str(write_guides(root / "guides", backbone, {"hidden": LinearConfig()})),
        "classifier": str(classifier),
        "pairs": str(write_pairs(root / "pairs.jsonl", 24)),
        "rows": str(root / "rows.json"),
        "prompts": str(root / "prompts.txt"),
        "requests": str(root / "requests.txt"),
        "replies": str(root / "replies.jsonl"),
        "ablation": str(root / "ablation.yaml"),
    }


def argv_of(name: str, inputs: dict[str, str], out: Path) -> list[str]:
    """The arguments of a command that writes to `out`."""
    parts = [part.format(**inputs) for part in (WRITERS | READERS)[name]]
    return [str(out) + part.removeprefix("OUT") if part.startswith("OUT") else part for part in parts]


def place_of(argv: list[str]) -> Path:
    """The file or folder that a command is told to write."""
    return Path(next(value for flag, value in pairwise(argv) if flag in ("--output_dir", "--output")))


def litter(folder: Path) -> list[str]:
    """Stagings and locks in a folder and beside it."""
    ends = (".lock", ".writing")
    names = (path.name for path in folder.parent.rglob(".*"))
    return sorted(name for name in names if name.startswith((".writing-", ".ready-")) or name.endswith(ends))


def failing(folder: Path, number: int) -> str:
    """Code for `before`: whatever writes below the parent of `folder` fails with this error of the system."""
    return f"FOLDER, NUMBER = {str(folder.parent)!r}, {number}\n{_FAIL}"


_FAIL = """
import os
def audit(event, arguments):
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in {"os.rename", "os.mkdir", "os.truncate", "os.link"}
    if writes and isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(FOLDER):
        raise OSError(NUMBER, os.strerror(NUMBER), os.fspath(arguments[0]))
sys.addaudithook(audit)
"""


def signalled(folder: Path, number: int, at: int = 1) -> str:
    """Code for `before`: this signal comes when the at-th file below `folder` is opened to be written."""
    return f"FOLDER, NUMBER, AT = {str(folder)!r}, {number}, {at}\n{_SIGNAL}"


_SIGNAL = """
import os
seen = 0
def audit(event, arguments):
    global seen
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        name = str(arguments[0])
        if name.startswith(FOLDER + os.sep) and not name.endswith(".lock"):
            seen += 1
            if seen == AT:
                os.kill(os.getpid(), NUMBER)
sys.addaudithook(audit)
"""


# ---- parsers -----------------------------------------------------------------------------------------------


class _Found(BaseException):
    pass


def parser_of(argv: list[str]) -> argparse.ArgumentParser:
    """The parser that a command reads its arguments with."""
    parse = argparse.ArgumentParser.parse_known_args

    def found(self, *arguments, **options):
        if self.prog.startswith("dual-head "):
            raise _Found(self)
        return parse(self, *arguments, **options)

    argparse.ArgumentParser.parse_known_args = found
    try:
        main(argv)
    except _Found as end:
        return end.args[0]
    finally:
        argparse.ArgumentParser.parse_known_args = parse
    raise AssertionError(f"{argv[0]} parses nothing")


def numeric_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Flags whose values are numbers: what their type makes of 1 is one."""
    flags = []
    for action in parser._actions:
        if action.option_strings and callable(action.type) and action.nargs != 0:
            with suppress(Exception):
                value = action.type("1")
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    flags.append(action.option_strings[0])
    return flags
