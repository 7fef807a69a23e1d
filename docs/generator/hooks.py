"""MkDocs hooks: they add the generated pages at each build, so that these can't go stale."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# MkDocs loads this file alone, from the entry point `mkdocs`, which does not put the checkout on the path
sys.path.insert(0, str(Path(__file__).parents[2]))

from docs.generator.pages import PAGES, PARTS


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
