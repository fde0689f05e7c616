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
from dual_head.options import option, require_effect
from dual_head.options.flags import OptionParser

ROWS = {
    "kind": "{kind}",
    "default alpha": "{alpha:g}",
    "parameters trained": "{trained:,}",
    "parameters stored": "{stored:,}",
    "executed per token": "{executed:,}",
    "of the backbone": "{share_of_backbone:.2%}",
    "forwards per token": "+{forwards:g}",
    "reads": "{reads}",
    "cache layers": "{cache_layers}",
}


@dataclass(kw_only=True)
class InspectOptions(GuidesOptions):
    """Which guides, and how they are described."""

    against: str | None = option(None, "tell whether the guides can move to this backbone", metavar="BACKBONE")
    vocab_map: bool = option(False, "with --against: map tokens by their strings")
    json: bool = option(False, "print JSON")


build_parser = partial(OptionParser, InspectOptions, command="inspect", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Print a description, or JSON with --json; with --against, 1 if the guides cannot move there."""
    (args,) = build_parser().read(arguments)
    require_effect(args, (("vocab_map",), args.against, "a comparison, and none is made here. Add --against"))
    if args.against:
        compatible, reason = compare(args.guides, args.against, vocab_map=args.vocab_map)
        print(json.dumps({"compatible": compatible, "because": reason}) if args.json else printable(reason))
        return 0 if compatible else 1
    description = describe(args.guides)
    if args.json:
        print(json.dumps(description, indent=2))
    else:
        _print(description)
    return 0


def describe(source: str) -> dict[str, Any]:
    """Describe a checkpoint: {"backbone": {...}, "guides": {name: {...}}, "bytes", "tokenizer", "training"}.

    Per guide: trained (parameters with a gradient), stored (values on disk), executed (parameters read per
    generated token, beyond the backbone's), forwards (of whole models per token, beyond the backbone's one), the
    cache layers it fills, and what it reads.
    """
    values, sizes = read_values(source), read_sizes(source)
    costs = values.get("costs") or _costs(source, sizes)
    with reading(f"Cannot read '{find_file(source, CONFIG_NAME)}'", COPY):
        guides = {name: _describe(name, values, costs, sizes) for name in values.get("guides") or {}}
        fingerprint = values.get("backbone_fingerprint")
        return {
            "backbone": {
                "name_or_path": values.get("backbone_name_or_path"),
                **costs["backbone"],
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
    """The costs of guides in an older folder, which does not record them."""
    from dual_head.model.costs import costs
    from dual_head.model.pretrained import read_config

    config = read_config(source)
    with reading(f"Cannot build the guides of '{source}' from its config.json", COPY):
        return costs(config, sizes)


def _describe(name: str, values: dict[str, Any], costs: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    entry, cost = values["guides"][name], costs["guides"][name]
    tensors = {key: size for key, size in sizes.items() if key.startswith(f"{name}.")}
    parameters = {key: size for key, size in tensors.items() if not key.endswith(VOCAB_MAP)}
    # A guide that was moved is frozen; only the map of hidden states before it is trained.
    trainable = {key: size for key, size in parameters.items() if not entry.get("adapter") or ".transfer." in key}
    return {
        "kind": entry["kind"],
        "config": entry["config"],
        "alpha": (values.get("alpha") or {}).get(name, 1.0),
        "trained": sum(trainable.values()),
        "stored": sum(tensors.values()),
        "executed": cost["executed"],
        "share_of_backbone": cost["executed"] / costs["backbone"]["parameters"],
        "forwards": cost["forwards"],
        "reads": cost["reads"],
        "cache_layers": entry["cache_layers"],
    }


def compare(source: str, other: str, *, vocab_map: bool = False) -> tuple[bool, str]:
    """Tell whether guides can move to another backbone, and how or why not; loads no weights."""
    # Imported late: a description of a folder should not wait for torch.
    import torch

    from dual_head.backbone.decoder import BackboneShape, Decoder
    from dual_head.backbone.load import auto_class, load_config
    from dual_head.guides import guide_class
    from dual_head.model.pretrained import load_tokenizer, read_config
    from dual_head.model.switch import moved_entries
    from dual_head.model.vocabulary import compare_tokenizers

    config = read_config(source)
    folder = source if (Path(source) / "tokenizer_config.json").is_file() else str(config.backbone_name_or_path)
    tokens = compare_tokenizers(load_tokenizer(folder), load_tokenizer(other))
    with (
        reading(f"Could not read the backbone '{other}'", "Give a folder that holds config.json."),
        torch.device("meta"),
    ):
        backbone_config = load_config(other)
        shape = Decoder(auto_class(backbone_config).from_config(backbone_config)).shape
    try:
        entries = moved_entries(config, shape, tokens, vocab_map=vocab_map)
    except DualHeadError as error:
        return False, f"not compatible: {error}"
    lines = [f"compatible: {tokens}"]
    for name, entry in entries.items():
        origin = BackboneShape.from_dict(entry["shape"])
        if guide_class(entry["kind"]).reads_tokens:
            place = entry["config"].get("model")
            move = f"a model that reads tokens; it stays {place}, beside this backbone"
            if place is None:
                move = "it runs the backbone itself, so this one from then on"
        elif origin == shape:
            move = "fits as it is (whether the weights are the same is checked on loading)"
        else:
            move = (
                f"width {shape.hidden_size} -> {origin.hidden_size}"
                f"{' (pooled)' if origin.hidden_size != shape.hidden_size else ''}, layers matched by depth "
                f"({shape.num_layers} here, {origin.num_layers} there), {shape.vocab_size} logits here, "
                f"{origin.vocab_size} there"
            )
        lines.append(f"{name}: {move}")
    return True, "\n".join(lines)


def _print(description: dict[str, Any]) -> None:
    console = Terminal()
    backbone = description["backbone"]
    about = {
        "backbone": f"{backbone['name_or_path']} ({backbone['architecture']})",
        "": f"{backbone['parameters']:,} parameters, d = {backbone['hidden_size']}, V = {backbone['vocab_size']}, "
        f"{backbone['num_layers']} layers",
        "fingerprints": f"backbone {backbone['fingerprint']}, tokenizer {description['tokenizer'] or 'not recorded'}",
        "fusion": description["fusion"],
        "on disk": f"{description['bytes']:,} bytes",
        "forwards per token": f"{description['forwards_per_token']:g}",
        "trained on": str((description["training"] or {}).get("dataset", "not recorded")),
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in about.items():
        table.add_row(*row)
    console.print(table)
    guides = Table(title="guides", title_justify="left")
    guides.add_column("")
    for name in description["guides"]:
        guides.add_column(name, justify="right")
    for row, template in ROWS.items():
        guides.add_row(row, *(template.format(**guide) for guide in description["guides"].values()))
    console.print(guides)
    for name, guide in description["guides"].items():
        # Token ids of texts that stand beside them are for the guide alone.
        config = {key: value for key, value in guide["config"].items() if not isinstance(value, dict)}
        console.print(f"{name}: {', '.join(f'{key}={value}' for key, value in config.items())}")
