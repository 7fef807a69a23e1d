"""Files of results that replace those of an earlier run, all of them: none of it stays beside new ones."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from alm_pipeline.runtime.progress import show_line
from storage.urls import join_url, overwrite, remove


def write_outputs(folder: str | Path, contents: Mapping[str, bytes | None]) -> list[str]:
    """Write files into a folder or URL by name, and remove those that have no content this time (None).

    Returns the URLs of those that are written.
    """
    places = {join_url(str(folder), name): content for name, content in contents.items()}
    for place in (place for place, content in places.items() if content is None):
        remove(place)
    written = {place: content for place, content in places.items() if content is not None}
    for place, content in written.items():
        overwrite(place, content)
    return list(written)


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def show_undrawn(*pictures: str) -> None:
    """Show that pictures are left out, and why."""
    are = "is" if len(pictures) == 1 else "are"
    show_line(
        f"{' and '.join(pictures)} {are} left out: matplotlib is not installed: pip install 'alm-pipeline[pictures]'"
    )
