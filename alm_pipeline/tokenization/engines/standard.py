"""The interface of an engine, which turns texts into ids, and the standard one: Hugging Face `tokenizers`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Protocol

from tokenizers import Tokenizer

from alm_pipeline.tokenization.engines.flat_ids import FlatIds

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_previous_parallelism: str | None = None
_callers = 0
_callers_lock = Lock()


class Engine(Protocol):
    """Encodes texts. With `special_literals`, a special token's literal in a text is that token; otherwise it is text.

    Threads may share an engine as long as they all pass the same `special_literals`.
    """

    name: str

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        """Return the ids of each text, without the special tokens that a post-processor puts around them."""
        ...


class StandardEngine:
    """Hugging Face `tokenizers`. Every tokenizer.json is written for it, so its ids are the right ones."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        return FlatIds.of(_encode(self._tokenizer, texts, special_literals))

    def encode_stretches(self, stretches: Sequence[str]) -> list[list[int]]:
        """Return the ids of the stretches between a text's special tokens, as they are encoded in the whole text.

        A special token's literal within a stretch is text.
        """
        start, inside = self._stretch_tokenizers
        return _encode(start, stretches[:1], False) + _encode(inside, stretches[1:], False)

    @cached_property
    def _stretch_tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The tokenizers of the first and of later stretches. Only the first puts a space in front of a text.

        Both are copies: other threads may be using the engine's tokenizer with special tokens' literals.
        """
        state = self._tokenizer.to_str()
        inside = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        start = Tokenizer.from_str(state)
        return start, start if inside == state else Tokenizer.from_str(inside)


def _encode(tokenizer: Tokenizer, texts: Sequence[str], special_literals: bool) -> list[list[int]]:
    # setting it waits for the other threads' calls and holds the interpreter's lock meanwhile
    if tokenizer.encode_special_tokens == special_literals:
        tokenizer.encode_special_tokens = not special_literals
    return [row.ids for row in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


@contextmanager
def single_threaded_calls() -> Iterator[None]:
    """Within it, `tokenizers` encodes a batch in the thread that calls it.

    For a caller that has a thread per core: the threads of `tokenizers` would sit idle until the last text of a batch
    is encoded and the caller has taken its ids.
    """
    global _callers, _previous_parallelism
    with _callers_lock:
        if not _callers:
            _previous_parallelism = os.environ.get(_PARALLELISM)
        _callers += 1
        os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        with _callers_lock:
            _callers -= 1
            if not _callers:
                os.environ.pop(_PARALLELISM)
                os.environ.update({} if _previous_parallelism is None else {_PARALLELISM: _previous_parallelism})
