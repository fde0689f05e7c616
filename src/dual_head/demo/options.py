"""The options of the demonstration."""

from dataclasses import dataclass

from dual_head.options import Options, option


@dataclass(kw_only=True)
class DemoOptions(Options):
    """How long to train, and how much to measure."""

    output_dir: str = option("demo-out", "folder for the guide, the picture and the figures")
    pairs: int = option(4000, "preference pairs to train on", least=1)
    steps: int = option(300, "training steps", least=1)
    batch_size: int = option(32, "pairs a step", least=1)
    learning_rate: float = option(3e-3, "peak learning rate", least=0)
    set: list[str] = option(
        [],
        "options of the method dual_head; they override the demonstration's preference_on=policy beta_r=0.5",
        nargs="*",
        metavar="NAME=VALUE",
    )
    prompts: int = option(300, "requests to measure on", least=1)
    seed: int = option(0, "seed of the data, of training and of sampling", least=0)
