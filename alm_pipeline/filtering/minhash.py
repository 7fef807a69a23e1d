"""Which documents may be nearly the same: MinHash in bands.

A document is the set of its runs of n words. Of two documents, a MinHash is the same with a probability that is their
Jaccard similarity s. B bands of R MinHashes each: a band is the same with probability s^R, and some band with
1 − (1 − s^R)^B, which rises steeply where s is near (1/B)^(1/R) (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.4). The MinHashes are `rensa`'s.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.corpus.contamination import words
from storage.errors import UserError

HASHES = 128
_SEED = 1
_MISSING = "corpus.deduplicate.near: the package rensa is not installed: pip install 'alm-pipeline[dedup]'"
Hashes = npt.NDArray[np.uint64]


class Bands(NamedTuple):
    """How MinHashes are compared: two documents may be the same if all of a band's are."""

    bands: int
    size: int
    """the MinHashes of each"""

    @classmethod
    def of(cls, similarity: float) -> "Bands":
        """Return the bands of at most `HASHES` MinHashes whose steepest rise is nearest to a similarity."""
        choices = [cls(HASHES // size, size) for size in range(1, 33)]
        return min(choices, key=lambda choice: abs((1 / choice.bands) ** (1 / choice.size) - similarity))


def algorithm() -> str:
    """Return what decides the MinHashes of a text. Raises UserError where the library is missing."""
    try:
        from rensa import RMinHash
    except ModuleNotFoundError as error:
        raise UserError(_MISSING) from error
    return f"rensa {RMinHash.ALGORITHM_VERSION}"


def band_hashes(texts: Sequence[str], similarity: float, run: int) -> list[Hashes]:
    """Return the hash of each band of each text ([bands] each); none of a text without a word.

    A text of fewer than `run` words is one run. The number of a band is part of its hash, so that bands of different
    numbers are never the same.
    """
    from rensa import RMinHash

    count, size = Bands.of(similarity)
    found = [_runs(text, run) for text in texts]
    hashes = []
    for runs in found:
        if not runs:
            hashes.append(np.zeros(0, np.uint64))
            continue
        minhash = RMinHash(num_perm=HASHES, seed=_SEED)
        minhash.update(runs)
        digest = np.array(minhash.digest(), np.uint64)[: count * size]
        hashes.append(_combined(digest.reshape(count, size)))
    return hashes


def _runs(text: str, run: int) -> list[str]:
    found = words(text)
    if 0 < len(found) < run:
        return [" ".join(found)]
    return sorted({" ".join(found[k : k + run]) for k in range(len(found) - run + 1)})


def _combined(digest: Hashes) -> Hashes:
    """Return one hash per row [bands], of the row's number and its values: FNV's multiplication, then a mix."""
    combined = np.arange(1, len(digest) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in digest.T:
            combined = (combined ^ column) * np.uint64(0x100000001B3)
            combined ^= combined >> np.uint64(29)
            combined *= np.uint64(0xBF58476D1CE4E5B9)
    return combined
