"""How long `align` takes a token, beside a plain Python loop that finds the same chunks.

    python benchmarks/align.py [--teacher tokenizer.json --student tokenizer.json] [--megabytes 10]

The text is the standard library's source with made-up words of other scripts. Without tokenizers, two byte-level BPEs
of 4,000 and 16,000 tokens are trained on it.
"""

import argparse
import random
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from alm_pipeline.alignment.chunks import AssistantTurns, ShardTokens, align

SCRIPTS = ((0x4E00, 0x9FA5), (0x410, 0x44F), (0x905, 0x939), (0x627, 0x64A), (0xAC00, 0xD7A3), (0x1F600, 0x1F64F))


def make_examples(size: int) -> list[str]:
    examples, sources = [], sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    while sum(map(len, examples)) < size:
        words = [(random.choice(SCRIPTS), random.randint(1, 6)) for _ in range(600)]
        foreign = " ".join("".join(chr(random.randint(*script)) for _ in range(length)) for script, length in words)
        text = random.choice(sources).read_text(errors="replace") + foreign
        examples += [text[start : start + 4000] for start in range(0, len(text), 4000)]
    return examples


def trained(examples: list[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(examples[::8], trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))
    return tokenizer


def byte_lengths(tokenizer: Tokenizer, examples: list[str]) -> list[list[int]]:
    rows = [encoding.tokens for encoding in tokenizer.encode_batch(examples, add_special_tokens=False)]
    if '"ByteLevel"' in tokenizer.to_str():
        return [[len(token) for token in row] for row in rows]  # a character a byte
    return [[1 if t.startswith("<0x") else len(t.replace("\u2581", " ").encode()) for t in row] for row in rows]


def shard(rows: list[list[int]]) -> ShardTokens:
    offsets, lengths, none = np.cumsum([0, *map(len, rows)]), np.concatenate(rows).astype(np.int32), np.zeros(0, int)
    kinds, turns = np.zeros(len(lengths), np.uint8), np.full(len(lengths), -1, np.int16)
    return ShardTokens(offsets, lengths, kinds, turns, np.zeros_like(offsets), none, none, np.zeros(len(rows), bool))


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


def seconds(function: Callable[[], object], times: int) -> float:
    runs = [(time.perf_counter(), function(), time.perf_counter()) for _ in range(times)]
    return min(end - start for start, _, end in runs)


def main(megabytes: float, teacher: Tokenizer | None, student: Tokenizer | None) -> None:
    examples = make_examples(int(megabytes * 1e6))
    tokenizers = teacher or trained(examples, 4_000), student or trained(examples, 16_000)
    encoded = zip(examples, *(byte_lengths(tokenizer, examples) for tokenizer in tokenizers), strict=True)
    rows = [lengths for text, *lengths in encoded if len(text.encode()) == sum(lengths[0]) == sum(lengths[1])]
    sides = [shard(list(side)) for side in zip(*rows, strict=True)]
    turns = AssistantTurns(np.zeros_like(sides[0].offsets), np.zeros(0, bool))
    chunks, tokens = align(*sides, turns), sum(len(side.kinds) for side in sides)
    expected = [chunk for lengths in rows for chunk in plain_loop(*lengths)]
    assert np.array_equal(np.transpose(expected), [chunks.teacher_tokens, chunks.student_tokens])
    print(f"{sides[0].byte_lengths.sum():,} bytes in {len(rows):,} of {len(examples):,} examples, {tokens:,} tokens")
    times = seconds(lambda: align(*sides, turns), 15), seconds(lambda: [plain_loop(*both) for both in rows], 2)
    compiled, plain = (1e9 * best / tokens for best in times)
    print(f"align {compiled:.2f} ns a token, plain Python {plain:.0f} ns: {plain / compiled:.0f} times")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--teacher", type=Tokenizer.from_file)
    parser.add_argument("--student", type=Tokenizer.from_file)
    random.seed(0)
    main(**vars(parser.parse_args()))
