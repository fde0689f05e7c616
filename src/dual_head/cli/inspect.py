"""`dual-head inspect GUIDES`: show what guides are, what they cost, and which backbone they fit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from dual_head.backbone.checkpoint import (
    CONFIG_NAME,
    COPY,
    SAFE_WEIGHTS_NAME,
    VOCAB_MAP,
    find_file,
    read_sizes,
    read_values,
)
from dual_head.backbone.fingerprint import Fingerprint
from dual_head.cli.loading import GuidesOptions
from dual_head.console.terminal import Terminal, printable
from dual_head.errors import DualHeadError
from dual_head.files.reading import reading
from dual_head.options import option
from dual_head.options.flags import OptionParser

ROWS = {
    "kind": lambda guide: guide["kind"],
    "default alpha": lambda guide: f"{guide['alpha']:g}",
    "parameters trained": lambda guide: f"{guide['trained']:,}",
    "parameters stored": lambda guide: f"{guide['stored']:,}",
    "executed per token": lambda guide: f"{guide['executed']:,}",
    "of the backbone": lambda guide: f"{guide['share_of_backbone']:.2%}",
    "forwards per token": lambda guide: f"+{guide['forwards']:g}",
    "reads": lambda guide: guide["reads"],
    "cache layers": lambda guide: str(guide["cache_layers"]),
}


@dataclass(kw_only=True)
class InspectOptions(GuidesOptions):
    """What to describe."""

    against: str | None = option(None, "say whether the guides can move to this backbone", metavar="BACKBONE")
    vocab_map: bool = option(False, "with --against: map tokens by their strings")
    json: bool = option(False, "print JSON")


build_parser = partial(OptionParser, InspectOptions, command="inspect", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Print a description, or JSON with --json; with --against, 1 where the guides cannot move there."""
    (args,) = build_parser().read(arguments)
    if args.against:
        fits, said = compare(args.guides, args.against, vocab_map=args.vocab_map)
        print(json.dumps({"compatible": fits, "because": said}) if args.json else printable(said))
        return 0 if fits else 1
    described = describe(args.guides)
    if args.json:
        print(json.dumps(described, indent=2))
    else:
        _print(described)
    return 0


def describe(source: str) -> dict:
    """Describe a checkpoint: {"backbone": {...}, "guides": {name: {...}}, "bytes", "tokenizer", "training"}.

    Per guide: trained (parameters with a gradient), stored (values on disk), executed (parameters read per
    generated token, beyond the backbone's), forwards (of whole models per token, beyond the backbone's one), the
    cache layers it fills, and what it reads.
    """
    values, sizes = read_values(source), read_sizes(source)
    found = values.get("costs") or _costs(source, sizes)
    with reading(f"Cannot read '{find_file(source, CONFIG_NAME)}'", COPY):
        return _described(source, values, found, sizes)


