"""What turns texts into ids, and Hugging Face `tokenizers`, which all others are held against."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Protocol

from tokenizers import Tokenizer

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_parallelism_before: str | None = None
_callers = 0
_callers_lock = Lock()


class Engine(Protocol):
    """Encodes texts. `special_literals`: a special token's literal in a text is that token, and not text.

    Threads may share one as long as they ask for the same `special_literals`.
    """

    name: str

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> list[list[int]]:
        """The ids of each text, without what a post-processor puts around them."""
        ...


class StandardEngine:
    """Hugging Face `tokenizers`, which every tokenizer.json is written for."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> list[list[int]]:
        return _encode(self._tokenizer, texts, special_literals)

    def encode_stretches(self, stretches: Sequence[str]) -> list[list[int]]:
        """The ids of a text's stretches between its special tokens, each as it is encoded in the whole text.

        Special tokens' literals in them are text.
        """
        start, inside = self._of_stretches
        return _encode(start, stretches[:1], False) + _encode(inside, stretches[1:], False)

    @cached_property
    def _of_stretches(self) -> tuple[Tokenizer, Tokenizer]:
        """For the start of a text, and for behind it: without the space that is put in front of a whole text only.

        Not the engine's own tokenizer, with which other threads may be reading special tokens' literals otherwise.
        """
        state = self._tokenizer.to_str()
        inside = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        start = Tokenizer.from_str(state)
        return start, start if inside == state else Tokenizer.from_str(inside)


def _encode(tokenizer: Tokenizer, texts: Sequence[str], special_literals: bool) -> list[list[int]]:
    # to set it is to wait for the other threads' calls, with the interpreter's lock held
    if tokenizer.encode_special_tokens == special_literals:
        tokenizer.encode_special_tokens = not special_literals
    return [row.ids for row in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


@contextmanager
def one_thread_a_call() -> Iterator[None]:
    """`tokenizers` encodes a batch in the thread that calls it: for a caller with a thread for each core.

    Its own threads wait for the batch's last text, and for the caller to take the ids of each batch.
    """
    global _callers, _parallelism_before
    with _callers_lock:
        if not _callers:
            _parallelism_before = os.environ.get(_PARALLELISM)
        _callers += 1
        os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        with _callers_lock:
            _callers -= 1
            if not _callers:
                os.environ.pop(_PARALLELISM)
                os.environ.update({} if _parallelism_before is None else {_PARALLELISM: _parallelism_before})
