"""Folders that are written completely or not at all."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alm_pipeline.models.demo.models import publish_folder
from storage.errors import UserError


def require_new(folder: Path) -> None:
    """Raise UserError when a folder exists and is not empty, or is a URL."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(folder)):  # a path has one slash
        raise UserError(f"{folder}: a URL; name a local folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already: name a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `folder` at the end by one rename; after an error nothing is left.

    Raises UserError as `require_new` does.
    """
    require_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        written = Path(scratch) / "written"
        written.mkdir()
        yield written
        publish_folder(written, folder)