def _described(source: str, values: dict[str, Any], found: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    guides = {name: _describe(name, values, found, sizes) for name in values.get("guides") or {}}
    fingerprint = values.get("backbone_fingerprint")
    return {
        "backbone": {
            "name_or_path": values.get("backbone_name_or_path"),
            **found["backbone"],
            "fingerprint": Fingerprint.from_dict(fingerprint).short if fingerprint else None,
        },
        "tokenizer": values.get("tokenizer_fingerprint"),
        "fusion": values.get("fusion", "logits"),
        "guides": guides,
        "bytes": Path(find_file(source, SAFE_WEIGHTS_NAME)).stat().st_size,
        "forwards_per_token": 1 + sum(guide["forwards"] for guide in guides.values()),
        "training": values.get("training"),
    }


def _costs(source: str, sizes: dict[str, int]) -> dict[str, Any]:
    """What an older folder does not record."""
    from dual_head.model.costs import costs
    from dual_head.model.pretrained import read_config

    config = read_config(source)
    with reading(f"Cannot build the guides of '{source}' from its config.json", COPY):
        return costs(config, sizes)


def _describe(name: str, values: dict[str, Any], found: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    entry, cost = values["guides"][name], found["guides"][name]
    stored = {key: size for key, size in sizes.items() if key.startswith(f"{name}.")}
    parameters = {key: size for key, size in stored.items() if not key.endswith(VOCAB_MAP)}
    # A guide that was moved stays as it is, and the map of hidden states in between is trained.
    with_gradient = [key for key in parameters if not entry.get("adapter") or ".transfer." in key]
    return {
        "kind": entry["kind"],
        "config": entry["config"],
        "alpha": (values.get("alpha") or {}).get(name, 1.0),
        "trained": sum(parameters[key] for key in with_gradient),
        "stored": sum(stored.values()),
        "executed": cost["executed"],
        "share_of_backbone": cost["executed"] / found["backbone"]["parameters"],
        "forwards": cost["forwards"],
        "reads": cost["reads"],
        "cache_layers": entry["cache_layers"],
    }


def compare(source: str, other: str, *, vocab_map: bool = False) -> tuple[bool, str]:
    """Say whether guides can move to another backbone, and what would happen or why not; loads no weights."""
    # Imported late: what a folder says of itself should not wait for torch.
    import torch
    from transformers import AutoModelForCausalLM

    from dual_head.backbone.decoder import BackboneShape, Decoder
    from dual_head.backbone.load import load_config
    from dual_head.guides import guide_class
    from dual_head.model.pretrained import load_tokenizer, read_config
    from dual_head.model.switch import moved_entries
    from dual_head.model.vocabulary import compare_tokenizers

    config = read_config(source)
    home = source if (Path(source) / "tokenizer_config.json").is_file() else str(config.backbone_name_or_path)
    found = compare_tokenizers(load_tokenizer(home), load_tokenizer(other))
    with (
        reading(f"Could not read the backbone '{other}'", "Give a folder that holds config.json."),
        torch.device("meta"),
    ):
        shape = Decoder(AutoModelForCausalLM.from_config(load_config(other))).shape
    try:
        entries = moved_entries(config, shape, found, vocab_map=vocab_map)
    except DualHeadError as error:
        return False, f"not compatible: {error}"
    lines = [f"compatible: {found}"]
    for name, entry in entries.items():
        trained = BackboneShape.from_dict(entry["shape"])
        if guide_class(entry["kind"]).reads_tokens:
            model = entry["config"]["model"]
            lines.append(f"{name}: a model that reads tokens; goes on as {model}, beside this backbone")
            continue
        if trained == shape:
            lines.append(f"{name}: fits as it is (whether the weights are the same is checked on loading)")
            continue
        lines.append(
            f"{name}: width {shape.hidden_size} -> {trained.hidden_size}"
            f"{' (pooled)' if trained.hidden_size != shape.hidden_size else ''}, layers matched by depth "
            f"({shape.num_layers} here, {trained.num_layers} there), {shape.vocab_size} logits here, "
            f"{trained.vocab_size} there"
        )
    return True, "\n".join(lines)


def _print(described: dict) -> None:
    console = Terminal()
    backbone = described["backbone"]
    about = {
        "backbone": f"{backbone['name_or_path']} ({backbone['architecture']})",
        "": f"{backbone['parameters']:,} parameters, d = {backbone['hidden_size']}, V = {backbone['vocab_size']}, "
        f"{backbone['num_layers']} layers",
        "fingerprints": f"backbone {backbone['fingerprint']}, tokenizer {described['tokenizer'] or 'not recorded'}",
        "fusion": described["fusion"],
        "on disk": f"{described['bytes']:,} bytes",
        "forwards per token": f"{described['forwards_per_token']:g}",
        "trained on": str((described["training"] or {}).get("dataset", "not recorded")),
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in about.items():
        table.add_row(*row)
    console.print(table)
    guides = Table(title="guides", title_justify="left")
    guides.add_column("")
    for name in described["guides"]:
        guides.add_column(name, justify="right")
    for row, show in ROWS.items():
        guides.add_row(row, *(show(guide) for guide in described["guides"].values()))
    console.print(guides)
    for name, guide in described["guides"].items():
        console.print(f"{name}: {', '.join(f'{key}={value}' for key, value in guide['config'].items())}")
