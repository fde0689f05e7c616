"""A hook of mkdocs: links that leave docs/, as ../../examples/train.py, lead to the repository on the site."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

LINK = re.compile(r"\]\((\.\./[^)\s#]+)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replace such links. Errors: PluginError for one that leads to no file of the repository."""
    docs = Path(config.docs_dir)
    root = docs.parent

    def outside(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(docs / Path(page.file.src_uri).parent / match[1]))
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links to {match[1]}, which is not there.")
        return f"]({config.repo_url}/blob/main/{target.relative_to(root).as_posix()}"

    return LINK.sub(outside, markdown)
