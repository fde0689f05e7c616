"""Where a classifier is, how it is loaded, and how much it classifies at a time, for the commands that run one."""

from dataclasses import dataclass

from dual_head.options import Options, option

CLASSIFIER = "folder of a classifier (the output_dir of training), or a name on the hub"


@dataclass(kw_only=True)
class LoadingOptions(Options):
    """How a classifier is loaded."""

    backbone: str | None = option(None, "where the backbone is now, if not where it was in training", heading="loading")
    dtype: str = option("auto", "of the weights: auto, float32, bfloat16 or float16")
    device: str | None = option(None, "cpu, cuda, cuda:1, mps; default: the accelerator where there is one")
    device_map: str | None = option(None, "as transformers has it, e.g. auto")
    attn_implementation: str | None = option(None, "attention of the backbone: sdpa, eager, flash_attention_2")
    trust_remote_code: bool = option(False, "run code that comes with the backbone")


@dataclass(kw_only=True)
class BatchOptions(Options):
    """How much is classified at a time."""

    batch_tokens: int | None = option(
        None, "of a batch, padding included; default: 8192, CPU 1024", heading="batches", least=1
    )
    max_rows_per_batch: int = option(512, "rows of a batch", least=1)
    window: int = option(4096, "rows read, and sorted by length, at a time", least=1)
    autocast: bool = option(False, "multiply in bfloat16, whatever the weights are")
