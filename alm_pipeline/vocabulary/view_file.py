"""The byte view of a vocabulary, made once in a process, and once on a machine: as a file in its cache folder."""

import io
import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from alm_pipeline.runtime.derived_files import read_derived, write_derived
from alm_pipeline.runtime.versions import installed_version
from alm_pipeline.vocabulary.byte_view import AbsorbedSpace, ByteView, byte_view
from storage.fingerprints import fingerprint, hash_files

_MASKS = ("special", "starts_word", "fallback")
_views: WeakValueDictionary[str, ByteView] = WeakValueDictionary()


def shared_view(definition: str, tokenizer: Callable[[], Tokenizer], *, on_disk: bool) -> ByteView:
    """Return the byte view of a tokenizer; a process has one for each definition at a time.

    `definition` is the SHA-256 of the tokenizer as JSON, without truncation, padding and dropout. `tokenizer` loads it
    if need be. With `on_disk`, later processes read the view from this machine's cache folder. Raises UserError as
    `byte_view` does.
    """
    view = _views.get(definition)
    if view is None:
        view = (_read(definition) if on_disk else None) or byte_view(tokenizer())
        if on_disk and definition not in _views:
            _write(definition, view)
    return _views.setdefault(definition, view)


def view_bytes(view: ByteView) -> bytes:
    """Return the view as a file of NumPy arrays."""
    added = [[id_, *absorbed] for id_, absorbed in view.added.items()]
    settings = {"unknown": view.unknown, "space": view.space, "drops_space": view.drops_space, "added": added}
    arrays = {
        "letters": view.letters,
        "starts": view.starts,
        "settings": np.frombuffer(json.dumps(settings).encode(), np.uint8),
        **{name: getattr(view, name) for name in _MASKS},
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def view_from_bytes(content: memoryview) -> ByteView:
    """Return the view that a file holds."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        letters, starts = arrays["letters"], arrays["starts"]
        settings = json.loads(arrays["settings"].tobytes())
        masks = {name: arrays[name] for name in _MASKS}
    text = letters.tobytes()
    # from arrays that can be written to, as a new view's: numba would compile its functions again for others
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(letters)]
    return ByteView(
        spelling=tuple(text[start:end] for start, end in pairwise(starts.tolist())),
        lengths=np.diff(starts).astype(np.int32),
        arrow=pa.Array.from_buffers(pa.large_binary(), len(starts) - 1, buffers),
        unknown=settings["unknown"],
        space=settings["space"],
        drops_space=settings["drops_space"],
        added={id_: AbsorbedSpace(*absorbed) for id_, *absorbed in settings["added"]},
        **masks,
    )


def _read(definition: str) -> ByteView | None:
    content = read_derived(_file_name(definition))
    return None if content is None else view_from_bytes(content)


def _write(definition: str, view: ByteView) -> None:
    write_derived(_file_name(definition), view_bytes(view))


def _file_name(definition: str) -> str:
    return f"{fingerprint({'view of': definition, **_circumstances()})}.npz"


@cache
def _circumstances() -> dict[str, str | None]:
    """Return what else decides a view: this folder's code, and the library that the tokenizer is asked through."""
    return {"code": hash_files(Path(__file__).parent, ("*.py",)), "tokenizers": installed_version("tokenizers")}
