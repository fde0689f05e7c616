"""Where a classifier is, how it is loaded, and how much it classifies at a time, for the commands that run one."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from dual_head.options import Options, option
from dual_head.options.fields import DTYPE_HELP

if TYPE_CHECKING:
    from dual_head.classify.predict import Predictor

CLASSIFIER = "folder of a classifier (the output_dir of training), or a name on the hub"


@dataclass(kw_only=True)
class LoadingOptions(Options):
    """How a classifier is loaded."""

    backbone: str | None = option(None, "where the backbone is now, if not where it was in training", heading="loading")
    dtype: str = option("auto", DTYPE_HELP)
    device: str | None = option(None, "cpu, cuda, cuda:1, mps; default: the accelerator where there is one")
    device_map: str | None = option(None, "as transformers has it, e.g. auto")
    attn_implementation: str | None = option(None, "attention of the backbone: sdpa, eager, flash_attention_2")
    trust_remote_code: bool = option(False, "run code that comes with the backbone")


@dataclass(kw_only=True)
class PredictorOptions(LoadingOptions):
    """The same, and how much is classified at a time."""

    batch_tokens: int | None = option(
        None, "tokens of a batch, padding included; default: 8192, CPU 1024", heading="batches", least=1
    )
    max_rows_per_batch: int = option(512, "most rows of a batch", least=1)
    window: int = option(4096, "rows read, and sorted by length, at a time", least=1)
    autocast: bool = option(False, "multiply in bfloat16, whatever the weights are")


def load_predictor(args: PredictorOptions, folder: str, **options: Any) -> "Predictor":
    """Load a classifier as the options say."""
    # Imported late: a mistyped flag should not wait for torch.
    from dual_head.classify.predict import Predictor

    return Predictor.load(folder, **{f.name: getattr(args, f.name) for f in fields(PredictorOptions)}, **options)
