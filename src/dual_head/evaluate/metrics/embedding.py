"""Sentence embeddings, by a sentence-transformers model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dual_head.data.sources import is_hub_name
from dual_head.errors import DualHeadError, require

__all__ = ["Embedder", "load_embedder", "require_embedder"]

Embedder = Callable[[Sequence[str]], Tensor]  # texts to embeddings [n, d]
REMEDY = "Give the folder or hub name of a sentence-transformers model."


def require_embedder(name: str) -> None:
    """Refuse what cannot be an embedder, without loading it; what the hub has is not asked. Errors: no such folder."""
    require("sentence_transformers", "embeddings")
    if not (Path(name).is_dir() or is_hub_name(name)):
        raise DualHeadError(f"There is no embedder in '{name}'. {REMEDY}")


def load_embedder(name: str, *, device: str | None = None, batch_size: int = 16) -> Embedder:
    """Load a sentence-transformers model by folder or hub name; a plain encoder is pooled by the mean of its tokens.

    Errors: the package is not installed; no such model.
    """
    package: Any = require("sentence_transformers", "embeddings")
    try:
        model = package.SentenceTransformer(name, device=device)
    except (OSError, ValueError) as error:
        raise DualHeadError(f"Could not load the embedder '{name}': {str(error).splitlines()[0]} {REMEDY}") from error

    def embed(texts: Sequence[str]) -> Tensor:
        options = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        return model.encode(list(texts), **options)

    return embed
