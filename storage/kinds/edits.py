"""The columns of the datasets that an edit of activations is made from."""

import pyarrow as pa

from storage.kinds.fields import ID, list_of, required

DEMONSTRATIONS = pa.schema(
    [
        ID,
        required("prompt", pa.string()),
        required("positive", pa.string()),
        required("negative", pa.string()),
        pa.field("neutral", pa.string()),
    ]
)
NEUTRAL_ANSWERS = pa.schema([ID, required("answer", pa.string()), list_of("token_ids", pa.int32())])
ACTIVATIONS = pa.schema([ID])
SIDES = tuple(list_of(side, pa.float32()) for side in ("neutral", "positive", "negative"))
"""the optional columns of activations: those of neutral answers, or those of the two others"""
SUMS = ("neutral", "positive", "negative", "squares", "neutral_positive", "neutral_negative")
ACTIVATION_SUMS = pa.schema([ID, required("rows", pa.int64()), *(list_of(name, pa.float64()) for name in SUMS)])
