"""What is in a stored folder (a tokenizer, pair biases, a student), as plain values that people can read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer

from alm_pipeline.naming.names import names_apart
from storage.errors import UserError, user_error
from storage.folders import FolderManifest, load_folder_manifest
from storage.urls import join_url, read_bytes

_CONFIG = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "dtype",
)


def folder_head(url: str, count: int) -> dict[str, Any]:
    """Return the files, results and tokenizer of a stored folder; of its vocabulary the first `count` tokens.

    Raises UserError if there is no complete folder at the URL.
    """
    manifest = load_folder_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: not a complete folder (it has no manifest.json); `alm list ROOT` lists all")
    kind = url.rstrip("/").rsplit("/", 2)[-2]
    return {
        "kind": kind,
        "name": manifest.name,
        "url": url,
        **(_student(url, manifest) if kind == "students" else {}),
        **_tokenizer(url, manifest, count),
        "results": {name: value for name, value in manifest.results.items() if value != {}},
        "files": [{"file": name, "bytes": manifest.sizes.get(name)} for name in manifest.files],
    }


def _student(url: str, manifest: FolderManifest) -> dict[str, Any]:
    config = manifest.provenance.get("configuration")
    recorded = config if isinstance(config, Mapping) else {}
    described = _read(url, "config.json", json.loads) or {}
    return {
        "student_name": names_apart({manifest.name: recorded})[manifest.name],
        "made_from": {"teacher": recorded.get("teacher"), "student": recorded.get("student")},
        "model": {name: described[name] for name in _CONFIG if name in described},
    }


def _tokenizer(url: str, manifest: FolderManifest, count: int) -> dict[str, Any]:
    if "tokenizer.json" not in manifest.files:
        return {}
    tokenizer: Tokenizer | None = _read(url, "tokenizer.json", Tokenizer.from_str)
    settings = _read(url, "tokenizer_config.json", json.loads) or {}
    if tokenizer is None:
        return {}
    added = tokenizer.get_added_tokens_decoder()
    ids = sorted(set(tokenizer.get_vocab(with_added_tokens=False).values()) - set(added))[:count]
    return {
        "tokenizer": {
            "tokens": tokenizer.get_vocab_size(),
            "has_chat_template": "chat_template" in settings or "chat_template.jinja" in manifest.files,
            "special_tokens": [{"id": id_, "text": token.content} for id_, token in added.items() if token.special],
            "first_tokens": [{"id": id_, "text": tokenizer.id_to_token(id_)} for id_ in ids],
        }
    }


def _read(url: str, name: str, parse: Callable[[str], Any]) -> Any:
    """Parse a file of the folder; None without it. Raises UserError if it is damaged."""
    content = read_bytes(join_url(url, name))
    if content is None:
        return None
    with user_error(f"{url}/{name}: can't be read", f"`alm repair --checksums {url}` writes it again"):
        return parse(content.decode())
