"""What the cache takes per teacher token, and what rounding the scores does: `python -m benchmarks.layout`.

It prints the sizes of ids, alignment and the rest for `--megabytes` of text in one shard, and those of the scores for
the first `--scored` documents, which Gemma-3-270M scores as the teacher and SmolLM2-135M as the student before
training. For each precision it prints the bytes per token, and compares the ALM loss and its gradient (with respect to
the student's chunk likelihoods) with those of the unrounded scores. For comparison it prints the sizes, by formula, of
caches of the k largest logits: k ids of ⌈log₂ V⌉ bits and k values of 16.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from alm_pipeline.alignment.ends import SideEdges
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.chunking.arrays import AlignedScores
from alm_pipeline.objective.chunking.merging import merged_chunks
from alm_pipeline.objective.divergences import binary_cross_entropy
from alm_pipeline.recipes.recipes import GEMMA3, SMOLLM2
from alm_pipeline.scoring.stage import round_mantissa, score, scores_dataset
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from alm_pipeline.vocabulary.text_forms import NFC, TextNormalizer
from benchmarks.corpus import mixed_documents
from storage.columns import flatten_lists, list_array
from storage.dataset import Dataset, encode_parquet
from storage.urls import read_bytes
from tests.corpora import text_examples
from tests.real_tokenizers import tokenizer_folder

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
PRECISIONS: dict[str, Callable[[Floats], Floats]] = {
    "23 bits (not rounded)": lambda values: values,
    "15 bits": lambda values: round_mantissa(values, 15),
    "10 bits (the default)": lambda values: round_mantissa(values, 10),
    "7 bits": lambda values: round_mantissa(values, 7),
}
TEMPERATURES = (1.0, 5.0, 100.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--scored", type=int, default=60, help="documents")
    options = parser.parse_args()
    documents = [TextNormalizer([NFC])(text) for text in mixed_documents(options.megabytes)]
    with tempfile.TemporaryDirectory() as root:
        print_sizes(*prepared(root, documents, GEMMA3, str(tokenizer_folder("llama3")), "whole"))
        teacher, student, alignments = prepared(root, documents[: options.scored], GEMMA3, SMOLLM2, "scored")
        print_precisions(scores(teacher, GEMMA3), scores(student, SMOLLM2), alignments.read_shard(0))
    for k in (128, 50):
        print(f"top-{k} logits: {k * (np.ceil(np.log2(262_144)) + 16) / 8:.0f} bytes per token")


def prepared(root: str, documents: list[str], teacher: str, student: str, name: str) -> tuple[Dataset, ...]:
    examples = text_examples(Path(root), [documents], name)
    sides = [tokens_dataset(examples, LoadedTokenizer(each), None) for each in (teacher, student)]
    for side, tokenizer in zip(sides, (teacher, student), strict=True):
        tokenize(examples, side, LoadedTokenizer(tokenizer), None)
    alignments = alignments_dataset(sides[0], sides[1], examples.label)
    edges = SideEdges.of(*(LoadedTokenizer(each).view for each in (teacher, student)))
    align_datasets(sides[0], sides[1], alignments, edges)
    return *sides, alignments


def print_sizes(teacher: Dataset, student: Dataset, alignments: Dataset) -> None:
    tokens = teacher.complete_manifest().counts["tokens"]
    print(f"{tokens:,} teacher tokens, {student.complete_manifest().counts['tokens']:,} of the student's")
    total = 0.0
    for name, dataset in {"teacher's tokens": teacher, "student's tokens": student, "alignments": alignments}.items():
        content = read_bytes(dataset.shard_url(0)) or b""
        columns = column_sizes(content)
        total += len(content)
        parts = ", ".join(f"{column} {size / tokens:.2f}" for column, size in columns.items() if size > tokens / 200)
        print(f"{name}: {len(content) / tokens:.2f} bytes a teacher token ({parts})")
    print(f"without scores: {total / tokens:.2f} bytes a teacher token")


def column_sizes(content: bytes) -> dict[str, int]:
    metadata = pq.ParquetFile(pa.BufferReader(content)).metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return {
        groups[0].column(k).path_in_schema.split(".")[0]: sum(group.column(k).total_compressed_size for group in groups)
        for k in range(metadata.num_columns)
    }


def scores(tokens: Dataset, model: str) -> pa.Table:
    config = ScoreConfig(mantissa_bits=23)
    written = scores_dataset(tokens, ModelReference(model), config)
    score(tokens, written, ModelReference(model), config)
    return written.read_shard(0)


def print_precisions(teacher: pa.Table, student: pa.Table, alignments: pa.Table) -> None:
    loss, gradient = losses(teacher, student, alignments)
    for name, rounding in PRECISIONS.items():
        rounded = rounded_scores(teacher, rounding)
        size = len(encode_parquet(rounded)) / len(flatten_lists(teacher["logprobs"])[0])
        print(f"scores of {name}: {size:.2f} bytes per token; {compared(loss, gradient, rounded, student, alignments)}")


def rounded_scores(table: pa.Table, rounding: Callable[[Floats], Floats]) -> pa.Table:
    columns = {"id": table["id"]}
    for name in ("logprobs", "boundary_logprobs"):
        values, offsets = flatten_lists(table[name])
        columns[name] = list_array(rounding(values), offsets, pa.float32())
    return pa.table(columns, schema=table.schema)


def compared(
    loss: torch.Tensor, gradient: torch.Tensor, rounded: pa.Table, student: pa.Table, alignments: pa.Table
) -> str:
    found, found_gradient = losses(rounded, student, alignments)
    parts = []
    for k, temperature in enumerate(TEMPERATURES):
        off = abs(found[k] / loss[k] - 1)
        angle = 1 - torch.cosine_similarity(found_gradient[k], gradient[k], dim=0)
        parts.append(f"τ {temperature:g} loss off by {off:.1e}, gradient by {angle:.1e}")
    return "; ".join(parts)


def losses(teacher: pa.Table, student: pa.Table, alignments: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """([temperatures] mean binary cross-entropy of the chunks, [temperatures, C] its gradient by theirs)."""
    teacher_C, student_C = chunk_likelihoods(teacher, student, alignments)
    results = []
    for temperature in TEMPERATURES:
        leaf = student_C.clone().requires_grad_()
        loss = binary_cross_entropy(teacher_C, leaf, temperature).mean()
        loss.backward()
        assert leaf.grad is not None
        results.append((loss.detach(), leaf.grad))
    return torch.stack([loss for loss, _ in results]), torch.stack([gradient for _, gradient in results])


def chunk_likelihoods(teacher: pa.Table, student: pa.Table, alignments: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """([C], [C]) debiased log-likelihoods of unmerged chunks; merging would follow the rounded scores."""
    names = ("teacher_tokens", "student_tokens", "kinds", "ends")
    own, others, kinds, flags = (flatten_lists(alignments[name]) for name in names)
    (logprobs, tokens), (boundary, _) = (flatten_lists(teacher[name]) for name in ("logprobs", "boundary_logprobs"))
    all_learned = np.zeros(0, np.bool_)
    scores = AlignedScores(own[1], own[0], others[0], kinds[0], flags[0], all_learned, tokens, logprobs, boundary)
    chunks = merged_chunks(scores, gamma=None, debias="end")
    (logprobs, tokens), (boundary, _) = (flatten_lists(student[name]) for name in ("logprobs", "boundary_logprobs"))
    first = np.repeat(tokens[:-1], np.diff(chunks.offsets))
    sums = np.append(0, np.cumsum(np.nan_to_num(logprobs, nan=0.0), dtype=np.float64))
    starts, ends = first + chunks.student_starts, first + chunks.student_ends
    likelihood = sums[ends] - sums[starts] + boundary[ends - 1]
    return torch.from_numpy(chunks.logprobs).double(), torch.from_numpy(likelihood)


if __name__ == "__main__":
    main()
