"""The phases of a run, each of which a machine may do alone."""

from typing import Literal

Phase = Literal["prepare", "score", "train"]
"""`prepare` is every stage up to the alignments."""

ALL_PHASES: tuple[Phase, ...] = ("prepare", "score", "train")
