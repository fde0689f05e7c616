"""The versions of transformers whose continuous batching was tested: its inner parts move with every release."""

import transformers

from dual_head.errors import DualHeadError

FIRST, BEYOND = (5, 23), (5, 24)


def require_tested_transformers() -> None:
    """Refuse a version of transformers that was not tested, with the line that installs one that was."""
    version = transformers.__version__
    if not FIRST <= tuple(int(part) for part in version.split(".")[:2]) < BEYOND:
        first, beyond = (".".join(map(str, x)) for x in (FIRST, BEYOND))
        raise DualHeadError(
            f"Serving was tested with transformers >={first},<{beyond}, and this is {version}. "
            f"Install a tested one with: pip install 'transformers>={first},<{beyond}'"
        )
