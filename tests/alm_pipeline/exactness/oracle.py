"""Exact byte-prefix probabilities of a tiny token model, by listing all token sequences."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from alm_pipeline.exactness.prefix_sums import TokenPath

Floats = npt.NDArray[np.float64]
SPACES = (b" ", b"\t", b"\n")


class TableModel:
    """Random log P(next token | tokens so far, or the last `memory`), the same for the same tokens.

    `spikes` makes it uneven.
    """

    def __init__(
        self, spellings: Sequence[bytes], specials: int, seed: int = 0, spikes: float = 1.0, memory: int = 1000
    ) -> None:
        self.spellings, self.specials, self.seed, self.spikes = spellings, specials, seed, spikes
        self.memory = memory
        self.size = len(spellings) + specials

    def row(self, ids: Sequence[int]) -> Floats:
        digest = hashlib.sha256(repr((self.seed, tuple(ids)[-self.memory :])).encode()).digest()
        logits = np.random.default_rng(list(digest[:8])).normal(size=self.size) * self.spikes
        return np.asarray(logits - np.logaddexp.reduce(logits))

    def after(self, canonical: Sequence[int]):  # type: ignore[no-untyped-def]
        def next_tokens(paths: Sequence[TokenPath]) -> Iterator[Floats]:
            for path in paths:
                yield self.row([*canonical[: path.kept], *path.others])

        return next_tokens

    def begins_with(self, context: Sequence[int], content: bytes) -> float:
        """P(the text after the context begins with these bytes), by all sequences of tokens."""
        if not content:
            return 1.0
        row, total = np.exp(self.row(context)), 0.0
        for id_, text in enumerate(self.spellings):
            if text.startswith(content):
                total += row[id_]
            elif content.startswith(text):
                total += row[id_] * self.begins_with([*context, id_], content[len(text) :])
        return float(total)

    def ends_with_special(self, context: Sequence[int], content: bytes) -> float:
        """P(the text after the context is exactly these bytes, and then a special token)."""
        row = np.exp(self.row(context))
        if not content:
            return float(row[len(self.spellings) :].sum())
        return sum(
            float(row[id_]) * self.ends_with_special([*context, id_], content[len(text) :])
            for id_, text in enumerate(self.spellings)
            if content.startswith(text)
        )

    def begins_with_boundary(self, context: Sequence[int], content: bytes) -> float:
        spaces = sum(self.begins_with(context, content + space) for space in SPACES)
        return spaces + self.ends_with_special(context, content)
