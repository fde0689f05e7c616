"""The options that say which rows are read, for the commands that read a data set and train nothing."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dual_head.classify.data.columns import columns_of, explanation_of, labels_of
from dual_head.options import Options, option

if TYPE_CHECKING:
    from dual_head.classify.data.load import Loaded


@dataclass(kw_only=True)
class DatasetOptions(Options):
    """Which rows, and how they are read."""

    dataset: str = option(help="a file, a folder, a name on the hub, or a task such as boolq", heading="rows")
    split: str = option("train", "which split")
    data_dir: str | None = option(None, "subfolder, or configuration of a data set on the hub")
    format: str = option("auto", "format of the rows; default: told from the first ones")
    columns: str | dict[str, Any] | None = option(
        None, "which columns are what: input=text,label=class, or the same in JSON"
    )
    template: str | None = option(None, "how an input is written from columns: '{premise} Therefore {hypothesis}?'")
    labels: str | list[str] | None = option(
        None, "names of the classes in their order, with commas between, or a JSON list"
    )
    explanation: str = option("1", "which of a row's rationales, from 1, or all")
    multi_label: bool = option(False, "a row may have several labels")
    max_rows: int | None = option(None, "read at most so many rows", least=1)


def load_dataset(args: DatasetOptions, **changed: Any) -> "Loaded":
    """Read the rows that the options name; `changed` are other arguments of `load_examples`."""
    from dual_head.classify.data.load import load_examples

    arguments = {f.name: getattr(args, f.name) for f in fields(DatasetOptions)}
    arguments |= {
        "name": arguments.pop("dataset"),
        "columns": columns_of(args.columns),
        "labels": labels_of(args.labels),
        "explanation": explanation_of(args.explanation),
    }
    return load_examples(**{**arguments, **changed})
