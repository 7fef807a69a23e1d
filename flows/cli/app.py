"""The command `alm`. Heavy imports happen in the commands, so that `alm --help` answers at once."""

import logging
import re
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from flows.cli.console import err, out, user_errors
from flows.cli.models import models, print_comparison
from flows.cli.store import store
from flows.cli.student import student_commands
from storage.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
Distil any language model into any other, whatever their tokenizers, by **Approximate Likelihood Matching**.

A run cuts a corpus into examples, tokenizes them with the teacher's and the student's tokenizer, aligns both by
bytes, lets the teacher score its tokens once, and trains the student on these caches. Every stage is kept under the
storage root and found again, so a run that was interrupted is simply run again.

- `alm run transfer` moves SmolLM2 to a new tokenizer, on this machine, in minutes.
- `alm show transfer > my.yaml`, edit it, and `alm run my.yaml --storage s3://bucket/prefix` runs your own.
- `alm list alm-data` says what is stored, and `alm inspect URL` shows aligned chunks side by side.
- `alm curves URL` draws how a student was trained, and `alm push URL USER/NAME` publishes it.
- `alm generate MODEL PROMPT` and `alm evaluate MODEL` use a model, or an ensemble of several.
- `alm verify`, `alm repair`, `alm lineage` and `alm prune` keep a store in order.
""",
)
app.add_typer(student_commands)
app.add_typer(store)
app.add_typer(models)


class Until(StrEnum):
    SCORES = "scores"
    STUDENT = "student"


Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="transfer, maths, bytes, or a YAML or JSON file")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="any field, dotted: train.learning_rate=1e-4 (YAML value)"),
]


@app.command()
def run(
    context: typer.Context,
    recipe: Recipe = "transfer",
    storage: Annotated[
        str, typer.Option(help="a folder, any fsspec URL (s3://bucket/prefix), or block:NAME")
    ] = "alm-data",
    until: Annotated[Until, typer.Option(help="scores: stop once the caches are complete")] = Until.STUDENT,
    corpus: Annotated[str | None, typer.Option(help="URL of files (Parquet, JSONL, text), taken whole")] = None,
    teacher: Annotated[str | None, typer.Option(help="a folder, a hub name, or demo:NAME")] = None,
    student: Annotated[str | None, typer.Option(help="a folder, a hub name, or demo:NAME")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="put on the student: a folder, a hub name, or bytes")] = None,
    steps: Annotated[int | None, typer.Option(help="training steps")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="the peak learning rate")] = None,
    gamma: Annotated[float | None, typer.Option(help="a chunk ends where P(boundary) exceeds this")] = None,
    temperature: Annotated[float | None, typer.Option(help="of the objective")] = None,
    settings: Setting = None,
    again: Annotated[bool, typer.Option("--again", help="train again even if this student is finished")] = False,
) -> None:
    """Run every stage that is not done yet, and print a summary.

    Without a Prefect server (no PREFECT_API_URL) it starts an embedded one for the time of the run.
    """
    from flows.cli.embedded import prepare

    prepare()
    from alm_pipeline.config.overrides import OVERRIDES, override
    from alm_pipeline.report import Summary, summary_table
    from alm_pipeline.runtime.progress import progress_bars
    from flows.alm import alm

    with user_errors():
        chosen = {**context.params, "settings": _settings(settings)}
        config = override(_configuration(recipe), **{name: chosen[name] for name in OVERRIDES})
        if again:
            _forget_student(config, storage)
        _log_lines()
        with progress_bars(err):
            result = alm(config=config, storage=storage, until=until.value)
        seconds = result.pop("seconds")
        out.print(summary_table(Summary.model_validate(result), seconds))


def _configuration(name: str) -> Any:
    from alm_pipeline.config import load_config
    from alm_pipeline.config.recipes import recipe

    return load_config(Path(name)) if Path(name).suffix in (".yaml", ".yml", ".json") else recipe(name)


def _settings(settings: list[str] | None) -> dict[str, Any]:
    values = {}
    for setting in settings or []:
        field, separator, value = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting}: has no '=': write FIELD=VALUE, as in --set train.seed=1")
        values[field] = _value(value)
    return values


def _value(text: str) -> Any:
    """A YAML value; a template of columns, '{question} {answer}', is the text that it looks like."""
    if re.search(r"\{\w+\}", text):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _forget_student(config: Any, storage: str) -> None:
    from alm_pipeline.pipeline import Pipeline
    from flows.storage_block import storage_root
    from storage.schemas import MANIFEST

    student = Pipeline(config, storage_root(storage)).student
    if student.manifest():
        student.remove(MANIFEST)


def _log_lines() -> None:
    """Stages say what they do on stderr; on a terminal their bars do, and only warnings are lines."""
    logger = logging.getLogger("alm_pipeline")
    logger.propagate = False
    logger.setLevel("WARNING" if err.is_terminal else "INFO")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]


@app.command()
def show(recipe: Recipe = "transfer") -> None:
    """Print a recipe as YAML: a complete configuration to edit and run."""
    with user_errors():
        print(
            yaml.safe_dump(_configuration(recipe).model_dump(mode="json"), sort_keys=False, allow_unicode=True), end=""
        )


@app.command()
def describe(url: Annotated[str, typer.Argument(help="one dataset's or student's folder")]) -> None:
    """Say what one dataset, tokenizer or student holds and was made from: its manifest, as YAML."""
    from storage.dataset import load_manifest
    from storage.folders import FOLDER_KINDS, load_folder_manifest

    with user_errors():
        is_folder = PurePosixPath(url).parent.name in FOLDER_KINDS
        manifest = load_folder_manifest(url) if is_folder else load_manifest(url)
        if manifest is None:
            raise UserError(f"{url}: no complete dataset (it has no manifest.json); `alm list ROOT` says what there is")
        print(yaml.safe_dump(_description(manifest), sort_keys=False, allow_unicode=True), end="")


def _description(manifest: Any) -> dict[str, Any]:
    content: dict[str, Any] = manifest.model_dump(mode="json")
    if "shards" in content:
        content["shards"] = len(content["shards"])
    return content


@app.command()
def byte_level(
    source: Annotated[str, typer.Argument(help="a model's or tokenizer's folder, hub name, or demo:NAME")],
    folder: Annotated[Path, typer.Argument(help="a new folder for it")],
) -> None:
    """Make a tokenizer of single bytes: 256 of them, with the source's special tokens and chat template."""
    from alm_pipeline.new_tokenizer.byte_level import write_byte_level

    with user_errors():
        tokenizer = write_byte_level(source, folder)
        out.print(f"{folder}: {len(tokenizer)} tokens, {len(tokenizer) - 256} of them control tokens", markup=False)


