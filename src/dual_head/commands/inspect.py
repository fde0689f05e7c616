"""`dual-head inspect GUIDES`: what a folder of guides is, without loading the backbone."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_NAME

from dual_head.backbone import BackboneShape, Fingerprint
from dual_head.checkpoint import find_file
from dual_head.commands.help import Help
from dual_head.guides import Guide, build_guide
from dual_head.loading import read_config

ROWS = {
    "kind": lambda guide: guide["kind"],
    "default alpha": lambda guide: f"{guide['alpha']:g}",
    "parameters trained": lambda guide: f"{guide['trained']:,}",
    "parameters stored": lambda guide: f"{guide['stored']:,}",
    "executed per token": lambda guide: f"{guide['executed']:,}",
    "of the backbone": lambda guide: f"{guide['share_of_backbone']:.2%}",
    "reads layers": lambda guide: ", ".join(map(str, guide["layers"])),
    "cache layers": lambda guide: str(guide["cache_layers"]),
}


def run(arguments: Sequence[str]) -> int:
    """Print a description, or JSON with --json."""
    parser = argparse.ArgumentParser(
        prog="dual-head inspect",
        usage="dual-head inspect GUIDES [--json]",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("guides", help="folder of guides (the output_dir of training), or a name on the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)
    described = describe(args.guides)
    if args.json:
        print(json.dumps(described, indent=2))
    else:
        _print(described)
    return 0


def describe(source: str) -> dict:
    """Describe a checkpoint: {"backbone": {...}, "guides": {name: {...}}, "bytes", "tokenizer", "training"}.

    Per guide: trained (parameters with a gradient), stored (values on disk), executed (parameters read per
    generated token, beyond the backbone's), the cache layers it fills, and which hidden states it reads.
    """
    config = read_config(source)
    weights = Path(find_file(source, SAFE_WEIGHTS_NAME))
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config.backbone_config)
        text = lm.config.get_text_config(decoder=True)
        shape = BackboneShape(text.hidden_size, lm.get_output_embeddings().weight.shape[0], text.num_hidden_layers)
        guides = {
            name: (entry, build_guide(entry, shape), (config.alpha or {}).get(name, 1.0))
            for name, entry in (config.guides or {}).items()
        }
    backbone_parameters = sum(p.numel() for p in lm.parameters())
    return {
        "backbone": {
            "name_or_path": config.backbone_name_or_path,
            "architecture": type(lm).__name__,
            "parameters": backbone_parameters,
            "hidden_size": shape.hidden_size,
            "vocab_size": shape.vocab_size,
            "num_layers": shape.num_layers,
            "fingerprint": Fingerprint.from_dict(config.backbone_fingerprint).short
            if config.backbone_fingerprint
            else None,
        },
        "tokenizer": config.tokenizer_fingerprint,
        "fusion": config.fusion,
        "guides": {name: _describe(*parts, backbone_parameters) for name, parts in guides.items()},
        "bytes": weights.stat().st_size,
        "forwards_per_token": 1,
        "training": config.training,
    }


def _describe(entry: dict, guide: Guide, alpha: float, backbone_parameters: int) -> dict:
    count = sum(p.numel() for p in guide.parameters())
    return {
        "kind": entry["kind"],
        "config": entry["config"],
        "alpha": alpha,
        "trained": sum(p.numel() for p in guide.parameters() if p.requires_grad),
        "stored": sum(tensor.numel() for tensor in guide.state_dict().values()),
        "executed": count,
        "share_of_backbone": count / backbone_parameters,
        "layers": [*guide.hidden_layers, "last"],
        "cache_layers": guide.cache_layers,
    }


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
        "forwards per token": str(described["forwards_per_token"]),
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
