"""What training leaves: a Hugging Face model folder, and the metrics of every step."""

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from alm_pipeline.config import Term
from alm_pipeline.models import load_tokenizer, quiet_transformers

METRICS = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        *((term, pa.float64()) for term in get_args(Term)),
        ("kl", pa.float64()),
        *((f"{term}_weight", pa.float64()) for term in get_args(Term)),
        ("chunks", pa.int64()),
        ("tokens", pa.int64()),
        ("aligned_chunk_tokens", pa.float64()),
        ("chunk_tokens", pa.float64()),
        ("used_share", pa.float64()),
        ("teacher_chunk_probability", pa.float64()),
        ("student_chunk_probability", pa.float64()),
        ("boundary_probability", pa.float64()),
        ("grad_norm", pa.float64()),
        ("learning_rate", pa.float64()),
    ]
)
"""The columns of `metrics.parquet`, a row a step.

`loss` is the terms with their weights (null: not asked for), `kl` the mean divergence of chunks, zero where the student
gives each the teacher's likelihood. `chunks` and `tokens` count; `aligned_chunk_tokens` and `chunk_tokens` are student
tokens a chunk before and after merging; `used_share` is of the aligned chunks those in a chunk that counts; the
probabilities are means over chunks, the last of a boundary token after the chunk by the student.
"""


def save_student(model: PreTrainedModel, tokenizer: str, log: list[dict[str, float]], folder: Path) -> None:
    """A model folder that plain transformers load, and `metrics.parquet` with a row a step."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
        load_tokenizer(tokenizer).save_pretrained(folder)
    pq.write_table(pa.Table.from_pylist(log, METRICS), folder / "metrics.parquet")
