"""The flow `calibrate`: accuracy and calibration of models, and of merges of a base model and its tuned child."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from alm_pipeline.calibration.report.settings import (
    BINS,
    RESAMPLES,
    QuestionColumns,
    Reading,
    ReportSettings,
    Sweep,
    SweepMethod,
)
from alm_pipeline.config import SEEDS, Dtype, Number, Whole
from flows.execution.inert_run import inert_flow, inert_run, masked_errors
from flows.execution.retries import RETRYING
from flows.run_name import run_name
from flows.storage_block import storage_root
from flows.tasks import log_stages_at_info
from storage.printed.inert import markdown, one_line
from storage.urls import join_url, read_bytes

if TYPE_CHECKING:
    from alm_pipeline.calibration.calibrate import Calibration
    from alm_pipeline.calibration.report.points import CalibrationReport

Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=SEEDS)]

_calibration_name = run_name("calibrate", lambda parameters: f"calibrate {', '.join(parameters['models'])}")


@inert_flow("calibrate", _calibration_name)
def calibrate(
    models: list[str],
    questions: str | None = None,
    corpus: str | None = None,
    weights: list[Number] | None = None,
    method: SweepMethod = "linear",
    density: Number = 1.0,
    mask_seed: Seed = 0,
    output: str = "calibration",
    storage: str = "alm-data",
    prompt: str = "prompt",
    choices: str = "choices",
    answer: str = "answer",
    cluster: str = "cluster",
    delimiter: str = " ",
    task_folder: str | None = None,
    few_shot: Annotated[Whole, Field(ge=0)] | None = None,
    limit: Count | None = None,
    text: str = "text",
    examples: Count = 200,
    places: Count = 10,
    reading: Reading = "sum",
    bins: Count = BINS,
    resamples: Count = RESAMPLES,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure the accuracy and calibration of models on multiple-choice questions, or on next bytes of texts.

    Args:
        models: Local folders, URLs of stored students, names on the Hub, demo:NAME, or YAML files of ensembles; with
            `weights` a base model and its tuned child.
        questions: URL of Parquet, JSON or CSV files with questions, or the name of a multiple-choice task of lm_eval.
        corpus: Instead of questions: URL of files with texts, whose next bytes are predicted.
        weights: Also measure merges of the base model and its child at these weights, such as [0, 0.5, 1].
        method: The rule by which each tensor is merged, or ensemble: both models run as one, with these weights.
        density: With ties and dare, the share of the child's changes that is kept.
        mask_seed: With dare, the seed of what is kept.
        output: Where tables and pictures go, in place of an earlier run's: a folder or any fsspec URL.
        storage: Where questions and scores are stored: a folder, any fsspec URL (s3://bucket/prefix), or block:NAME.
        prompt: The files' column with the text before the choices.
        choices: The files' column with the list of choices.
        answer: The files' column with the right choice: its index from 0, or its text.
        cluster: The files' column that names what questions belong to, if there is one.
        delimiter: What stands between a file's prompt and a choice.
        task_folder: A folder with your own YAML tasks.
        few_shot: The number of examples in a task's prompt; by default the task's own.
        limit: The number of questions, from the first; by default all.
        text: The column of the corpus that holds the text, or a template of columns: '{question} {answer}'.
        examples: The number of texts to take from the corpus.
        places: The number of places to draw in each text of the corpus.
        reading: What is shown: log-probabilities summed (sum), per token (token), or per byte (bytes).
        bins: The number of bins of confidence.
        resamples: The number of resamples for intervals.
        seed: The seed of the halves and the resamples.
        dtype: The dtype to compute in; an ensemble's file sets its own.
        device: cpu, cuda:1, …; by default the GPU, if there is one.
        trust_remote_code: Whether to run code in a model's folder, such as that of a byte-level student.
    """
    with inert_run():
        from alm_pipeline.calibration import calibrate as calibrating
        from alm_pipeline.calibration.report.output import report_document, write_report
        from alm_pipeline.preflight.storage_probe import require_writable

        log_stages_at_info()
        require_writable("output", output)
        columns = QuestionColumns(prompt, choices, answer, cluster, delimiter=delimiter)
        folder = Path(task_folder) if task_folder else None
        sweep = Sweep.chosen(weights, method, density, mask_seed)
        texts = calibrating.TextSource(corpus or "", text, examples, places)
        sources = calibrating.chosen_sources(questions, columns, (folder, few_shot), limit, texts)
        calibration = calibrating.open_calibration(
            calibrating.ComparedModels(tuple(models), sweep, dtype, device, trust_remote_code),
            *sources,
            storage_root(storage),
            seed,
        )
        _score(calibration)
        report = calibration.report(ReportSettings(bins, resamples, seed))
        files = write_report(report, reading, calibration.title, output)
        _show(report, reading, calibration.title, output)
        return {**report_document(report, reading, calibration.title), "files": files}


def _score(calibration: "Calibration") -> None:
    """Score with one model after the other, each as a task of its own."""
    calibration.require_ready()
    with calibration.models.in_turn() as loaded:

        @task(name="score", task_run_name="score: {name}", cache_policy=NO_CACHE, **RETRYING)
        def score(name: str, number: int) -> None:
            with masked_errors():
                calibration.run_one(calibration.scored[number], loaded)

        for number, scored in enumerate(calibration.scored):
            score(one_line(scored.name), number)


def _show(report: "CalibrationReport", reading: Reading, title: str, output: str) -> None:
    from alm_pipeline.calibration.report.output import SHOWN, remarks, table_rows

    rows = [
        {
            "model": one_line(row["model"]),
            **{title: f"{row[name][0]:.3f} [{row[name][1]:.3f}, {row[name][2]:.3f}]" for name, title in SHOWN.items()},
            "front": "" if row["front_share"] is None else f"{row['front_share']:.0%}",
        }
        for row in table_rows(report, reading)
    ]
    create_table_artifact(rows, key="alm-calibration", description=markdown(title))
    page = "\n\n".join(_page(report, reading, title, output))
    create_markdown_artifact(page, key="alm-calibration-report", description=markdown(title))
    for sentence in remarks(report, reading):
        get_run_logger().info("%s", sentence)


def _page(report: "CalibrationReport", reading: Reading, title: str, output: str) -> Iterator[str]:
    from alm_pipeline.calibration.report.output import FRONTIER_PICTURE, RELIABILITY_PICTURE, report_page

    yield report_page(report, reading, title)
    for name in (FRONTIER_PICTURE, RELIABILITY_PICTURE):
        if png := read_bytes(join_url(output, name)):  # none without matplotlib
            yield f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"
