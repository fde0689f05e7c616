"""`dual-head inspect GUIDES`: what a folder of guides is, and whether it fits another backbone; loads no weights."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.backbone import BackboneShape, Decoder
from dual_head.checkpoint import find_file
from dual_head.commands.help import Help
from dual_head.composition import moved_entries
from dual_head.config import AlignedConfig
from dual_head.errors import DualHeadError
from dual_head.fingerprint import Fingerprint
from dual_head.guides import build_guide, guide_class
from dual_head.guides.base import Parameters
from dual_head.loading import read_config
from dual_head.run import load_tokenizer
from dual_head.vocabulary import compare_tokenizers

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


def run(arguments: Sequence[str]) -> int:
    """Print a description, or JSON with --json; with --against, 1 where the guides cannot move there."""
    parser = argparse.ArgumentParser(
        prog="dual-head inspect",
        usage="dual-head inspect GUIDES [--against BACKBONE] [--json]",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("guides", help="folder of guides (the output_dir of training), or a name on the hub")
    parser.add_argument("--against", metavar="BACKBONE", help="say whether the guides can move to this backbone")
    parser.add_argument("--vocab_map", action="store_true", help="with --against: map tokens by their strings")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    if args.against:
        fits, said = compare(args.guides, args.against, vocab_map=args.vocab_map)
        print(json.dumps({"compatible": fits, "because": said}) if args.json else said)
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
    config = read_config(source)
    weights = Path(find_file(source, SAFE_WEIGHTS_NAME))
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config.backbone_config)
    shape, parameters = Decoder(lm).shape, Parameters.of(lm)
    with safe_open(weights, "pt") as file:
        sizes = {name: torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys()}  # noqa: SIM118
    guides = {name: _describe(name, config, sizes, parameters) for name in config.guides or {}}
    fingerprint = config.backbone_fingerprint
    return {
        "backbone": {
            "name_or_path": config.backbone_name_or_path,
            "architecture": type(lm).__name__,
            "parameters": parameters.whole,
            "hidden_size": shape.hidden_size,
            "vocab_size": shape.vocab_size,
            "num_layers": shape.num_layers,
            "fingerprint": Fingerprint.from_dict(fingerprint).short if fingerprint else None,
        },
        "tokenizer": config.tokenizer_fingerprint,
        "fusion": config.fusion,
        "guides": guides,
        "bytes": weights.stat().st_size,
        "forwards_per_token": 1 + sum(guide["forwards"] for guide in guides.values()),
        "training": config.training,
    }


def _describe(name: str, config: AlignedConfig, sizes: dict[str, int], backbone: Parameters) -> dict:
    entry = (config.guides or {})[name]
    with torch.device("meta"):
        guide = build_guide(entry, BackboneShape(**entry["shape"]))
    own = {key: size for key, size in sizes.items() if key.startswith(f"{name}.")}
    parameters = {key: size for key, size in own.items() if not key.endswith("transfer.vocab_map")}
    # A guide that was moved stays as it is, and the map of hidden states in between is trained.
    with_gradient = [key for key in parameters if not entry.get("adapter") or ".transfer." in key]
    executed = guide.executed(sum(parameters.values()), backbone)
    layers = [*map(str, guide.hidden_layers), *([] if guide.shape.num_layers in guide.hidden_layers else ["last"])]
    return {
        "kind": entry["kind"],
        "config": entry["config"],
        "alpha": (config.alpha or {}).get(name, 1.0),
        "trained": sum(parameters[key] for key in with_gradient),
        "stored": sum(own.values()),
        "executed": executed,
        "share_of_backbone": executed / backbone.whole,
        "forwards": guide.forwards,
        "reads": "tokens" if guide.reads_tokens else "layers " + ", ".join(layers),
        "cache_layers": guide.cache_layers,
    }


def compare(source: str, other: str, *, vocab_map: bool = False) -> tuple[bool, str]:
    """Say whether guides can move to another backbone, and what would happen or why not; loads no weights."""
    config = read_config(source)
    home = source if (Path(source) / "tokenizer_config.json").is_file() else str(config.backbone_name_or_path)
    found = compare_tokenizers(load_tokenizer(home), load_tokenizer(other))
    try:
        with torch.device("meta"):
            shape = Decoder(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(other))).shape
    except (OSError, ValueError) as error:
        raise DualHeadError(f"Could not read the backbone '{other}': {str(error).splitlines()[0]}") from error
    try:
        entries = moved_entries(config, shape, found, vocab_map=vocab_map)
    except DualHeadError as error:
        return False, f"not compatible: {error}"
    lines = [f"compatible: {found}"]
    for name, entry in entries.items():
        trained = BackboneShape(**entry["shape"])
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
    console = Console(highlight=False)
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
