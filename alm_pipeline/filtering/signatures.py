"""The stage CORPUS → SIGNATURES: what of each document is compared with others, before anything is cut or left out.

A row is a document, in the corpus's order, whatever becomes of it. Signatures depend on no model: texts are compared in
one form of characters, without the case and punctuation of words.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from alm_pipeline.config import CorpusConfig, DecontaminationConfig, DeduplicationConfig
from alm_pipeline.conversations.sections import joined_text
from alm_pipeline.corpus.contamination import QuestionIndex, question_texts
from alm_pipeline.corpus.documents import Document, read_documents
from alm_pipeline.corpus.files.errors import columns_set_by
from alm_pipeline.corpus.formats.layouts import resolve_layout
from alm_pipeline.corpus.sources import open_source, source_identity
from alm_pipeline.filtering.minhash import algorithm, band_hashes
from alm_pipeline.recipes.overrides import corpus_at
from alm_pipeline.runtime.progress import track
from alm_pipeline.runtime.threads import in_background
from alm_pipeline.vocabulary.text_forms import NFC, TextNormalizer
from storage.columns import list_array
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.printed.secrets import masked
from storage.schemas import Kind

STAGE_VERSION = 1
DOCUMENTS_PER_SHARD = 50_000


def signatures_dataset(corpus: CorpusConfig, root: str) -> Dataset:
    """Return the signatures of a corpus's documents, whether or not they are written yet.

    Raises UserError if a source can't be read, or a library is missing.
    """
    source = open_source(corpus.source)
    identity: dict[str, Any] = {
        "stage_version": STAGE_VERSION,
        "source": source.identity,
        "documents": _read_by(resolve_layout(corpus, source)),
    }
    if (near := corpus.deduplicate) and near.near:
        identity |= {"near": {"similarity": near.similarity, "words": near.words, "algorithm": algorithm()}}
    if asked := corpus.decontaminate:
        sets = [source_identity(_questions_at(url, asked.text).source) for url in asked.questions]
        identity |= {"questions_of": {"sets": sets, "text": asked.text, "words": asked.words}}
        identity |= {"named_by_set": True} if len(sets) > 1 else {}  # before, sets of one file name hid each other
    return Dataset(root, Kind.SIGNATURES, corpus.name, identity)


def _read_by(corpus: CorpusConfig) -> dict[str, Any]:
    """Return what decides the text of each document."""
    fields = {"text", "messages", "layout", "id", "tools", "template_arguments", "marks"}
    return corpus.model_dump(mode="json", include=fields)


def _questions_at(url: str, text: str) -> CorpusConfig:
    return corpus_at(url, {"layout": "text", "text": text})


def require_questions(asked: DecontaminationConfig) -> None:
    """Raise UserError if an evaluation set can't be read, or has no question: the first one of each is read."""
    for url in asked.questions:
        dropped = Counter[str]()
        with columns_set_by("Set corpus.decontaminate.text to one of these, or to a template of them."):
            is_empty = not any(True for _ in read_documents(_questions_at(url, asked.text), dropped))
        if is_empty:
            reasons = counts_in_words(dropped, "nothing was read")
            raise UserError(
                f"corpus.decontaminate.questions: {url} has no question ({reasons}): check "
                "corpus.decontaminate.text, the column or template that holds them"
            )


def write_signatures(signatures: Dataset, corpus: CorpusConfig) -> Manifest:
    """Read the corpus and write every shard of signatures that is not written yet.

    Raises UserError if the source changes before all is written, or an evaluation set has no question.
    """
    if manifest := signatures.manifest():
        return manifest
    source, dropped = open_source(corpus.source), Counter[str]()
    source.require_identity(signatures.identity["source"])
    questions, shards = _question_index(corpus), 0
    documents = read_documents(corpus, dropped, source)
    with in_background(partial(_write_shard, signatures)) as write, track("compare", None, "documents") as advance:
        for shards, group in enumerate(_groups(documents), start=1):
            source.check()
            if not signatures.record(shards - 1):
                write(shards - 1, signatures_of(group, corpus.deduplicate, questions))
            advance(len(group))
        source.check(final=True)
    return signatures.finish(shards)


def _question_index(corpus: CorpusConfig) -> QuestionIndex | None:
    asked = corpus.decontaminate
    if asked is None:
        return None
    require_questions(asked)
    texts: dict[str, str] = {}
    for url in asked.questions:
        found = question_texts(_questions_at(url, asked.text), Counter())
        # files of one name in several folders have the same ids
        texts |= {f"{masked(url)}: {id_}": text for id_, text in found.items()} if len(asked.questions) > 1 else found
    return QuestionIndex(texts, asked.words)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while group := list(islice(iterator, DOCUMENTS_PER_SHARD)):
        yield group


def signatures_of(
    documents: list[Document], deduplicate: DeduplicationConfig | None, questions: QuestionIndex | None
) -> pa.Table:
    """Return a row per document: the hash of its text, those of its bands, and a question that it contains."""
    normalize = TextNormalizer([NFC])
    texts = [normalize(_text(document)) for document in documents]
    near = deduplicate if deduplicate and deduplicate.near else None
    bands = band_hashes(texts, near.similarity, near.words) if near else [np.zeros(0, np.uint64)] * len(texts)
    offsets = np.cumsum([0, *map(len, bands)])
    return pa.table(
        {
            "id": [document.id for document in documents],
            "text_hash": pa.array(map(_text_hash, texts), pa.uint64()),
            "bands": list_array(np.concatenate([np.zeros(0, np.uint64), *bands]), offsets, pa.uint64()),
            "question": pa.array([questions.first_in(text) if questions else None for text in texts], pa.string()),
        }
    )


def _text(document: Document) -> str:
    return document.text if document.text is not None else joined_text(document.messages or [])


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8, person=b"text").digest(), "little")


def _write_shard(signatures: Dataset, index: int, table: pa.Table) -> None:
    columns = {name: table[name] for name in table.column_names}
    signatures.write_shard(index, columns, {"documents": table.num_rows})
