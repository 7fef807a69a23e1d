"""`fastokens`: other code for the same tokenizers, which returns ids as arrays."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from alm_pipeline.tokenization.engines.byte_fallback import join_bytes_first
from alm_pipeline.tokenization.engines.digits import split_digits_first
from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.rewriting import Rewritten, definition
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView

_THREADS = "FASTOKENS_BPE_THREADS"


class FastokensEngine:
    """`fastokens`: two to fifty times as fast.

    A text that it can't encode (a byte that the vocabulary lacks) is encoded by the standard engine. Raises ValueError
    where it can't read the tokenizer, and ImportError where it is not installed.
    """

    name = "fastokens"

    def __init__(self, tokenizer: Tokenizer, view: ByteView, standard: StandardEngine) -> None:
        from fastokens import Tokenizer as Fastokens

        # it reads the variable once. Its own threads would compete with its callers, of which there is one per core
        os.environ.setdefault(_THREADS, "1")
        self._standard = standard
        settings, model = _halves(tokenizer)
        rewritten = (
            split_digits_first(settings, model, tokenizer, view.size)
            or join_bytes_first(settings, model, view.size)
            or Rewritten(definition(settings, model))
        )
        self._expansion = rewritten.expansion
        with _panic_is_value_error("fastokens can't read the tokenizer"):
            self._tokenizer = Fastokens.from_json_str(rewritten.definition)

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        return FlatIds.join(list(self._parts(list(texts), special_literals)))

    def _parts(self, texts: list[str], special_literals: bool) -> Iterator[FlatIds]:
        """Yield the ids of consecutive texts. An error does not name its text, which is found by halving."""
        try:
            with _panic_is_value_error("fastokens can't encode a text"):
                ids, offsets = self._tokenizer.encode_batch_flat(texts, False, not special_literals)
        except ValueError:
            if len(texts) == 1:
                yield self._standard.encode(texts, special_literals=special_literals)
                return
            yield from self._parts(texts[: len(texts) // 2], special_literals)
            yield from self._parts(texts[len(texts) // 2 :], special_literals)
            return
        # a copy can be written to, as other offsets: numba would compile its functions again for one that can't
        flat = FlatIds(np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64).copy())
        yield self._expansion.of(flat) if self._expansion else flat


def _halves(tokenizer: Tokenizer) -> tuple[dict[str, Any], str]:
    """Return a tokenizer.json without its model, and the JSON of the model, which may have tens of megabytes."""
    state = tokenizer.to_str()
    # with its quotes, it can't be a part of a string
    at = state.index('"model":{')
    settings: dict[str, Any] = json.loads(state[:at].rstrip(",") + "}")
    # without steps that it need not take, and may not know
    return settings | dict.fromkeys(("post_processor", "decoder", "truncation", "padding")), state[at:]


@contextmanager
def _panic_is_value_error(subject: str) -> Iterator[None]:
    """Raise ValueError for any error of the library. The panics of Rust are not subclasses of Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{subject}: {error}") from error
