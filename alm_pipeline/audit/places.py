"""What a byte position of a text is, and the groups of chunks that an audit's numbers are given by."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alm_pipeline.naming.scripts import CLASSES, byte_classes, is_code
from storage.schemas import ChunkEnd

Classes = npt.NDArray[np.uint8]
Place = Literal[
    "word | space",
    "punctuation | space",
    "space | any",
    "word | word",
    "word | punctuation",
    "punctuation | any",
    "inside a character",
    "edge of the text",
]
"""what stands before a position, and what after it"""
PLACES: tuple[Place, ...] = get_args(Place)
By = Literal["all", "script", "text", "bytes", "position", "start", "end", "known"]
BY: Mapping[By, str] = {
    "all": "all chunks",
    "script": "script of most bytes",
    "text": "kind of text",
    "bytes": "bytes of the chunk",
    "position": "bytes before it",
    "start": "what its start is between",
    "end": "what its end is between",
    "known": "what the alignment knows of its end",
}
_SPACE, _PUNCTUATION = CLASSES.index("whitespace"), CLASSES.index("punctuation and symbols")
_LENGTHS = ((2, "1-2"), (4, "3-4"), (8, "5-8"), (16, "9-16"), (1 << 62, "17 or more"))
_POSITIONS = ((64, "first 64"), (256, "64-255"), (1024, "256-1023"), (1 << 62, "1024 or more"))


class TextPlaces:
    """An example's text, and what each of its bytes is."""

    def __init__(self, text: str) -> None:
        self.content = text.encode()
        self.classes = byte_classes(self.content)
        self.kind = "code" if is_code(text) else "prose"

    def place(self, byte: int) -> Place:
        """Return what a position is between."""
        if not 0 < byte < len(self.content):
            return "edge of the text"
        if self.content[byte] & 0xC0 == 0x80:
            return "inside a character"
        before, after = (_coarse(int(self.classes[at])) for at in (byte - 1, byte))
        if before == "space":
            return "space | any"
        if after == "space":
            return "word | space" if before == "word" else "punctuation | space"
        if before == "punctuation":
            return "punctuation | any"
        return "word | punctuation" if after == "punctuation" else "word | word"

    def groups(self, start: int, end: int) -> dict[By, str]:
        """Return the group of a chunk of these bytes, for each way of grouping."""
        votes = np.bincount(self.classes[start:end], minlength=len(CLASSES))
        return {
            "all": "all",
            "script": CLASSES[int(votes.argmax())],
            "text": self.kind,
            "bytes": next(name for most, name in _LENGTHS if end - start <= most),
            "position": next(name for below, name in _POSITIONS if start < below),
            "start": self.place(start),
            "end": self.place(end),
        }


KNOWN = ("anchor", "boundary", "exact", "neither")


def end_known(flags: int) -> str:
    """Return the name of the flags of a chunk's end (ChunkEnd)."""
    return {ChunkEnd.ANCHOR: "anchor", ChunkEnd.BOUNDARY: "boundary", ChunkEnd.EXACT: "exact"}.get(flags, "neither")  # type: ignore[call-overload,no-any-return]


ORDER: Mapping[By, tuple[str, ...]] = {
    "all": ("all",),
    "script": CLASSES,
    "text": ("code", "prose"),
    "bytes": tuple(name for _, name in _LENGTHS),
    "position": tuple(name for _, name in _POSITIONS),
    "start": PLACES,
    "end": PLACES,
    "known": KNOWN,
}
"""the names of the groups, in the order in which they are shown"""


def _coarse(class_: int) -> str:
    return {_SPACE: "space", _PUNCTUATION: "punctuation"}.get(class_, "word")
