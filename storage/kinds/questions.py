"""The columns of multiple-choice questions, and of what models make of them."""

import pyarrow as pa

from storage.kinds.fields import ID, list_of, required

QUESTIONS = pa.schema(
    [
        ID,
        required("prompt", pa.string()),
        list_of("choices", pa.string()),
        required("answer", pa.int32()),
        required("cluster", pa.string()),
    ]
)
CHOICE_SCORES = pa.schema(
    [
        ID,
        pa.field("weight", pa.float64()),
        list_of("logprobs", pa.float64()),
        list_of("tokens", pa.int32()),
        list_of("byte_lengths", pa.int32()),
        pa.field("dropped", pa.string()),
    ]
)
