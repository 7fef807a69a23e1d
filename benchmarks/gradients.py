"""Why a number per chunk teaches less per token than the next token does: the gradients of both, batch by batch.

python -m benchmarks.gradients --root FOLDER [--batches 12] [--student FOLDER]

Recipe `transfer`, or a student of it. A gradient g differs from batch to batch. Of each objective it prints: the mean
norm of g, beside `train.max_grad_norm`, at which a step's gradient is clipped; the *signal*, which is the part of
E‖g‖² that all batches have in common, ‖E g‖² / E‖g‖²; and the cosine between E g and the gradient E g of `sft`. Both
are free of bias: products are taken of different batches only. What is common to all batches is what adds up.
"""

import argparse
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import load_model, matmul_precision
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.recipes import recipe
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.model.terms import micro_batch_losses

SFT = "sft"
OBJECTIVES: Mapping[str, ObjectiveConfig] = {
    SFT: ObjectiveConfig(terms={"sft": 1.0}),
    "alm, both, τ 5": ObjectiveConfig(terms={"alm": 1.0}, temperature=5.0),
    "alm, end, τ 5": ObjectiveConfig(terms={"alm": 1.0}, temperature=5.0, debias="end"),
    "alm, both, τ 1": ObjectiveConfig(terms={"alm": 1.0}, temperature=1.0),
    "alm, both, τ 100": ObjectiveConfig(terms={"alm": 1.0}, temperature=100.0),
    "alm, both, unconstrained, τ 5": ObjectiveConfig(terms={"alm": 1.0}, temperature=5.0, chunking="unconstrained"),
}


class Gradients:
    """Sums over batches of an objective's gradient."""

    def __init__(self, size: int) -> None:
        self.sum_P = torch.zeros(size)
        self.norms: list[float] = []
        self.with_sft = 0.0
        """the sum of the products with the gradient of `sft` on the same batch"""

    def add(self, gradient_P: Tensor, sft_P: Tensor) -> None:
        self.sum_P += gradient_P
        self.norms.append(float(gradient_P.norm()))
        self.with_sft += float(torch.dot(gradient_P, sft_P))

    @property
    def mean_square(self) -> float:
        return sum(norm**2 for norm in self.norms) / len(self.norms)

    @property
    def signal(self) -> float:
        """‖E g‖², from products of different batches."""
        count = len(self.norms)
        return (float(self.sum_P.square().sum()) - count * self.mean_square) / (count * (count - 1))

    def cosine(self, sft: "Gradients") -> float:
        count = len(self.norms)
        product = (float(torch.dot(self.sum_P, sft.sum_P)) - self.with_sft) / (count * (count - 1))
        return product / math.sqrt(max(self.signal, 1e-30) * max(sft.signal, 1e-30))


def gradient(student: PreTrainedModel, batch: dict[str, Tensor], rows: HeadVocabulary, of: ObjectiveConfig) -> Tensor:
    """Return the gradient of a batch as one vector [P]."""
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), matmul_precision("medium"):
        losses = micro_batch_losses(student, batch, rows, of, LossCounts.of(batch))
    losses.terms[next(iter(of.terms))].backward()
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None])


def streams(pipeline: Pipeline, batches: int) -> Iterator[tuple[dict[str, Tensor], ...]]:
    """Yield the same rows, with the chunks of each objective."""
    each = (BatchStream(pipeline.caches, objective, pipeline.config.train) for objective in OBJECTIVES.values())
    return itertools.islice(zip(*each, strict=True), batches)


def main() -> None:
    options = arguments()
    logging.getLogger("alm_pipeline").setLevel(logging.ERROR)
    pipeline = Pipeline(recipe("transfer"), str(options.root))
    pipeline.cache()
    student = load_model(options.student, "float32") if options.student else initial_student(pipeline)
    rows = HeadVocabulary.of(student, pipeline.student_tokenizer)
    size = sum(parameter.numel() for parameter in student.parameters())
    found = {name: Gradients(size) for name in OBJECTIVES}
    for batches in streams(pipeline, options.batches):
        vectors = [gradient(student, batch, rows, of) for batch, of in zip(batches, OBJECTIVES.values(), strict=True)]
        for sums, vector in zip(found.values(), vectors, strict=True):
            sums.add(vector, vectors[0])
    print(f"\n{options.student or 'before training'}, {options.batches} batches of 1,024 tokens\n")
    print(table(found, pipeline.config.train.max_grad_norm))


def initial_student(pipeline: Pipeline) -> PreTrainedModel:
    return pipeline.distillation.initial_student().model


def table(found: Mapping[str, Gradients], clip: float) -> str:
    lines = [f"| | mean norm (clipped at {clip:g}) | signal | cosine with `sft` |", "|---|---|---|---|"]
    for name, sums in found.items():
        norm, share = sum(sums.norms) / len(sums.norms), sums.signal / sums.mean_square
        lines.append(f"| {name} | {norm:.3g} | {share:.3f} | {sums.cosine(found[SFT]):.2f} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="keeps the caches for the next run")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--student", help="a folder of a trained student (without: the initial one)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
