"""The options of an evaluation: each is a field, a flag of `dual-head eval` and a key of its YAML file."""

from dataclasses import dataclass, fields
from typing import Any

from dual_head.errors import DualHeadError
from dual_head.evaluate.types import DECODING, Decoding
from dual_head.files.reading import yaml_value
from dual_head.options import option, require_effect
from dual_head.options.fields import DTYPE_HELP, OTHER_PRECISION_HELP, SAMPLING, changed

__all__ = ["EvaluationOptions"]

# What multiple choice depends on; any other option would change nothing there.
OF_CHOICES = {"benchmark", "models", "output_dir", "source", "num_samples", "seed", "batch_size"}
OF_CHOICES |= {"backbone", "other_precision", "dtype", "device", "trust_remote_code"}


@dataclass(kw_only=True)
class EvaluationOptions(Decoding):
    """The questions, the systems, the judge, and what else is measured."""

    benchmark: str = option(help="one of those below", positional=True, heading="")
    models: list[str] = option(
        help="systems: folders of guides (a strength as PATH@1.5 or PATH@helpful:0.5+harmless:1), plain models, "
        "adapters, files of answers, endpoints (URL or openai:MODEL@URL), best_of:8:REWARD:of:PATH; with commas "
        "between, or repeated",
        repeat=True,
    )
    source: str | None = option(
        None, "file, folder or hub name; default: where the benchmark is published", heading="questions"
    )
    split: str | None = option(None, "split, where the source has several; default: the published one, or test")
    num_samples: int | None = option(None, "number of questions, drawn at random; default: all", least=1)
    chat: bool = option(False, "a text is a user's message; default where a tokenizer has a chat template")
    raw: bool = option(False, "continue texts as they are")
    max_new_tokens: int | None = option(
        None, "longest reply in tokens; default: 128, or half of the smallest context", heading=DECODING, least=1
    )
    batch_size: int = option(16, "questions at a time", heading=DECODING, least=1)
    judge: str | None = option(
        None,
        "rule, rule:module:function, reward:PATH, lm:PATH, openai:MODEL or openai:MODEL@URL, or another of those below",
        heading="judging",
    )
    against: str | None = option(None, "the system that others are compared with, or all; default: the first")
    one_order: bool = option(False, "ask a judge about one order only: cheaper, biased")
    judge_option: list[str] | None = option(
        None,
        "NAME=VALUE, repeatable: template, concurrency, requests_per_minute, timeout, input_price, ...",
        repeat=True,
    )
    reward: list[str] | None = option(
        None,
        "rule:NAME, module:function, or the folder of a reward model that guided none of the systems; repeatable",
        heading="measuring",
        repeat=True,
    )
    embedder: str | None = option(None, "sentence-transformers model for coherence")
    base: str | None = option(None, "system under which other systems without guides are measured: KL, perplexity")
    efficiency: str | None = option(
        None, "time and memory of all, in turns, at these batch sizes [1,8]", nargs="?", const="1,8", commas=True
    )
    skip_measures: bool = option(False, "leave out all that is not judged")
    allow_missing: bool = option(
        False, "leave out questions that some have no answer to", heading="when systems differ"
    )
    force: bool = option(False, "compare what was decoded differently, or judged by itself")
    endpoint_option: list[str] | None = option(
        None,
        "NAME=VALUE, repeatable, of systems that are endpoints: concurrency, timeout, limit, ...",
        heading="loading",
        repeat=True,
    )
    backbone: str | None = option(None, "a copy of the guides' backbone, if not where they were trained")
    other_precision: bool = option(False, OTHER_PRECISION_HELP)
    dtype: str = option("auto", DTYPE_HELP)
    device: str | None = option(None, "cpu, cuda, cuda:1, mps; default: where it loads")
    trust_remote_code: bool = option(False, "run code that comes with a model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat and self.raw:
            raise DualHeadError("--raw continues texts, and --chat makes them messages. Leave one out.")
        _ = self.batch_sizes  # refuses what is no number

    @property
    def judge_options(self) -> dict[str, Any]:
        """Fields of the judge's `Options`."""
        return _assignments("judge_option", self.judge_option)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes at which time and memory are measured."""
        sizes = [] if self.efficiency is None else [part.strip() for part in self.efficiency.split(",")]
        if wrong := [part for part in sizes if not part.isdecimal() or not int(part)]:
            raise DualHeadError(f"--efficiency takes batch sizes, such as 1,8,32, not '{wrong[0]}'.")
        return tuple(map(int, dict.fromkeys(sizes)))

    @property
    def load(self) -> dict[str, Any]:
        """Fields of `LoadOptions`."""
        endpoint = _assignments("endpoint_option", self.endpoint_option)
        names = ("backbone", "other_precision", "dtype", "device", "trust_remote_code")
        return {name: getattr(self, name) for name in names} | {"endpoint_options": endpoint}

    def decoding(self, new_tokens: int) -> Decoding:
        """How replies are generated; new_tokens: where `max_new_tokens` is not given."""
        values = {f.name: getattr(self, f.name) for f in fields(Decoding)}
        return Decoding(**values | {"max_new_tokens": self.max_new_tokens or new_tokens})

    def require_of_choices(self) -> None:
        """Refuse options that change nothing where given answers are scored."""
        if ignored := [f"--{name}" for name in changed(self) if name not in OF_CHOICES]:
            raise DualHeadError(
                f"'{self.benchmark}' asks how likely given answers are. Nothing is generated, judged or measured, so "
                f"{', '.join(ignored)} would change nothing. Leave {'them' if len(ignored) > 1 else 'it'} out."
            )

    def require_of_replies(self) -> None:
        """Refuse options that change nothing beside the others where replies are generated."""
        require_effect(
            self,
            (("top_p", "top_k"), self.temperature, SAMPLING),
            (("against", "one_order", "judge_option"), self.judge, "judging, and nothing is judged here. Add --judge"),
            (
                ("reward", "embedder", "base"),
                not self.skip_measures,
                "measuring, and nothing is measured here. Drop --skip_measures",
            ),
        )


def _assignments(flag: str, texts: list[str] | None) -> dict[str, Any]:
    """Read NAME=VALUE, values as YAML; which names exist is checked where they are used."""
    if wrong := [text for text in texts or () if "=" not in text]:
        raise DualHeadError(f"--{flag} takes NAME=VALUE, such as concurrency=8, not '{wrong[0]}'.")
    try:
        pairs = (text.partition("=") for text in texts or ())
        return {name.strip(): yaml_value(value) for name, _, value in pairs}
    except ValueError as error:
        raise DualHeadError(f"Cannot read a --{flag}: {error}") from error
