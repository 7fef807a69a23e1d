"""MkDocs hooks: reference pages generated from the code at each build, so that they can't go stale.

The pages of settings, datasets and commands and the table of rooms come from the configuration models, the Arrow
schemas, the typer app and `tests/test_layers.py`. Nothing here loads torch.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# MkDocs loads this file alone, from the entry point `mkdocs`, which does not put the checkout on the path
sys.path.insert(0, str(ROOT))

from docs.generator import benchmarks, commands, datasets, rooms, settings  # noqa: E402

PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings.page,
    "reference/datasets.md": datasets.page,
    "reference/commands.md": commands.page,
    "pictures/rooms.svg": rooms.picture,
    "benchmarks.md": benchmarks.page,
}
"""What is generated, by its path in the site."""

PARTS: dict[str, Callable[[], str]] = {"<!-- generated: rooms -->": rooms.rooms_table}
"""What is generated inside a written page, by the comment that it replaces."""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to those of `docs/`."""
    for path, content in PAGES.items():
        if files.get_file_from_path(path) is not None:
            raise ValueError(f"docs/{path}: exists, but the page is generated: remove the file")
        files.append(File.generated(config, path, content=content()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments that stand for generated parts."""
    for comment, content in PARTS.items():
        if comment in markdown:
            markdown = markdown.replace(comment, content())
    return markdown