class Method(StrEnum):
    FVT = "fvt"
    MEAN = "mean"
    RANDOM = "random"
    FOCUS = "focus"
    OMP = "omp"


class SpecialTokens(StrEnum):
    AUTO = "auto"
    SOURCE = "source"
    TARGET = "target"


@app.command()
def transfer(
    model: Annotated[str, typer.Argument(help="a folder, a hub name, or demo:NAME")],
    tokenizer: Annotated[str, typer.Argument(help="the new one: a folder, a hub name, or demo:NAME")],
    folder: Annotated[Path, typer.Argument(help="a new folder for the model with it")],
    initialization: Annotated[Method, typer.Option(help="of embeddings that are not copied")] = Method.FVT,
    special_tokens: Annotated[SpecialTokens, typer.Option(help="the model's own, or the tokenizer's")] = (
        SpecialTokens.AUTO
    ),
    donor: Annotated[str | None, typer.Option(help="of omp: the model that has this tokenizer")] = None,
    omp_terms: Annotated[int, typer.Option(min=1, help="of omp: shared tokens a new one")] = 8,
    seed: Annotated[int, typer.Option(help="of drawn embeddings")] = 0,
    corpus: Annotated[str | None, typer.Option(help="URL of texts: compare both models on them")] = None,
    text: Annotated[str, typer.Option(help="of the corpus: a column, or a template of columns")] = "text",
    examples: Annotated[int, typer.Option(min=1, help="of the corpus: how many")] = 200,
) -> None:
    """Put a tokenizer on a model without training (zero steps), and say how its embeddings were made.

    With --corpus it also prints the bits per byte of both models on those texts.
    """
    from alm_pipeline.runtime.progress import progress_bars
    from alm_pipeline.transfer.zero_step import transfer

    with user_errors(), progress_bars(err):
        counts = transfer(
            model,
            tokenizer,
            folder,
            initialization=initialization.value,
            special_tokens=special_tokens.value,
            donor=donor,
            omp_terms=omp_terms,
            seed=seed,
        )
        made = ", ".join(f"{count:,} {how}" for how, count in counts.items())
        out.print(f"{folder}: new embeddings: {made}", markup=False, highlight=False, soft_wrap=True)
        if corpus:
            print_comparison([model, str(folder)], corpus, text, examples)


