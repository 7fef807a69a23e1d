"""The replacement of a complete dataset or folder: it is written beside what is there, and takes its place when whole.

A replacement is the hidden subfolder `.again`. As long as it has no manifest, it is not complete, and what it is to
replace stays as it is. Its manifest makes it the valid one: from then on a kill may interrupt the moving of its files,
and `take_place` goes on from there. So at any moment one of the two is whole.

A request, `.again/.request.json`, asks for a folder to be made again. It is in the store, so that any process or
machine that makes the folder finds it, and so does the next run after a kill.
"""

from collections.abc import Collection

from storage.schemas import MANIFEST
from storage.urls import file_sizes, join_url, move, overwrite, publish, read_bytes, remove

REPLACEMENT = ".again"
_REQUEST = ".request.json"


def replacement_url(url: str) -> str:
    return join_url(url, REPLACEMENT)


def request_replacement(url: str) -> None:
    """Ask for the complete folder at a URL to be made again; one that is being made already is continued."""
    publish(join_url(url, REPLACEMENT, _REQUEST), b"{}\n")


def is_requested(url: str) -> bool:
    """Return whether the folder at a URL is to be made again, and its replacement is not complete."""
    has_request = read_bytes(join_url(url, REPLACEMENT, _REQUEST)) is not None
    return has_request and not is_ready(url)


def is_ready(url: str) -> bool:
    """Return whether a complete replacement has yet to take the place of what is at a URL."""
    return read_bytes(join_url(url, REPLACEMENT, MANIFEST)) is not None


def take_place(url: str, stale: Collection[str] = ()) -> None:
    """Move a complete replacement to the place of what is at a URL, the manifest last; without one, do nothing.

    `stale` are the names of files that only what is replaced has. The caller holds the lease.
    """
    made = replacement_url(url)
    manifest = read_bytes(join_url(made, MANIFEST))
    if manifest is None:
        return
    for name in sorted(file_sizes(made).keys() - {MANIFEST}):
        if not name.rsplit("/", 1)[-1].startswith("."):  # the request, or what a killed write left
            move(join_url(made, name), join_url(url, name))
    overwrite(join_url(url, MANIFEST), manifest)
    for name in stale:
        remove(join_url(url, name))
    # the manifest last: without it, the request would be for one more replacement
    for name in sorted(file_sizes(made).keys() - {MANIFEST}, key=lambda name: name != _REQUEST):
        remove(join_url(made, name))
    remove(join_url(made, MANIFEST))
    remove(made)
