"""The columns of a corpus and of what both sides' tokenizers and the teacher make of it."""

import pyarrow as pa

from storage.kinds.fields import ID, list_of, required

EXAMPLES = pa.schema(
    [ID, required("split", pa.string()), required("text", pa.string()), pa.field("messages", pa.string())]
)
TOKENS = pa.schema(
    [
        ID,
        list_of("token_ids", pa.int32()),
        list_of("byte_lengths", pa.int32()),
        list_of("kinds", pa.uint8()),
        list_of("turns", pa.int16()),
        list_of("roles", pa.string()),
        list_of("turn_bytes", pa.int32()),
        list_of("uncovered_at", pa.int32()),
        list_of("uncovered_bytes", pa.int32()),
        pa.field("dropped", pa.string()),
    ]
)
ALIGNMENTS = pa.schema(
    [
        ID,
        list_of("teacher_tokens", pa.int32()),
        list_of("student_tokens", pa.int32()),
        list_of("byte_lengths", pa.int32()),
        list_of("kinds", pa.uint8()),
        list_of("ends", pa.uint8()),
        list_of("assistant", pa.bool_()),
    ]
)
TEACHER_SCORES = pa.schema([ID, list_of("logprobs", pa.float32()), list_of("boundary_logprobs", pa.float32())])
TOP = (list_of("top_ids", pa.int32()), list_of("top_logprobs", pa.float32()))
"""the teacher's likeliest next tokens, which scores have on demand"""
