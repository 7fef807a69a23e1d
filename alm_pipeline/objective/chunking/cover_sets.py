"""The cover set of a token: the texts that its tokenizer excludes after it (arXiv 2503.20083, appendix F).

After a token that spells p, the text x cannot follow if the tokenizer would encode p·x in another way, with a token
that begins within p and covers all of x. For example, a token ` Hello,` excludes the text `,` after ` Hello`. The
tokenizer itself encodes p·x, with nothing before p, to find this out. It cannot encode texts that are not whole
characters, so those count as not covered.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from alm_pipeline.runtime.progress import Advance
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view, steps

_BATCH = 1 << 16
"""texts encoded at once"""

Item = TypeVar("Item")


class Covers(NamedTuple):
    """The cover sets of N tokens, in flat arrays with offsets."""

    offsets: npt.NDArray[np.int64]
    """[N + 1]"""
    extensions: npt.NDArray[np.int64]
    """the excluded texts, as numbers of `Extensions`; ascending in each set"""
    tokens: npt.NDArray[np.int32]
    """the token that excludes each of them"""


class Extensions:
    """Numbers the texts that come after a token, in the same way for both tokenizers."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, text: bytes) -> int:
        if (known := self._numbers.get(text)) is not None:
            return known
        self.texts.append(text)
        return self._numbers.setdefault(text, len(self.texts) - 1)


class _Cut(NamedTuple):
    """A place where a token is cut, and the range of sorted tokens that begin with the token's text after the cut."""

    number: int
    """the token's index among those asked for"""
    before: str
    """the token's text before the cut"""
    overlap: int
    """the number of the token's bytes after the cut"""
    first: int
    last: int
    """one past the range"""

    def candidates(self) -> int:
        return self.last - self.first


class _Candidate(NamedTuple):
    """A token that does not occur in the corpus, but may exclude an extension after another token."""

    id_: int
    """the token that the extension comes after"""
    extension: bytes
    before: str
    """that token's text before the place where the candidate begins"""
    other: int
    """the candidate's id"""


class CoverSets:
    """Cover sets for one tokenizer, made of the tokens that occur. `covered_by_others` looks at all other tokens."""

    def __init__(self, tokenizer: Tokenizer, occurs: npt.NDArray[np.bool_]) -> None:
        self.view: ByteView = byte_view(tokenizer)
        texts = {id_: text for id_, text in enumerate(map(_decoded, self.view.spelling)) if text}
        usable = [id_ for id_ in texts if not self.view.special[id_]]
        self._tokens = sorted((id_ for id_ in usable if occurs[id_]), key=self.view.spelling.__getitem__)
        self._spellings = [self.view.spelling[id_] for id_ in self._tokens]
        self._texts = [texts[id_] for id_ in self._tokens]
        self._others: defaultdict[bytes, list[int]] = defaultdict(list)
        for id_ in usable:
            if not occurs[id_]:
                self._others[self.view.spelling[id_]].append(id_)
        # not the fast engine: it also encodes words to tokens that no merge reaches, which is the question here
        self._engine = StandardEngine(_within_text(tokenizer))

    def of(self, ids: Sequence[int], extensions: Extensions, advance: Advance) -> Covers:
        """Return the cover sets of these tokens, made of tokens that occur. Reports finished tokens to `advance`."""
        entries: list[tuple[int, int, int]] = []
        done = 0
        for cuts in _batches(self._cuts(ids), _Cut.candidates):
            entries += self._valid(cuts, extensions)
            advance(cuts[-1].number - done)
            done = cuts[-1].number
        advance(len(ids) - done)
        rows = np.array(sorted(entries), np.int64).reshape(-1, 3)
        offsets = np.searchsorted(rows[:, 0], np.arange(len(ids) + 1))
        return Covers(offsets, rows[:, 1], rows[:, 2].astype(np.int32))

    def _cuts(self, ids: Iterable[int]) -> Iterator[_Cut]:
        for number, id_ in enumerate(ids):
            spelling = self.view.spelling[id_]
            for at, before in _starts(spelling):
                first = bisect_right(self._spellings, spelling[at:])
                last = bisect_left(self._spellings, spelling[at:] + b"\xff", first)  # no text has this byte
                if first < last:
                    yield _Cut(number, before, len(spelling) - at, first, last)

    def _valid(self, cuts: Sequence[_Cut], extensions: Extensions) -> Iterator[tuple[int, int, int]]:
        """Yield (index of the token, extension, token that excludes it)."""
        rows = iter(self._encode(self._texts_of(cuts)))
        for cut, before in zip(cuts, self._encode([cut.before for cut in cuts]), strict=True):
            for place in range(cut.first, cut.last):
                if next(rows) == [*before, self._tokens[place]]:
                    extension = extensions.number(self._spellings[place][cut.overlap :])
                    yield cut.number, extension, self._tokens[place]

    def _texts_of(self, cuts: Sequence[_Cut]) -> list[str]:
        return [cut.before + text for cut in cuts for text in self._texts[cut.first : cut.last]]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._engine.encode(texts, special_literals=False).lists()

    def covered_by_others(self, pairs: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Yield those (token, extension) pairs whose extension is excluded by a token that does not occur."""
        candidates = (candidate for id_, extension in pairs for candidate in self._others_over(id_, extension))
        for batch in _batches(candidates, lambda _: 1):
            befores = self._encode_once([candidate.before for candidate in batch])
            rows = self._encode(
                [candidate.before + self.view.spelling[candidate.other].decode() for candidate in batch]
            )
            for candidate, row in zip(batch, rows, strict=True):
                if row == [*befores[candidate.before], candidate.other]:
                    yield candidate.id_, candidate.extension

    def _encode_once(self, texts: Sequence[str]) -> dict[str, list[int]]:
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self._encode(unique), strict=True))

    def _others_over(self, id_: int, extension: bytes) -> Iterator[_Candidate]:
        for at, before in _starts(self.view.spelling[id_]):
            for other in self._others.get(self.view.spelling[id_][at:] + extension, ()):
                yield _Candidate(id_, extension, before, other)


def _decoded(spelling: bytes) -> str | None:
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return None


@lru_cache(1 << 16)
def _starts(spelling: bytes) -> list[tuple[int, str]]:
    """Return the places where a token that covers this one's end may begin, each with the text before it."""
    befores = ((at, _decoded(spelling[:at])) for at in range(len(spelling)))
    return [(at, before) for at, before in befores if before is not None]


def _batches(items: Iterable[Item], texts: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items so that each group has about one batch of texts."""
    batch: list[Item] = []
    room = _BATCH
    for item in items:
        batch.append(item)
        room -= texts(item)
        if room <= 0:
            yield batch
            batch, room = [], _BATCH
    if batch:
        yield batch


def _within_text(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that adds nothing before a text, and neither truncates nor pads it."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    state |= {"truncation": None, "padding": None, "post_processor": None}
    if "dropout" in state["model"]:
        state["model"]["dropout"] = None
    for step in steps(state["pre_tokenizer"]):
        step.update({"prepend_scheme": "never"} if step["type"] == "Metaspace" else {})
        step.update({"add_prefix_space": False} if step["type"] == "ByteLevel" else {})
    for step in steps(state["normalizer"]):
        step.update({"prepend": ""} if step["type"] == "Prepend" else {})
    return Tokenizer.from_str(json.dumps(state))
