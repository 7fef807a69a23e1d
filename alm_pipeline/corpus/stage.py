"""The stage CORPUS → EXAMPLES: texts or conversations in shards of a configured size."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import pyarrow as pa

from alm_pipeline.config import CorpusConfig
from alm_pipeline.config.corpus import OF_CONVERSATIONS
from alm_pipeline.conversations.sections import joined_text
from alm_pipeline.corpus.examples import DocumentFilter, Example, iter_examples
from alm_pipeline.corpus.files.listing import CorpusFile
from alm_pipeline.corpus.formats.layouts import layout_line, resolve_layout
from alm_pipeline.corpus.formats.tools import Arguments
from alm_pipeline.corpus.sources import open_source
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.runtime.progress import show_line, track
from alm_pipeline.runtime.threads import in_background
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS
from storage.printed.counts import counts_in_words
from storage.schemas import Kind
from storage.urls import open_filesystem

STAGE_VERSION = 3


def examples_dataset(
    corpus: CorpusConfig,
    root: str,
    limit_identity: Mapping[str, object] | None = None,
    decisions: Dataset | None = None,
) -> Dataset:
    """Return the examples dataset of a corpus, whether or not it is written yet.

    A source is identified by its content: the same files in another place are the same examples. `limit_identity` is
    what decides the `TokenLimit` that the examples are written with, if there is one. `decisions` are those on the
    corpus's documents, if some are left out.
    """
    identity = {"stage_version": STAGE_VERSION, **corpus_identity(corpus, root), **(limit_identity or {})}
    if decisions:
        identity["decisions"] = decisions.name
    return Dataset(root, Kind.EXAMPLES, corpus.name, identity)


def corpus_identity(corpus: CorpusConfig, root: str) -> dict[str, object]:
    """Return what decides the examples of a corpus.

    Raises UserError if the source cannot be read, or has files of the storage itself, which every run changes.
    """
    source = open_source(corpus.source)
    _refuse_stored_files(source.files.files, root)
    return {"source": source.identity, "config": _settings(resolve_layout(corpus, source))}


_FILTERS = ("deduplicate", "decontaminate")
"""what is known by the name of the decisions that it leads to"""


def _settings(corpus: CorpusConfig) -> dict[str, object]:
    """Return what else decides the examples. Plain texts and messages are known by the columns alone.

    What one-sided bytes do is decided when both sides' tokens are there, and decides no example.
    """
    known = {"layout"} if corpus.layout in ("text", "messages") else {"text"}
    # what comes with conversations is part of the identity where there is some: datasets without keep their names
    absent = {name for name in OF_CONVERSATIONS if getattr(corpus, name) is None}
    return corpus.model_dump(mode="json", exclude={"source", "name", "one_sided", *_FILTERS, *known, *absent})


def _as_identified(corpus: CorpusConfig, examples: Dataset) -> CorpusConfig:
    """Return the corpus with the layout that its examples are named by, so that the first rows are not read again."""
    named = examples.identity["config"]
    layout = named.get("layout", "text" if named["messages"] is None else "messages")
    beside = {name: named.get(name) for name in OF_CONVERSATIONS}
    return corpus.model_copy(update={"layout": layout, "messages": named["messages"], **beside})


def learns_completions(examples: Dataset) -> bool:
    """Whether the examples are prompts with completions, of which only the completions are learned."""
    config = examples.identity.get("config")
    return isinstance(config, dict) and config.get("layout") == "prompt_completion"


def learns_marked(examples: Dataset) -> bool:
    """Whether messages of the examples are marked as learned or not, so that only answers are learned."""
    config = examples.identity.get("config")
    return isinstance(config, dict) and bool(config.get("marks"))


def _brings_arguments(examples: Dataset) -> bool:
    config = examples.identity.get("config")
    return isinstance(config, dict) and any(config.get(name) for name in ("tools", "template_arguments"))


def _refuse_stored_files(files: Iterable[CorpusFile], root: str) -> None:
    fs, path = open_filesystem(root)
    stored = tuple(f"{path}/{kind}/" for kind in (*Kind, *FOLDER_KINDS))
    if inside := next((file for file in files if file.fs == fs and file.path.startswith(stored)), None):
        raise UserError(
            f"{inside.url} is a file of the storage {root}, and not of a corpus; exclude its folders with "
            "corpus.source.exclude, or choose another storage"
        )


def write_examples(
    examples: Dataset, corpus: CorpusConfig, limit: TokenLimit | None = None, filtered: DocumentFilter | None = None
) -> Manifest:
    """Read the corpus and write every shard that is not written yet. With `limit`, it is cut by the student's tokens.

    `filtered` leaves documents out.

    Raises UserError if the corpus has no examples, or its source changes before all is written: no shard is written
    under the name of other content.
    """
    if manifest := examples.manifest():
        return manifest
    source, corpus = open_source(corpus.source), _as_identified(corpus, examples)
    if line := layout_line(corpus, source):
        show_line(line)
    source.require_identity(examples.identity["source"])
    dropped: Counter[str] = Counter()
    shards = 0
    with in_background(partial(write_shard, examples)) as write, track("shard", None, "B") as advance:
        found = _shards(iter_examples(corpus, dropped, source, limit, filtered), corpus.shard_bytes)
        for shards, shard in enumerate(found, start=1):
            source.check()
            if not examples.record(shards - 1):
                write(shards - 1, shard)
            advance(_text_bytes(shard))
        source.check(final=True)
    if limit is not None:
        limit.lengths.check_unchanged()
    if not shards:
        reasons = counts_in_words(dropped, "nothing was read")
        raise UserError(
            f"corpus {corpus.name}: has no examples ({reasons}): check corpus.source, .text, .layout and .sample"
        )
    return examples.finish(shards, dropped)


def _shards(examples: Iterable[Example], shard_bytes: int) -> Iterator[list[Example]]:
    shard: list[Example] = []
    size = 0
    for example in examples:
        shard.append(example)
        size += example.text_bytes
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _text_bytes(shard: list[Example]) -> int:
    return sum(example.text_bytes for example in shard)


def _text(example: Example) -> str:
    return example.text if example.text is not None else joined_text(example.messages or [])


def _json(arguments: Arguments | None) -> str | None:
    return json.dumps(arguments, ensure_ascii=False) if arguments else None


def write_shard(examples: Dataset, index: int, shard: list[Example]) -> None:
    """Write examples as a shard of the dataset."""
    conversations = [json.dumps(row.messages, ensure_ascii=False) if row.messages else None for row in shard]
    columns = {
        "id": [example.id for example in shard],
        "split": [example.split for example in shard],
        "text": [_text(example) for example in shard],
        "messages": pa.array(conversations, pa.string()),
    }
    completions = [example.completion_at for example in shard]
    if None not in completions:
        columns["completion_at"] = pa.array(completions, pa.int32())
    if _brings_arguments(examples) or any(example.arguments for example in shard):
        columns["template_arguments"] = pa.array(map(_json, (example.arguments for example in shard)), pa.string())
    held_out = sum(example.split == "held_out" for example in shard)
    counts = {
        "examples": len(shard),
        "held_out_examples": held_out,
        "normalized_examples": sum(example.normalized for example in shard),
        "text_bytes": _text_bytes(shard),
        **_cut_counts(shard),
    }
    examples.write_shard(index, columns, counts)


def _cut_counts(shard: list[Example]) -> dict[str, int]:
    """Return the number of examples that end where their document goes on, their bytes, and the student's tokens.

    The tokens are counted where they are the limit. What remains of a document at its end says nothing of the limit.
    """
    cut = [example for example in shard if example.continues]
    counts = {"cut_examples": len(cut), "cut_bytes": _text_bytes(cut)}
    tokens = [example.tokens for example in cut if example.tokens is not None]
    return {**counts, "cut_tokens": sum(tokens)} if tokens else counts
