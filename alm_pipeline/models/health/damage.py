"""What is wrong with a file of a model or tokenizer, found without the library that failed to read it.

Libraries report a damaged file by where their parser stopped, often without its name. So when one fails, the files that
it reads are looked at here: a pointer instead of the content, an interrupted download, something else under that name.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storage.errors import UserError, cause, user_error

INDEX = "model.safetensors.index.json"
MODEL_DOCUMENTS = ("config.json", "generation_config.json", INDEX, "adapter_config.json")
"""The JSON files that loading a model reads, if they exist."""
TOKENIZER_DOCUMENTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The small JSON files that loading a tokenizer reads, if they exist."""
VOCABULARY = "tokenizer.json"
_PREFIX = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]')
_POINTER = b"version https://git-lfs"
_FETCH = "fetch it again, or save the model again (save_pretrained)"


@contextmanager
def reading_model(name: str, folder: Path, weights: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Turn any error of reading a model's folder into a UserError that names the damaged file, or else the model.

    `weights` returns the names of the files of the weights that are read, and of their index; by default none are.
    """
    if not os.path.lexists(folder / "config.json"):
        raise UserError(
            f"{name}: has no config.json, so it is not a model's folder; save a model there (save_pretrained)"
        )
    check_documents(folder, MODEL_DOCUMENTS)
    fix = "check its config.json and weights, or save the model again (save_pretrained)"
    try:
        with user_error(f"{name}: can't be loaded as a causal language model", fix):
            yield
    except UserError as error:
        for file in weights():
            if file.endswith(".safetensors"):
                check_weights_file(folder / file)
        if package := _missing_package(error.__cause__):
            raise UserError(
                f"{name}: can't be loaded without a package that is not installed ({cause(error.__cause__ or error)}): "
                f"install {package} and run it again"
            ) from error
        raise


@contextmanager
def reading_tokenizer(name: str, folder: Path) -> Iterator[None]:
    """Turn any error of reading a tokenizer's files into a UserError that names the damaged one, or else all."""
    check_documents(folder, TOKENIZER_DOCUMENTS)
    for file in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if os.path.lexists(file):
            read_document(file)
    fix = "save it again with this version of transformers (AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
    try:
        with user_error(f"{name}: its tokenizer (tokenizer.json, tokenizer_config.json) can't be loaded", fix):
            yield
    except UserError:
        read_json(folder / VOCABULARY)  # takes seconds, if it is not damaged
        raise


def check_merges(file: Path) -> None:
    """Raise UserError if the merges of a tokenizer.json don't fit its continuing_subword_prefix.

    tokenizers cuts the prefix off without looking, and ends the whole process where that splits a character.
    """
    text = read_document(file)
    if not _PREFIX.search(text):
        return
    model = read_json(file).get("model")
    prefix, merges = (
        (model.get("continuing_subword_prefix"), model.get("merges")) if isinstance(model, dict) else ("", ())
    )
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return  # the library refuses other types itself
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(pair, list) and pair and not str(pair[-1]).startswith(prefix):
            raise UserError(
                f"{file}: its merge {merge!r} does not end with a piece that has the continuing_subword_prefix "
                f"{prefix!r}: remove the prefix, or save the tokenizer again"
            )


def check_documents(folder: Path, names: tuple[str, ...]) -> None:
    """Raise UserError if one of these files exists and does not hold a JSON object."""
    for name in names:
        if os.path.lexists(folder / name):
            read_json(folder / name)


def read_json(file: Path) -> dict[str, object]:
    """Read a JSON object. Raises UserError naming the file, what it holds instead, and the fix."""
    text = read_document(file)
    with user_error(f"{file}: is not valid JSON, or only a part of it", _FETCH):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds {text.strip()[:20]!r}, not a JSON object; {_FETCH}")
    return content


def read_document(file: Path) -> str:
    """Read a text file. Raises UserError if it can't be read, is empty, or is a pointer to the content."""
    _refuse_special(file)
    with user_error(f"{file}: can't be read", "make it a readable file, or fetch it again"):
        content = file.read_bytes()
    _check_start(file, content[:100])
    with user_error(f"{file}: is not UTF-8 text", _FETCH):
        return content.decode()


def check_weights_file(file: Path) -> None:
    """Raise UserError if a safetensors file is missing, is not one, or is not all of one."""
    if not os.path.lexists(file):
        raise UserError(f"{file}: is missing, but an index names it: fetch it, or save the model again")
    _refuse_special(file)
    with user_error(f"{file}: can't be read", "make it a readable file, or fetch it again"), file.open("rb") as opened:
        start = opened.read(100)
        _check_start(file, start)
        header_bytes = int.from_bytes(start[:8], "little")
        size = os.fstat(opened.fileno()).st_size
        if len(start) < 9 or start[8:9] != b"{":
            raise UserError(f"{file}: is not a safetensors file; {_FETCH}")
        opened.seek(8)
        header = opened.read(header_bytes) if 8 + header_bytes <= size else b""
    expected = 8 + header_bytes + _data_bytes(file, header) if header else 8 + header_bytes
    if size < expected or not header:
        raise UserError(f"{file}: is only {size} of {expected} bytes long, as after an interrupted copy; {_FETCH}")


def _data_bytes(file: Path, header: bytes) -> int:
    with user_error(f"{file}: its header is damaged", _FETCH):
        entries = json.loads(header)
        return max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)


def _refuse_special(file: Path) -> None:
    """Raise UserError for what is neither a file nor a folder: reading it may never end."""
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise UserError(f"{file}: is a FIFO, a device or a socket, not a file; {_FETCH}")


def _check_start(file: Path, start: bytes) -> None:
    if not start.strip():
        raise UserError(f"{file}: is empty; {_FETCH}")
    if start.startswith(_POINTER):
        raise UserError(
            f"{file}: is a git-lfs pointer, not the content: run `git lfs pull` in the repository that it comes from"
        )


def _missing_package(error: BaseException | None) -> str | None:
    """Return how to name the package that an ImportError is about; None for another error."""
    if not isinstance(error, ImportError):
        return None
    return f"the package {error.name!r}" if error.name else "what the message names"
