"""Two models and texts of your own: check, plan, run, and what came out of it, without Prefect.

    python examples/own_models.py TEACHER STUDENT 'texts/*.jsonl'

A model is a folder, a name on the Hugging Face hub, or demo:NAME. The same command again, also after an interruption,
does only what is missing.
"""

import argparse

from rich.console import Console

from alm_pipeline import AlmConfig, Pipeline, UserError
from alm_pipeline.planning.estimate import make_plan
from alm_pipeline.planning.table import total_rows
from alm_pipeline.recipes.overrides import Overrides, configure
from alm_pipeline.report import summarize, summary_table


def configuration() -> tuple[AlmConfig, str]:
    """The recipe `distill` with what the command line gives, and the storage root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("corpus", help="a file, or a pattern of files, in quotes")
    parser.add_argument("--storage", default="alm-data", help="a folder, or a URL such as s3://bucket/prefix")
    parser.add_argument("--steps", type=int, default=100, help="5,000 and more for a student to be used")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="the student's tokens in a step")
    given = parser.parse_args()
    # `alm show distill` explains every field that can be among the settings
    settings = {"train.batch_tokens": given.batch_tokens, "train.learning_rate": 1e-4, "corpus.held_out": 0.1}
    overrides = Overrides(
        corpus=given.corpus, teacher=given.teacher, student=given.student, steps=given.steps, settings=settings
    )
    return configure("distill", overrides), given.storage


def main() -> None:
    config, storage = configuration()
    pipeline = Pipeline(config, storage)

    pipeline.require_ready()  # raises one UserError with all that would stop the run, before anything is computed
    for what, value in total_rows(make_plan(pipeline)):
        print(f"{what}: {value}")

    student = pipeline.run()

    Console().print(summary_table(summarize(pipeline), seconds={}))
    bits = student.results["held_out_bits_per_byte"]
    print(f"{pipeline.student.url} has {bits['student_after']:.3f} bits per byte, {bits['student_before']:.3f} before")


if __name__ == "__main__":  # processes that share the work import this file
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
