"""Tiny corpora of examples, written as the corpus stage writes them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.dataset import Dataset
from storage.fingerprints import fingerprint
from storage.schemas import Kind


def text_examples(root: Path, shards: list[list[str]], name: str = "tiny") -> Dataset:
    """Write texts with the ids `<shard>-<row>`."""
    return _write(root, name, [[(text, None) for text in texts] for texts in shards])


def conversations(root: Path, chats: list[list[dict[str, Any]]], name: str = "chats") -> Dataset:
    """Write conversations in one shard."""
    return _write(root, name, [[("".join(m["content"] for m in chat), json.dumps(chat)) for chat in chats]])


def write_chats(file: Path, answer: str = "{}.") -> str:
    """Write forty sums, as questions and answers, to a JSONL file; returns its path."""
    questions = [f"How much is {k} + 1?" for k in range(40)]
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer.format(k + 1)}]
        for k, question in enumerate(questions)
    ]
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return str(file)


def _write(root: Path, name: str, shards: list[list[tuple[str, str | None]]]) -> Dataset:
    examples = Dataset(str(root), Kind.EXAMPLES, name, {"rows": fingerprint({"rows": shards})})
    for shard, rows in enumerate(shards):
        columns = {
            "id": pa.array([f"{shard}-{row}" for row in range(len(rows))], pa.string()),
            "split": pa.array(["train"] * len(rows), pa.string()),
            "text": pa.array([text for text, _ in rows], pa.string()),
            "messages": pa.array([messages for _, messages in rows], pa.string()),
        }
        size = sum(len(text.encode()) for text, _ in rows)
        examples.write_shard(shard, columns, {"examples": len(rows), "text_bytes": size})
    examples.finish(len(shards))
    return examples
