"""The judges, found by their file: each module here but `base` ends in `JUDGE = ...`, a class with a `prefix`.

A judge is asked for by a word: its prefix, a colon, and where it is. This file knows no particular judge.
"""

import importlib
import pkgutil
from typing import Any

from dual_head.errors import DualHeadError, did_you_mean
from dual_head.evaluate.judges.base import JudgeKind
from dual_head.evaluate.types import Judge
from dual_head.options import build

__all__ = ["judge_kinds", "load_judge"]


def judge_kinds() -> dict[str, JudgeKind]:
    """Every kind of judge by its prefix, such as "rule"; `form` says how one is asked for, `Options` what it takes."""
    names = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name != "base")
    found = (importlib.import_module(f"{__name__}.{name}").JUDGE for name in sorted(names))
    return dict(sorted((kind.prefix, kind) for kind in found))


def load_judge(spec: str, **options: Any) -> Judge:
    """Make a judge: "rule", "rule:module:function", "reward:PATH", "lm:PATH", "openai:MODEL" or "openai:MODEL@URL".

    options: fields of that kind's `Options`. Errors: an unknown kind or option, and whatever keeps the judge from
    being there: no such folder, no such function, no key.
    """
    prefix, _, where = spec.partition(":")
    kinds = judge_kinds()
    if prefix not in kinds:
        forms = ", ".join(kind.form for kind in kinds.values())
        raise DualHeadError(f"'{spec}' is no judge.{did_you_mean(prefix, kinds)} A judge is one of: {forms}.")
    return kinds[prefix](where, build(kinds[prefix].Options, options))
