"""The command that measures how well models know what they know."""

from pathlib import Path
from typing import Annotated, Any

import typer

from alm_pipeline.calibration.report.settings import (
    BINS,
    RESAMPLES,
    QuestionColumns,
    Reading,
    ReportSettings,
    Sweep,
    SweepMethod,
    parse_weights,
)
from alm_pipeline.config import SEEDS
from flows.storage_block import storage_root
from flows.terminal.console import JsonOption, Shown, err, out, user_errors
from flows.terminal.options import Device, Examples, Precision, Storage, Text, TrustRemoteCode, finite

calibrating = typer.Typer()


def _weights(text: str) -> tuple[float, ...]:
    try:
        return parse_weights(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: write FROM:TO:STEP, or weights with commas between them: {error}") from error


@calibrating.command()
def calibrate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="The models: local folders, names on the Hub, demo:NAME, URLs of stored students, or ensembles' "
            "files; with --weights a base model and its tuned child.",
        ),
    ],
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="URL|TASK",
            help="URL of Parquet, JSON or CSV files with questions, or the name of a multiple-choice task of lm_eval.",
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Instead of questions: URL of files with texts, whose next bytes are predicted.")
    ] = None,
    weights: Annotated[
        Any,
        typer.Option(
            parser=_weights,
            metavar="FROM:TO:STEP",
            help="Also measure merges of the base model and its child at these weights (lambda): 0:1:0.1, or 0.2,0.4.",
        ),
    ] = None,
    method: Annotated[
        SweepMethod,
        typer.Option(help="With --weights: the rule by which tensors are merged; ensemble runs both as one."),
    ] = "linear",
    density: Annotated[
        float, typer.Option(callback=finite, help="With ties and dare: the share of the child's changes that is kept.")
    ] = 1.0,
    mask_seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="With dare: the seed of what is kept.")] = 0,
    output: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where tables and pictures go, in place of an earlier run's.")
    ] = "calibration",
    storage: Storage = "alm-data",
    prompt: Annotated[
        str, typer.Option(metavar="COLUMN", help="The files' column with the text before the choices.")
    ] = "prompt",
    choices: Annotated[
        str, typer.Option(metavar="COLUMN", help="The files' column with the list of choices.")
    ] = "choices",
    answer: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="The files' column with the right choice: its index from 0, or its text."),
    ] = "answer",
    cluster: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="The files' column that names what questions belong to, if there is one."),
    ] = "cluster",
    delimiter: Annotated[str, typer.Option(help="What stands between a file's prompt and a choice.")] = " ",
    task_folder: Annotated[Path | None, typer.Option(help="A folder with your own YAML tasks.")] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="The number of examples in a task's prompt; by default the task's own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The number of questions, from the first; by default all.")
    ] = None,
    text: Text = "text",
    examples: Examples = 200,
    places: Annotated[int, typer.Option(min=1, help="The number of places to draw in each text of the corpus.")] = 10,
    reading: Annotated[
        Reading,
        typer.Option(help="What is shown: log-probabilities summed (sum), per token (token), or per byte (bytes)."),
    ] = "sum",
    bins: Annotated[int, typer.Option(min=1, help="The number of bins of confidence.")] = BINS,
    resamples: Annotated[int, typer.Option(min=1, help="The number of resamples for intervals.")] = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="The seed of the halves and the resamples.")] = 0,
    dtype: Precision = "float32",
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the accuracy and calibration of models on multiple-choice questions, or on next bytes of texts.

    With --weights, also of the merges between a base model and its tuned child: the weight is chosen on one half of the
    questions, and judged on the other. What is scored stays in the storage, so an interrupted run continues, and other
    bins or readings score nothing again.
    """
    from alm_pipeline.calibration import calibrate as calibrating
    from alm_pipeline.preflight.storage_probe import require_writable
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors(), progress_bars(err):
        require_writable("output", output)
        columns = QuestionColumns(prompt, choices, answer, cluster, delimiter=delimiter)
        sweep = Sweep.chosen(weights, method, density, mask_seed)
        texts = calibrating.TextSource(corpus or "", text, examples, places)
        sources = calibrating.chosen_sources(questions, columns, (task_folder, few_shot), limit, texts)
        calibration = calibrating.open_calibration(
            calibrating.ComparedModels(tuple(models), sweep, dtype, device, trust_remote_code),
            *sources,
            storage_root(storage),
            seed,
        )
        _show(calibration, ReportSettings(bins, resamples, seed), reading, output, as_json=as_json)


def _show(calibration: Any, settings: ReportSettings, reading: Reading, output: str, *, as_json: bool) -> None:
    from alm_pipeline.calibration.report.output import SHOWN, remarks, report_document, table_rows, write_report

    calibration.run()
    report = calibration.report(settings)
    files = write_report(report, reading, calibration.title, output)
    if as_json:
        out.write_json({**report_document(report, reading, calibration.title), "files": files})
        return
    measures = [Shown(name, title, _interval) for name, title in SHOWN.items()]
    columns = [Shown("model", "model"), *measures, Shown("front_share", "front", _share)]
    out.print_rows(columns, table_rows(report, reading), calibration.title)
    for line in [*remarks(report, reading), *files]:
        out.print_line(line)


def _interval(estimate: list[float]) -> str:
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
