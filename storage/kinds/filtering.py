"""The columns of the datasets that decide which documents of a corpus are left out."""

import pyarrow as pa

from storage.kinds.fields import ID, list_of, required

SIGNATURES = pa.schema(
    [ID, required("text_hash", pa.uint64()), list_of("bands", pa.uint64()), pa.field("question", pa.string())]
)
DECISIONS = pa.schema([ID, pa.field("reason", pa.string()), pa.field("repeats", pa.string())])
