"""What the scripts of the experiments share: small sizes, one plan to a folder, tables written into files and pages.

It knows arguments and files, and nothing of what is measured.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from evidence_data import write_json, write_text
from evidence_tables import replaced

from dual_head.errors import DualHeadError


def parsed(parser: argparse.ArgumentParser, small: Mapping[str, Any]) -> argparse.Namespace:
    """Parse the command line; --small, which is added here, makes other defaults of the tiny sizes."""
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    given, _ = parser.parse_known_args()
    if given.small:
        parser.set_defaults(**small)
    return parser.parse_args()


def world_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of a comparison in the demonstration's world: how many seeds, requests and new tokens."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=300, help="new requests that are answered")
    parser.add_argument("--new_tokens", type=int, default=56)
    parser.add_argument("--page", help="a markdown file whose tables between markers are written again")
    return parser


def same_plan(file: Path, plan: dict[str, Any]) -> None:
    """Write down what a folder is for; refuse to go on in that of another plan."""
    if file.is_file() and (there := json.loads(file.read_text())) != plan:
        odd = next(name for name in plan | there if there.get(name) != plan.get(name))
        raise DualHeadError(f"'{file.parent}' has another run ({odd}: {there.get(odd)}). Give another --output_dir.")
    write_json(file, plan)


def same_arguments(args: argparse.Namespace) -> None:
    """Write down the arguments that a folder is for; refuse to go on in that of others."""
    values = {name: str(x) if isinstance(x, Path) else x for name, x in vars(args).items()}
    same_plan(args.output_dir / "plan.json", {k: v for k, v in values.items() if k not in ("output_dir", "page")})


def circumstances() -> dict[str, str]:
    """The command, the day and the machine; of places that are this machine's own, the names."""
    words = [Path(word).name if word.startswith(("/", "..")) else word for word in sys.argv[1:]]
    return {
        "command": " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def publish(
    folder: Path, figures: Mapping[str, Any], tables: Mapping[str, str], page: str | None, *, name: str
) -> None:
    """Write summary.json and tables.md, print the tables, and put them between their markers of a page.

    All figures of a page are kept beside it, in figures/NAME.json, so that each can be looked up.
    """
    write_json(folder / "summary.json", figures)
    text = "\n\n".join(f"<!-- evidence:{name} -->\n\n{table}\n\n<!-- /evidence -->" for name, table in tables.items())
    write_text(folder / "tables.md", text + "\n")
    print(text)
    if page:
        text, missing = replaced(Path(page).read_text(encoding="utf-8"), tables)
        write_text(Path(page), text)
        write_json(Path(page).parent / "figures" / f"{name}.json", figures)
        print(f"{page} has no place for: {', '.join(missing) or 'nothing'}.")
