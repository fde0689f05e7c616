"""EleutherAI's lm-evaluation-harness on a guided model: its whole catalogue of tasks, at any strength.

The harness is optional (extra "harness"). Prompts, tokenisation, stop strings and scores of tasks are the harness's.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dual_head.errors import DualHeadError, did_you_mean, require
from dual_head.evaluate.metrics.likelihood import context_of, score_ids
from dual_head.model.alpha import Alpha

__all__ = ["harness_model", "run_harness"]

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
    huggingface: Any = require("lm_eval.models.huggingface", EXTRA)

    class GuidedLM(huggingface.HFLM):
        """The harness's own Hugging Face model, whose likelihoods and strength are ours."""

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            del disable_tqdm, override_bs
            rows = [(context, continuation) for _, context, continuation in requests]
            scores = score_ids(model, rows, alpha=alpha, batch_size=batch_size)
            answers = [(score.logp, score.greedy) for score in scores]
            for (request, _, _), answer in zip(requests, answers, strict=True):
                if request is not None:  # a window of a longer text has no name of its own
                    self.cache_hook.add_partial("loglikelihood", request, answer)
            return answers

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            strength = {} if alpha is None else {"alpha": alpha}
            return super()._model_generate(context, max_length, stop, **options, **strength)

        @property
        def max_gen_toks(self) -> int:
            return min(NEW_TOKENS, self.max_length // 2)

        def get_model_info(self) -> dict[str, Any]:
            """What is known of the model without asking a hub."""
            return {"model_num_parameters": model.num_parameters(), "model_dtype": model.dtype, "alpha": repr(alpha)}

    return GuidedLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # the harness gives it a padding token
        backend="causal",
        max_length=context_of(model),
        batch_size=batch_size,
    )


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
