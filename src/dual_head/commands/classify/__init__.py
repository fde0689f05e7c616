"""`dual-head classify COMMAND`: classifiers that learn from rationales and never write one."""

import importlib
from collections.abc import Sequence

from dual_head.errors import DualHeadError, did_you_mean

COMMANDS = {
    "train": "train a classifier on inputs, labels and rationales",
    "compare": "train under several controls and seeds, and tabulate what sets them apart",
    "evaluate": "measure classifiers on held-out data, with intervals and paired differences",
    "predict": "classify a file or a stream, of any length",
    "export": "write a plain transformers checkpoint, or ONNX",
    "lint": "look for what makes rationales useless, or too good",
    "rationales": "have a teacher write rationales",
}


def run(arguments: Sequence[str]) -> int:
    """Run one of them."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        listed = "\n".join(f"  {command:<12}{said}" for command, said in COMMANDS.items())
        print(f"usage: dual-head classify COMMAND [options]\n\n{__doc__}\n\ncommands:\n{listed}\n")
        print("'dual-head classify COMMAND --help' tells more.")
        return 0
    if name not in COMMANDS:
        raise DualHeadError(f"Unknown command 'classify {name}'.{did_you_mean(name, COMMANDS)}")
    return importlib.import_module(f"{__name__}.{name}").run(arguments[1:])
