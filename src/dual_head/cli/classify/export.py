"""`dual-head classify export CLASSIFIER`: write a plain transformers checkpoint, or ONNX."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dual_head.cli.classify.loading import CLASSIFIER
from dual_head.console.terminal import Terminal
from dual_head.errors import DualHeadError
from dual_head.files.places import exclusive, require_empty
from dual_head.options import Options, option
from dual_head.options.flags import OptionParser

ONNX_FILE = "model.onnx"


@dataclass(kw_only=True)
class ExportOptions(Options):
    """Which classifier, as what, and where to."""

    classifier: str = option(help=CLASSIFIER, positional=True)
    output_dir: str = option(help="folder for what is written")
    onnx: bool = option(False, f"write {ONNX_FILE}: any head, any decoder torch can trace")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype of the weights, without --onnx")
    overwrite: bool = option(False, "replace the model in a folder that is not empty")
    backbone: str | None = option(None, "where the backbone is now, if not where training found it")
    trust_remote_code: bool = option(False, "run code that comes with the backbone")


build_parser = partial(OptionParser, ExportOptions, command="classify export", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, and write into a folder that is held."""
    (args,) = build_parser().read(arguments)
    if args.onnx and args.dtype != "float32":
        raise DualHeadError("An ONNX file is written in float32. Leave --dtype out, or quantise the file afterwards.")
    with exclusive(args.output_dir):
        return _export(args, Path(args.output_dir))


def _export(args: ExportOptions, output: Path) -> int:
    """Load in fp32, write, and say what was written."""
    # Imported late: a mistyped option should not wait for torch.
    from dual_head.classify.calibration import load_calibration
    from dual_head.classify.config import read_classifier_config
    from dual_head.classify.export.onnx import export_onnx
    from dual_head.classify.export.plain import EXPORT_FILE, export, require_plain
    from dual_head.classify.model import DualHeadReasoningModel
    from dual_head.model.pretrained import load_tokenizer

    reads = (args.classifier, args.backbone)
    require_empty(output, record=EXPORT_FILE, overwrite=args.overwrite, reads=reads)
    if not args.onnx:  # a head that does not fit should not wait for the backbone
        require_plain(read_classifier_config(args.classifier))
    model = DualHeadReasoningModel.from_pretrained(
        args.classifier, backbone=args.backbone, dtype="float32", trust_remote_code=args.trust_remote_code
    )
    tokenizer = load_tokenizer(args.classifier, args.trust_remote_code)
    options = {"overwrite": args.overwrite, "temperature": load_calibration(args.classifier).temperature}
    if args.onnx:
        written = export_onnx(model, tokenizer, output / ONNX_FILE, **options)
    else:
        written = export(model, tokenizer, output, dtype=args.dtype, **options)
    console = Terminal(soft_wrap=True)
    console.print(f"written  {output} ({written.architecture}, {written.bytes:,} bytes)")
    console.print(f"checked  its logits differ by at most {written.difference:.2g} from the classifier's")
    for note in written.notes:
        console.print(f"note     {note}")
    how = f'InferenceSession("{output / ONNX_FILE}")' if args.onnx else f'pipeline("text-classification", "{output}")'
    console.print(f"load it  {how}")
    return 0
