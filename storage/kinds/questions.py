"""The columns of multiple-choice questions and of places in texts, and of what models make of them."""

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
PLACES = pa.schema([ID, required("before", pa.string()), required("byte", pa.int32()), required("text", pa.int64())])
NEXT_BYTES = pa.schema(
    [ID, pa.field("weight", pa.float64()), list_of("logprobs", pa.float64()), pa.field("dropped", pa.string())]
)
