"""How long `align` takes a token, beside a plain Python loop over the same tokens that has to find the same chunks.

python -m benchmarks.align [--megabytes 12] [--teacher gemma3 --student llama3]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from alm_pipeline.alignment.chunks import AssistantTurns, ShardTokens, align
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.vocabulary.text_forms import NFC, TextNormalizer
from benchmarks.corpus import mixed_documents
from tests.real_tokenizers import tokenizer_folder


def shard(name: str, documents: list[str]) -> ShardTokens:
    """The texts' own tokens, so that the plain loop needs to know bytes only."""
    encoder = ByteEncoder(LoadedTokenizer(str(tokenizer_folder(name))))
    batch = encoder.encode(documents)
    assert not any(batch.dropped)
    assert not batch.uncovered
    own = batch.byte_lengths > 0
    offsets = np.concatenate([[0], np.cumsum(own)])[batch.offsets]
    none, runs = np.zeros(0, np.int32), np.zeros_like(offsets)
    columns = (batch.byte_lengths[own], batch.kinds[own], batch.turns[own])
    return ShardTokens(offsets, *columns, runs, none, none, np.zeros(len(documents), bool))


def plain_loop(teacher: list[int], student: list[int]) -> list[tuple[int, int]]:
    chunks, t, s, ahead, last = [], 0, 0, 0, (0, 0)
    while t < len(teacher) or s < len(student):
        if ahead <= 0:
            t, ahead = t + 1, ahead + teacher[t]
        else:
            s, ahead = s + 1, ahead - student[s]
        if ahead == 0:
            chunks.append((t - last[0], s - last[1]))
            last = (t, s)
    return chunks


def lengths(side: ShardTokens) -> list[list[int]]:
    return [row.tolist() for row in np.split(side.byte_lengths, side.offsets[1:-1])]


def seconds(function: Callable[[], object], times: int) -> float:
    runs = [(time.perf_counter(), function(), time.perf_counter()) for _ in range(times)]
    return min(end - start for start, _, end in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--teacher", default="gemma3")
    parser.add_argument("--student", default="llama3")
    options = parser.parse_args()
    documents = [TextNormalizer([NFC])(text) for text in mixed_documents(options.megabytes)]
    teacher, student = (shard(name, documents) for name in (options.teacher, options.student))
    turns = AssistantTurns(np.zeros_like(teacher.offsets), np.zeros(0, bool))
    rows = list(zip(lengths(teacher), lengths(student), strict=True))
    tokens = len(teacher.kinds) + len(student.kinds)
    chunks, expected = align(teacher, student, turns), [chunk for row in rows for chunk in plain_loop(*row)]
    assert np.array_equal(np.transpose(expected), [chunks.teacher_tokens, chunks.student_tokens])
    times = seconds(lambda: align(teacher, student, turns), 15), seconds(lambda: [plain_loop(*row) for row in rows], 2)
    compiled, plain = (1e9 * best / tokens for best in times)
    print(f"{options.teacher} and {options.student}: {teacher.byte_lengths.sum():,} bytes, {tokens:,} tokens")
    print(f"align {compiled:.2f} ns a token, plain Python {plain:.0f} ns: {plain / compiled:.0f} times")


if __name__ == "__main__":
    main()
