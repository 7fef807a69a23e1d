"""The corpus: documents read from a source, cut into examples with stable ids, sampled and split.

The room `files` finds, hashes and reads files; `sources` opens any source: its rows, and the identity of its content;
`documents` makes texts or conversations of rows; `cutting` cuts texts by bytes, `token_cutting` by the student's
tokens, and `turns` conversations; `examples` combines these steps. Errors that a user can fix are `UserError`s; a row
that cannot be used is counted by reason in a `Counter`, never lost silently.
"""

from alm_pipeline.corpus.cutting import cut_text
from alm_pipeline.corpus.documents import Document, read_documents
from alm_pipeline.corpus.examples import Example, iter_examples
from alm_pipeline.corpus.sources import OpenSource, open_source, source_identity
from alm_pipeline.corpus.turns import cut_messages

__all__ = [
    "Document",
    "Example",
    "OpenSource",
    "cut_messages",
    "cut_text",
    "iter_examples",
    "open_source",
    "read_documents",
    "source_identity",
]
