"""Tasks of lm_eval over questions of a test's own."""

import json
from collections.abc import Sequence
from pathlib import Path


def write_choices(folder: Path, name: str, questions: Sequence[tuple[str, Sequence[str], int]]) -> None:
    """Write a multiple-choice task into a folder; a question has its text, its choices and the right one's number."""
    rows = [{"question": text, "choices": choices, "answer": answer} for text, choices, answer in questions]
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))
