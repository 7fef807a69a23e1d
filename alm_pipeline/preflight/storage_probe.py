"""A tiny object that is written to a store or a folder and removed, to see whether a run could write there."""

import os
from pathlib import Path

from alm_pipeline.runtime.output_files import can_draw
from storage.errors import UserError, naming
from storage.urls import is_local, join_url, open_filesystem, overwrite, remove


def probe_storage(root: str) -> None:
    """Write and remove an object under a root, and leave nothing. Raises UserError if that is refused."""
    fs, path = open_filesystem(root)
    made = _missing_folders(Path(path)) if is_local(fs) else []
    probe = join_url(root, f".preflight-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        overwrite(probe, b"alm check")
        remove(probe)
    finally:
        for folder in made:  # the run makes them again
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def require_writable(option: str, folder: str | Path) -> None:
    """Raise UserError, naming the option, if nothing can be written into a folder or URL: now, and not after hours."""
    with naming(option):
        probe_storage(str(folder))


def require_writable_file(option: str, file: Path) -> None:
    """Raise UserError likewise if a file can't be written."""
    if file.is_dir():
        raise UserError(f"{option}: {file}: is a folder: name a file in it")
    require_writable(option, file.parent)


def require_picture(option: str, file: Path) -> None:
    """Raise UserError if a picture can't be drawn, or its file is not a .png file or can't be written."""
    if file.suffix != ".png":
        raise UserError(f"{option} {file}: not a .png file: write FILE.png")
    if not can_draw():
        raise UserError(f"{option}: pictures need matplotlib: pip install 'alm-pipeline[pictures]'")
    require_writable_file(option, file)


def _missing_folders(path: Path) -> list[Path]:
    """Return the folders that writing into a path would make, the deepest first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]
