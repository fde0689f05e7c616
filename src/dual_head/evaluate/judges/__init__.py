"""The judges by name: each file here that ends in `JUDGE = ...`, and entry points of the group `dual_head.judges`.

A judge is written NAME or NAME:WHERE, as `form` of its class says.
"""

from typing import Any

from dual_head.errors import DualHeadError
from dual_head.evaluate.types import Judge
from dual_head.options import build, discover

__all__ = ["JUDGES", "load_judge"]


def _flaw(kind: Any) -> str | None:
    gaps = [name for name in ("form", "Options") if not hasattr(kind, name)]
    return f"JUDGE has no {' and no '.join(gaps)}" if gaps else None


JUDGES = discover(__name__, "JUDGE", noun="judge", check=_flaw)


def load_judge(spec: str, **options: Any) -> Judge:
    """Make a judge: "rule", "rule:module:function", "reward:PATH", "lm:PATH", "openai:MODEL" or "openai:MODEL@URL".

    options: fields of that kind's `Options`. Errors: an unknown kind or option, and whatever keeps the judge from
    being there: no such folder, no such function, no key.
    """
    name, _, where = spec.partition(":")
    if name not in JUDGES.names():
        forms = ", ".join(kind.form for kind in JUDGES.load_all().values())
        raise DualHeadError(f"{JUDGES.unknown(name)} A judge is one of: {forms}.")
    kind = JUDGES.load(name)
    return kind(where, build(kind.Options, options))
