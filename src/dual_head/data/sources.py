"""Where rows come from: a file, a folder or the hub, as (row, location) in order.

A broken line is a row of None and never stops the reading. `files` reads one file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from dual_head.data import RowReport
from dual_head.data.files import SUFFIXES, rows_of_file
from dual_head.errors import DualHeadError

__all__ = ["ClassName", "hub_rows", "is_data_name", "is_hub_name", "rows_of", "rows_of_file"]

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")  # weights as others keep them; never read here
# What `datasets` writes beside the rows of a data set.
_ABOUT = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def _split_of(path: Path) -> str | None:
    """The split a file's name tells, or else the name of the nearest folder that tells one."""
    words = (word for part in reversed(path.parts) for word in re.findall("[a-z]+", part.lower()))
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _files(root: Path, split: str, drops: RowReport) -> list[Path]:
    """The files under `root` that hold `split`, or those of the only split there is, with a note."""
    if root.is_file():
        return [root]
    # Spark and Dask write train.parquet as a folder of parts.
    paths = sorted(path for path in root.rglob("*") if _holds_rows(path.relative_to(root)) and not path.is_dir())
    splits = {path: _split_of(path.relative_to(root)) for path in paths}
    if not paths:
        raise DualHeadError(f"No data in '{root}'. Put files there that end in: {', '.join(SUFFIXES)}.")
    # "latest.jsonl" is not of the split "test"; a split of another name, as "train_prefs", is looked for in file names.
    known = _SPLITS.get(split)
    matching = [path for path, name in splits.items() if (name == known if known else split in path.name)]
    names = sorted({name or "unnamed" for name in splits.values()})
    if not matching and len(names) > 1:
        raise DualHeadError(f"No file in '{root}' is named for split '{split}'. It has: {', '.join(names)}.")
    if not matching:
        drops.notes[f"no file in '{root}' is named for split '{split}'; read the {names[0]} files"] += 1
    return matching or paths


def _holds_rows(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)  # such as the hub's own cache, or ._a.json of macOS
    return is_data_name(path.name) and not hidden and path.name not in _ABOUT


def is_data_name(name: str) -> bool:
    """Whether a file of this name holds rows: its ending is one of `SUFFIXES`, perhaps with .gz behind."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def is_hub_name(name: str) -> bool:
    """Whether the hub could have something of this name: NAME or OWNER/NAME, but not the name of a file of weights."""
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)) and not name.endswith((*PICKLES, ".safetensors"))


class ClassName(str):
    """The name of a class, and those of all classes of its column, in the order of their numbers."""

    names: tuple[str, ...]

    @classmethod
    def all_of(cls, names: Sequence[str]) -> list[Self]:
        """Make one of each name."""
        classes = [cls(name) for name in names]
        for class_name in classes:
            class_name.names = tuple(names)
        return classes


def _with_names(row: Mapping[str, Any], classes: Mapping[str, Sequence[ClassName]]) -> dict[str, Any]:
    """The row with names for the numbers of classes; -1, an unknown class, stays."""

    def name_of(value: Any, names: Sequence[ClassName]) -> Any:
        if isinstance(value, list):
            return [name_of(number, names) for number in value]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else value

    return {column: name_of(value, classes[column]) if column in classes else value for column, value in row.items()}


def _classes(features: Mapping[str, Any] | None) -> dict[str, list[ClassName]]:
    """The names of every column of a data set that holds classes, or lists of them."""
    each = {column: getattr(feature, "feature", feature) for column, feature in (features or {}).items()}
    return {column: ClassName.all_of(kind.names) for column, kind in each.items() if hasattr(kind, "str2int")}


def hub_rows(
    name: str, split: str, *, configuration: str | None = None, data_dir: str | None = None
) -> Iterator[tuple[Any, str]]:
    """Yield the rows of a data set on the hub, classes by name; data_dir: a configuration of it, or else a folder."""
    import datasets

    try:
        if data_dir and data_dir in datasets.get_dataset_config_names(name):
            configuration, data_dir = data_dir, None
        address = (name, configuration) if configuration else (name,)
        rows: Any = datasets.load_dataset(*address, data_dir=data_dir, split=split)
    except (OSError, ValueError) as error:
        remedy = "Pass a local path, or check the name, split= and data_dir= there."
        raise DualHeadError(f"'{name}' is not a local path, and the hub says: {error} {remedy}") from error
    except RuntimeError as error:  # how datasets refuses to run a data set's own script
        remedy = "Name a copy of it without a script, or download its files and pass their folder."
        raise DualHeadError(f"'{name}' cannot be read from the hub: {error}. {remedy}") from error
    classes = _classes(getattr(rows, "features", None))
    where = f"{' '.join(address)} [{split}] row"
    yield from ((_with_names(row, classes) if classes else row, f"{where} {i}") for i, row in enumerate(rows, 1))


def rows_of(name: str, split: str, data_dir: str | None, drops: RowReport) -> Iterator[tuple[Any, str]]:
    """Yield each row, None for a line that is not JSON, with its location."""
    root = Path(name).expanduser() / (data_dir or "")
    if root.exists():
        for file in _files(root, split, drops):
            yield from rows_of_file(file, drops)
    elif not is_hub_name(name) or is_data_name(name) or Path(name).exists():
        raise DualHeadError(f"There is no file or folder '{root}'. Check the path; a hub name is owner/name.")
    else:
        yield from hub_rows(name, split, data_dir=data_dir)