@app.command()
def apply_transfer(
    base: Annotated[str, typer.Argument(help="the base model: a folder, a hub name, or demo:NAME")],
    transferred: Annotated[str, typer.Argument(help="the base model in the new tokenizer")],
    fine_tune: Annotated[str, typer.Argument(help="a fine-tune of the base model")],
    folder: Annotated[Path, typer.Argument(help="a new folder for the fine-tune in the new tokenizer")],
    scale: Annotated[float, typer.Option(help="of what the transfer changed (lambda)")] = 1.0,
) -> None:
    """Move a fine-tune to the tokenizer that its base was transferred to, by task arithmetic."""
    from alm_pipeline.transfer.task_arithmetic import apply_transfer

    with user_errors():
        apply_transfer(base, transferred, fine_tune, folder, scale=scale)
        out.print(f"{folder}: {fine_tune} in the tokenizer of {transferred}", markup=False, soft_wrap=True)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="the folder of an alignments dataset")],
    shard: Annotated[int, typer.Option(help="which shard")] = 0,
    example: Annotated[str | None, typer.Option(help="an example's id; the shard's first where none is given")] = None,
    chunks: Annotated[int | None, typer.Option(min=1, help="how many to show  [default: 30, 200 in a picture]")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="of all shards: coverage by script, lengths")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="write a picture, .html or .png")] = None,
) -> None:
    """Show the aligned chunks of one example: its text, the teacher's tokens, the student's tokens.

    Or, with --summary, what the chunks of the whole dataset are like; or, with --picture, draw the example.
    """
    with user_errors():
        if summary:
            _print_summary(url)
        if picture:
            _write_picture(picture, url, shard, example, chunks or 200)
        if not (summary or picture):
            _print_chunks(url, shard, example, chunks or 30)


def _print_chunks(url: str, shard: int, example: str | None, chunks: int) -> None:
    from alm_pipeline.inspection.frame import chunk_frame

    frame = chunk_frame(url, shard, example)
    if frame.is_empty():
        what = f"example {example}" if example else f"shard {shard}"
        raise UserError(f"{url}: {what} has no chunks (dropped, or empty); --summary lists what was dropped")
    first = frame.filter(frame["id"] == frame["id"][0])
    table = Table("bytes", "text", "teacher's tokens", "student's tokens", "kind", title=f"example {first['id'][0]}")
    for row in first.head(chunks).iter_rows(named=True):
        sides = [" ".join(map(repr, row[side])) for side in ("teacher", "student")]
        texts = [escape(text) for text in (repr(row["text"]), *sides)]
        table.add_row(f"{row['start']}-{row['end']}", *texts, row["kind"])
    out.print(table)
    out.print(f"{min(chunks, len(first))} of {len(first)} chunks of this example, {len(frame)} in the shard")


def _print_summary(url: str) -> None:
    from alm_pipeline.inspection.summary import summarize_alignments
    from alm_pipeline.inspection.tables import tables

    for title, header, rows in tables(summarize_alignments(url)):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table)


def _write_picture(file: Path, url: str, shard: int, example: str | None, chunks: int) -> None:
    from alm_pipeline.inspection.drawing import draw
    from alm_pipeline.inspection.page import page
    from alm_pipeline.inspection.picture import picture

    if file.suffix not in (".html", ".png"):
        raise UserError(f"--picture {file}: is neither .html nor .png: write FILE.html or FILE.png")
    shown = picture(url, example, shard, chunks)
    try:
        content = page(shown).encode() if file.suffix == ".html" else draw(shown)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--picture {file}: needs {error.name}: pip install 'alm-pipeline[pictures]', or write FILE.html"
        ) from error
    try:
        file.write_bytes(content)
    except OSError as error:
        raise UserError(f"--picture {file}: can't be written ({error.strerror})") from error
    out.print(f"{file}: {len(shown.chunks)} of {len(shown.chunks) + shown.left} chunks", highlight=False, markup=False)
