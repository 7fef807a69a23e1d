"""A small store: two teachers' caches of the same examples, and a student of one of them."""

from dataclasses import replace
from typing import Any

from storage.dataset import Dataset
from storage.folders import StoredFolder
from storage.schemas import Kind
from tests.storage.samples import write

TOKENIZER, STUDENT = "a" * 64, "b" * 64
"""what other identities name the stored tokenizer and the student by"""


def tokenizer(root: str) -> StoredFolder:
    folder = StoredFolder(root, "tokenizers", "bpe", {"stage_version": 1}, provenance={"commit": "c0ffee"})
    folder.path.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special.json"):
        (folder.path / name).write_text(name)
    folder.finish({"tokens": 3}, content=TOKENIZER)
    return folder


def member(root: str, kind: Kind, label: str, shards: int = 2, **identity: Any) -> Dataset:
    made = replace(Dataset(root, kind, label, identity), provenance={"commit": "c0ffee"})
    write(made, shards)
    return made


def small_store(root: str) -> dict[str, Dataset | StoredFolder]:
    """Write a store and return its members by role; the student was made from `scores`, none from `other_scores`."""
    bpe = tokenizer(root)
    examples = member(root, Kind.EXAMPLES, "corpus")
    teacher = member(root, Kind.TOKENS, "corpus-t", examples=examples.name, tokenizer="f" * 64)
    student = member(root, Kind.TOKENS, "corpus-s", examples=examples.name, tokenizer=TOKENIZER)
    alignments = member(root, Kind.ALIGNMENTS, "t-to-s", teacher_tokens=teacher.name, student_tokens=student.name)
    scores = member(root, Kind.TEACHER_SCORES, "corpus-t", tokens=teacher.name, teacher="e" * 64)
    other = member(root, Kind.TEACHER_SCORES, "corpus-t", tokens=teacher.name, teacher="d" * 64)
    inputs = {
        "examples": examples.name,
        "teacher_tokens": teacher.name,
        "student_tokens": student.name,
        "alignments": alignments.name,
        "scores": scores.name,
    }
    made = StoredFolder(
        root, "students", "tiny", {"inputs": inputs, "tokenizer": TOKENIZER}, provenance={"commit": "c0ffee"}
    )
    made.path.mkdir(parents=True)
    # a student holds a copy of its tokenizer
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (made.path / name).write_text(name)
    made.finish({"held_out": 1.0}, content=STUDENT)
    return {
        "tokenizer": bpe,
        "examples": examples,
        "teacher_tokens": teacher,
        "student_tokens": student,
        "alignments": alignments,
        "scores": scores,
        "other_scores": other,
        "student": made,
    }


def key(stored: Dataset | StoredFolder) -> str:
    return f"{stored.kind}/{stored.name}"
