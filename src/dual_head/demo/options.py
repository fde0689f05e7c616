"""The options of the demonstration."""

from dataclasses import dataclass

from dual_head.errors import DualHeadError
from dual_head.options import Options, option

RULE, NEW_TOKENS = "concise", 96  # of the demonstrations on a chat model


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


@dataclass(kw_only=True)
class RealOptions(Options):
    """The demonstration on a real chat model. Errors: options of it without --real or --train."""

    real: bool = option(
        False, "show two published guides on a real chat model, which is fetched once", heading="a real chat model"
    )
    train: bool = option(False, "train a guide of your own from that model's replies, in four minutes on two cores")
    guides: str | None = option(None, "folder of guides side by side [the published ones]")
    backbone: str | None = option(None, "folder of the chat model [where it is, or is fetched to]")
    other_precision: bool = option(False, "take a --backbone that is the model of the guides in another precision")
    show: list[str] = option([], "names of the guides to show, one or two", nargs="*", metavar="NAME")
    rule: str | None = option(None, "with --train: what replies are scored by [concise]")
    questions: str | None = option(None, "with --train: text file, a question a line [60 plain ones]", metavar="FILE")
    max_new_tokens: int | None = option(None, "longest reply in tokens [96]", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.real and self.train:
            raise DualHeadError("--real shows guides and --train makes one. Give one of them.")
        for names, is_read, remedy in (
            (("guides", "show"), self.real, "--real"),
            (("rule", "questions"), self.train, "--train"),
            (("backbone", "other_precision", "max_new_tokens"), self.real or self.train, "--real or --train"),
        ):
            if odd := next((name for name in names if getattr(self, name) and not is_read), None):
                raise DualHeadError(f"--{odd} goes with {remedy}. Add it, or leave --{odd} out.")
        if len(self.show) > 2:
            raise DualHeadError(f"--show takes one or two names, not {len(self.show)}.")
