"""The corpus: documents read from a source, cut into examples with stable ids, sampled and split.

`files` finds and reads Parquet, JSONL and text files; `sources` reads the rows of any source; `documents` makes texts
or conversations of rows; `cutting` cuts them; `examples` combines these steps; `identity` fingerprints the content of a
source. Errors that a user can fix are `UserError`s; a row that cannot be used is counted by reason in a `Counter`,
never lost silently.
"""

from alm_pipeline.corpus.cutting import cut_messages, cut_text
from alm_pipeline.corpus.documents import Document, read_documents
from alm_pipeline.corpus.examples import Example, iter_examples
from alm_pipeline.corpus.source_identity import source_identity

__all__ = [
    "Document",
    "Example",
    "cut_messages",
    "cut_text",
    "iter_examples",
    "read_documents",
    "source_identity",
]
