"""Examples that a model wrote, as a corpus's source: they are taken as they are stored, and never cut again.

What looks at a corpus before its examples are there (checks, plans) reads them as prompts with completions.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from alm_pipeline.config import WrittenSource
from alm_pipeline.corpus.cutting import split_text
from alm_pipeline.corpus.files.rows import Columns, SourceRow
from alm_pipeline.corpus.formats.layouts import ARGUMENTS_COLUMN, TOOLS_COLUMN
from storage.dataset import Dataset, open_dataset
from storage.errors import UserError
from storage.printed.secrets import masked
from storage.schemas import Kind


def written_examples(source: WrittenSource) -> Dataset:
    """Return the examples that a source names.

    Raises UserError if they are not complete, or are not examples that a model wrote.
    """
    dataset = open_dataset(source.examples)
    if dataset.kind != Kind.EXAMPLES or "writer" not in dataset.identity:
        raise UserError(
            f"{masked(source.examples)}: holds no examples that a model wrote: name the folder that `alm write` "
            "printed, …/examples/NAME"
        )
    return dataset


def read_written(source: WrittenSource, columns: Columns, dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the examples as rows with the columns `prompt` and `completion`, and what comes with conversations."""
    dataset = written_examples(source)
    for shard in range(len(dataset.complete_manifest().shards)):
        for row in dataset.read_shard(shard).to_pylist():
            yield row["id"], _source_row(row)


def _source_row(row: Mapping[str, Any]) -> SourceRow:
    at = row["completion_at"]
    if row["messages"] is None:
        prompt, completion = split_text(row["text"], at)
        return {"prompt": prompt, "completion": completion}
    messages = json.loads(row["messages"])
    arguments = json.loads(row.get("template_arguments") or "{}")
    beside = {TOOLS_COLUMN: arguments.pop("tools", None), ARGUMENTS_COLUMN: arguments or None}
    found = {name: value for name, value in beside.items() if value}
    return {"prompt": messages[:at], "completion": messages[at:], **found}
