"""The one exception for bad input, and the sentence that offers the nearest valid name.

Every mistake of a user raises `DualHeadError` with the remedy in its message; the command line prints the message and
exits with 2. Programming errors keep Python's own exceptions.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DualHeadError(ValueError):
    """Bad input; the message is one paragraph that names the remedy."""


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the nearest of `options`, or list all of them if none is near."""
    choices, text = sorted(map(str, options)), str(name)
    # A beginning is a name cut short: --dataset is nearer to --dataset_name than to --data_seed, which is as long.
    longer = [choice for choice in choices if text and choice.startswith(text)]
    matches = get_close_matches(text, longer or choices, n=1, cutoff=0.0 if longer else 0.6)
    return f" Did you mean '{matches[0]}'?" if matches else f" Known: {', '.join(choices)}."


def require(package: str, extra: str):
    """Import an optional `package`, or raise with the line that installs it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DualHeadError(
            f"'{package}' is not installed. Install it with: pip install 'dual-head[{extra}]'"
        ) from error
