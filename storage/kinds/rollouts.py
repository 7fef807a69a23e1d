"""The columns that examples have beside the usual ones: of prompts with completions, and of what a model wrote."""

import pyarrow as pa

from storage.kinds.fields import list_of, required

COMPLETION_AT = (required("completion_at", pa.int32()),)
FINISHED, TRUNCATED = "stop", "length"
"""Why a text ends: the model ended it, or it had as many tokens as were allowed."""
WRITTEN = (required("finish_reason", pa.string()), list_of("written_ids", pa.int32()))
"""`written_ids` only where the writer's tokens are known, not of an endpoint that returns text."""
