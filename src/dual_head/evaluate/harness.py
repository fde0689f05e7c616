"""EleutherAI's lm-evaluation-harness on a guided model: its whole catalogue of tasks, at any strength.

    python -m dual_head.evaluate.harness run --model dual_head --model_args pretrained=out/hh,alpha=1.0 --tasks arc_easy

The harness is optional (extra "harness"). Prompts, tokenisation, stop strings and scores of tasks are the harness's.
"""

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.errors import DualHeadError, did_you_mean, require
from dual_head.evaluate.metrics.likelihood import context_of, score_ids
from dual_head.evaluate.systems import SystemSpec, open_system
from dual_head.evaluate.systems.model import ModelSystem
from dual_head.evaluate.systems.specs import read_strength
from dual_head.model.alpha import Alpha

__all__ = ["harness_model", "load_harness_model", "run_harness"]

NEW_TOKENS = 256  # what the harness generates where a task does not say
EXTRA = "harness"


def run_harness(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    alpha: Alpha = None,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    num_fewshot: int | None = None,
    apply_chat_template: bool | str = False,
    bootstrap_iters: int = 1000,
) -> dict[str, Any]:
    """Run tasks of the harness, and return what its `simple_evaluate` returns: {"results": {task: {...}}, ...}.

    model: an `AlignedModel`, at strength alpha (None for its defaults), or a causal LM. include_path: a folder of tasks
    of your own (YAML); limit: documents per task; num_fewshot and apply_chat_template: as the harness has them;
    bootstrap_iters: resamples behind standard errors. Errors: the harness is not installed; an unknown task.
    """
    lm = harness_model(model, tokenizer, alpha=alpha, batch_size=batch_size)
    manager = _task_manager(tasks, include_path)
    lm_eval: Any = require("lm_eval", EXTRA)
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        bootstrap_iters=bootstrap_iters,
    )


def harness_model(model: Any, tokenizer: PreTrainedTokenizerBase, *, alpha: Alpha = None, batch_size: int = 16) -> Any:
    """Make what the harness calls an LM of a model: log-likelihoods, rolling ones, and greedy or sampled generation.

    Likelihoods are in fp32, and no logits are computed for prompts. model, alpha, batch_size: as `run_harness` has
    them. Errors: the harness is not installed; a model in training mode; a batch size that is no whole number.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise DualHeadError(
            f"batch_size must be a whole number of at least 1, not {batch_size!r}. Give the number of rows in a batch, "
            "such as 16; none is searched for."
        )
    require("lm_eval", EXTRA)
    return _guided_lm()(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # the harness gives it a padding token
        backend="causal",
        max_length=context_of(model),
        batch_size=batch_size,
        alpha=alpha,
    )


@cache
def _guided_lm() -> type:
    """The class of guided models, made when the harness is there. Errors: it is not installed."""
    huggingface: Any = require("lm_eval.models.huggingface", EXTRA)

    class GuidedLM(huggingface.HFLM):
        """The harness's own Hugging Face model, whose likelihoods and strength are ours."""

        def __init__(self, pretrained: Any, *, alpha: Alpha = None, **options: Any):
            self.guided, self.alpha = pretrained, alpha
            super().__init__(pretrained=pretrained, **options)

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            del disable_tqdm, override_bs
            rows = [(context, continuation) for _, context, continuation in requests]
            scores = score_ids(self.guided, rows, alpha=self.alpha, batch_size=self.batch_size)
            answers = [(score.logp, score.greedy) for score in scores]
            for (request, _, _), answer in zip(requests, answers, strict=True):
                if request is not None:  # a window of a longer text has no name of its own
                    self.cache_hook.add_partial("loglikelihood", request, answer)
            return answers

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            strength = {} if self.alpha is None else {"alpha": self.alpha}
            return super()._model_generate(context, max_length, stop, **options, **strength)

        @property
        def max_gen_toks(self) -> int:
            return min(NEW_TOKENS, self.max_length // 2)

        def get_model_info(self) -> dict[str, Any]:
            """What is known of the model without asking a hub."""
            model = self.guided
            facts = {"model_num_parameters": model.num_parameters(), "model_dtype": model.dtype}
            return facts | {"alpha": repr(self.alpha)}

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> Any:
            """The model of --model_args pretrained=GUIDES,alpha=1.0; see `load_harness_model`."""
            options = {name: value for name, value in (additional_config or {}).items() if value is not None}
            return load_harness_model(**arg_dict, **options)

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Any:
            """As `create_from_arg_obj`, of text."""
            parse: Any = require("lm_eval.utils", EXTRA).simple_parse_args_string
            return cls.create_from_arg_obj(parse(arg_string), additional_config)

    return GuidedLM


def load_harness_model(
    pretrained: str = "",
    *,
    alpha: float | str | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    other_precision: bool = False,
    trust_remote_code: bool = False,
    **unknown: Any,
) -> Any:
    """Load what the harness's command line names: guides at a strength, a PEFT adapter or a plain causal LM.

    alpha: a number, or helpful:0.5+harmless:1 for guides by name; backbone: a copy of theirs in another place.
    Errors: no such model, an unknown argument.
    """
    unknown.pop("max_batch_size", None)  # the harness sends it with its default
    if unknown or not pretrained:
        words = f"has no argument '{next(iter(unknown))}'" if unknown else "needs a model"
        raise DualHeadError(
            f"dual_head {words}. Give pretrained=GUIDES, and if need be alpha, backbone, dtype, other_precision, "
            "trust_remote_code."
        )
    options: dict[str, Any] = {"device": device, "dtype": dtype, "backbone": backbone}
    options |= {"other_precision": other_precision, "trust_remote_code": trust_remote_code}
    system = open_system(SystemSpec("dual_head", pretrained, read_strength(alpha)), **options)
    if not isinstance(system, ModelSystem):
        raise DualHeadError(f"'{pretrained}' is not a model of this machine. Give a folder of guides or a causal LM.")
    size = int(batch_size) if str(batch_size).isdigit() else batch_size
    return harness_model(system.model, system.tokenizer, alpha=dict(system.alpha) or None, batch_size=size)  # type: ignore[arg-type]


def main() -> None:
    """Run the harness's own command line, which knows the model `dual_head` then."""
    registry: Any = require("lm_eval.api.registry", EXTRA)
    command: Any = require("lm_eval.__main__", EXTRA)
    require("lm_eval.models", EXTRA)  # the registry reads its own models only while it is empty
    registry.register_model("dual_head")(_guided_lm())
    command.cli_evaluate()


def _task_manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """Find the tasks; the harness's own catalogue is read only where one is not in `include_path`. Errors: unknown."""
    task_manager: Any = require("lm_eval.tasks", EXTRA).TaskManager
    if not tasks:
        raise DualHeadError("There are no tasks. Name at least one, such as arc_easy.")
    if include_path is not None and not Path(include_path).is_dir():
        raise DualHeadError(f"There is no folder of tasks at '{include_path}'. Give the folder that holds their YAML.")
    places = {} if include_path is None else {"include_path": str(include_path)}
    if places:
        manager = task_manager(include_defaults=False, **places)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = task_manager(**places)
    for task in tasks:
        if task not in manager.all_tasks:
            raise DualHeadError(f"The harness has no task '{task}'.{_hint(task, manager.all_tasks)}")
    return manager


def _hint(task: str, tasks: Sequence[str]) -> str:
    """The nearest name; of thousands of tasks no list helps."""
    hint = did_you_mean(task, tasks)
    return hint if hint.startswith(" Did") else " 'lm-eval ls tasks' lists them."


if __name__ == "__main__":
    main()
