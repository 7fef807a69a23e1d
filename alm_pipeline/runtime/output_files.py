"""Files of results that replace those of an earlier run, all of them: none of it stays beside new ones."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from alm_pipeline.runtime.progress import show_line
from storage.urls import join_url, overwrite, remove


def write_outputs(
    folder: str | Path, contents: Mapping[str, bytes], pictures: Mapping[str, Callable[[], bytes]]
) -> list[str]:
    """Write files and pictures into a folder or URL by name. Returns the URLs of those that are written.

    Without matplotlib, no picture is drawn: those of an earlier run are removed, and a line says so.
    """
    if pictures and not can_draw():
        _show_undrawn(list(pictures))
        for name in pictures:
            remove(join_url(str(folder), name))
        pictures = {}
    files = {**contents, **{name: draw() for name, draw in pictures.items()}}
    places = {join_url(str(folder), name): content for name, content in files.items()}
    for place, content in places.items():
        overwrite(place, content)
    return list(places)


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def _show_undrawn(pictures: list[str]) -> None:
    are = "is" if len(pictures) == 1 else "are"
    show_line(
        f"{' and '.join(pictures)} {are} left out: matplotlib is not installed: pip install 'alm-pipeline[pictures]'"
    )
