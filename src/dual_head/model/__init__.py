"""The aligned model: a frozen backbone, named guides, and a strength for each."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dual_head.model.aligned import AlignedModel as AlignedModel
    from dual_head.model.decode_step import Encoded as Encoded

__all__ = ["AlignedModel", "Encoded"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    """Import the model when it is first asked for: commands that read its files alone need no model."""
    if name in __all__:
        from dual_head.model import aligned

        return getattr(aligned, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
