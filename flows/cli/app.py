"""The command `alm`. Commands import heavy packages when they run, so that `alm --help` answers at once."""

import logging
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from alm_pipeline.config import SEEDS, Method, SpecialTokens
from flows.cli.configuration import chosen_configuration, configuration, is_file
from flows.cli.console import InertGroup, err, out, user_errors, write_picture
from flows.cli.deploy import deploy_commands, version_option
from flows.cli.models import models, print_comparison
from flows.cli.options import MODEL, Examples, NewFolder, Recipe, Storage, Text, finite, override_options
from flows.cli.store import store
from flows.cli.student import student_commands
from flows.stages import Until
from storage.errors import UserError
from storage.printed.inert import yaml_text
from storage.printed.records import make_output_inert

app = typer.Typer(
    cls=InertGroup,
    no_args_is_help=True,
    suggest_commands=False,  # the group names them with what they do
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
Distill any language model into any other, whatever their tokenizers, by **Approximate Likelihood Matching**.

A run cuts a corpus into examples, tokenizes them with the teacher's and the student's tokenizers, aligns the two
tokenizations by bytes, has the teacher score its tokens once, and trains the student on these caches. The results of
every stage stay under the storage root, so an interrupted run can simply be run again.

- `alm run distill --corpus URL --teacher MODEL --student MODEL` distills your own models on your own texts.
- `alm run transfer` gives SmolLM2 a new tokenizer, on this machine, in minutes.
- `alm init my.yaml` asks what you want and writes a commented configuration, and `alm run my.yaml` runs it.
- `alm check my.yaml` finds within seconds what would stop a run.
- `alm list alm-data` lists what is stored, and `alm inspect URL` shows aligned chunks side by side.
- `alm curves URL` draws a student's training, and `alm push URL USER/NAME` publishes the student.
- `alm generate MODEL PROMPT` and `alm evaluate MODEL --tasks gsm8k` use a model, or an ensemble of several.
- `alm verify`, `alm repair`, `alm lineage` and `alm prune` maintain a store.
""",
)
app.add_typer(configuration)
app.add_typer(student_commands)
app.add_typer(store)
app.add_typer(models)
app.add_typer(deploy_commands)
app.callback()(version_option)


@app.command()
@override_options
def run(
    recipe: Recipe = "transfer",
    storage: Storage = "alm-data",
    until: Annotated[
        Until, typer.Option(help="Where to stop: after the teacher's scores (scores), or after training (student).")
    ] = "student",
    again: Annotated[
        bool,
        typer.Option("--again", help="Train a finished student again; it stays until the new one is finished."),
    ] = False,
    **overrides: Any,
) -> None:
    """Run every stage that is not finished, and print a summary.

    Without a Prefect server (no PREFECT_API_URL), the run starts its own and stops it at the end.
    """
    from flows.cli.embedded import prepare, use_server

    prepare()
    from alm_pipeline.first_lines import first_lines
    from alm_pipeline.report import RunSummary, summary_table
    from alm_pipeline.runtime.progress import progress_bars
    from flows.cli.check import require_ready

    with user_errors():
        config, values = chosen_configuration(recipe, overrides)
        for line in first_lines(config, None if is_file(recipe) else recipe, values):
            err.print_line(line)
        if again:
            _ask_for_student(config, storage)
        _log_to_stderr()
        require_ready(config, storage, until)
        from flows.alm import alm  # Prefect takes seconds to import

        use_server()
        with progress_bars(err):
            result = alm(config=config, storage=storage, until=until)
        seconds = result.pop("seconds")
        out.print(summary_table(RunSummary.model_validate(result), seconds))


@app.command()
@override_options
def check(
    recipe: Recipe = "transfer",
    storage: Storage = "alm-data",
    until: Annotated[
        Until, typer.Option(help="The run to check: up to the teacher's scores (scores), or with training (student).")
    ] = "student",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    **overrides: Any,
) -> None:
    """Check a configuration on this machine within seconds, without running it, and print all that would stop a run.

    Looks at the corpus's first rows, both models' files, every setting that names something, and the storage, to which
    it writes one tiny object that it removes. `alm run` begins with the same checks. Exits with 1 if there are errors;
    warnings do not stop a run.
    """
    from flows.cli.check import print_check

    with user_errors():
        config, _ = chosen_configuration(recipe, overrides)
        _log_to_stderr()
        print_check(config, storage, until, as_json=as_json)


def _ask_for_student(config: Any, storage: str) -> None:
    """Ask for the finished student, if there is one, to be trained again. It stays until the new one is finished."""
    from alm_pipeline.pipeline import Pipeline
    from flows.storage_block import storage_root

    Pipeline(config, storage_root(storage)).student.request_replacement()


def _log_to_stderr() -> None:
    """Log the stages' lines to stderr; on a terminal, where bars show their progress, only warnings."""
    make_output_inert()
    logger = logging.getLogger("alm_pipeline")
    logger.propagate = False
    logger.setLevel("WARNING" if err.is_interactive else "INFO")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]


@app.command()
def describe(
    url: Annotated[str, typer.Argument(metavar="URL", help="The folder of one dataset, tokenizer or student.")],
) -> None:
    """Print the manifest of a dataset, tokenizer or student as YAML: what it holds and what it was made from."""
    from storage.dataset import load_manifest
    from storage.folders import FOLDER_KINDS, load_folder_manifest

    with user_errors():
        is_folder = PurePosixPath(url).parent.name in FOLDER_KINDS
        manifest = load_folder_manifest(url) if is_folder else load_manifest(url)
        if manifest is None:
            raise UserError(
                f"{url}: there is no complete dataset, tokenizer or student here (no manifest.json); `alm list ROOT` "
                "lists what is stored"
            )
        out.write(yaml_text(_description(manifest)))


def _description(manifest: Any) -> dict[str, Any]:
    content: dict[str, Any] = manifest.model_dump(mode="json")
    if "shards" in content:
        content["shards"] = len(content["shards"])
    return content


@app.command()
def byte_level(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help=f"The model or tokenizer whose special tokens to use: {MODEL}.")
    ],
    folder: NewFolder,
) -> None:
    """Write a tokenizer of the 256 single bytes, with the special tokens and chat template of another one."""
    from alm_pipeline.new_tokenizer.byte_level import write_byte_level

    with user_errors():
        tokenizer = write_byte_level(source, folder)
        out.print_line(f"{folder}: {len(tokenizer)} tokens, {len(tokenizer) - 256} of them special tokens")


@app.command()
def transfer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL}.")],
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=f"The new tokenizer: {MODEL}.")],
    folder: NewFolder,
    initialization: Annotated[
        Method, typer.Option(help="How to make the embeddings of tokens that the model does not have.")
    ] = "fvt",
    special_tokens: Annotated[
        SpecialTokens,
        typer.Option(help="Whose special tokens to use: the model's (source), the tokenizer's (target), or auto."),
    ] = "auto",
    donor: Annotated[str | None, typer.Option(help="With omp: the model that has the new tokenizer.")] = None,
    omp_terms: Annotated[
        int, typer.Option(min=1, help="With omp: the number of shared tokens that a new one is composed of.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="The seed of random embeddings.")] = 0,
    corpus: Annotated[str | None, typer.Option(help="URL of texts to compare both models on.")] = None,
    text: Text = "text",
    examples: Examples = 200,
) -> None:
    """Give a model a new tokenizer without training it, and print how its embeddings were made.

    With --corpus, also print the bits per byte of both models on those texts.
    """
    from alm_pipeline.runtime.progress import progress_bars
    from alm_pipeline.transfer.zero_step import transfer

    with user_errors(), progress_bars(err):
        counts = transfer(
            model,
            tokenizer,
            folder,
            initialization=initialization,
            special_tokens=special_tokens,
            donor=donor,
            omp_terms=omp_terms,
            seed=seed,
        )
        embeddings = ", ".join(f"{count:,} {how}" for how, count in counts.items())
        out.print_line(f"{folder}: new embeddings: {embeddings}")
        if corpus:
            print_comparison([model, str(folder)], corpus, text, examples)


@app.command()
def apply_transfer(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"The base model: {MODEL}.")],
    transferred: Annotated[
        str, typer.Argument(metavar="TRANSFERRED", help="The base model after its transfer to the new tokenizer.")
    ],
    fine_tune: Annotated[str, typer.Argument(metavar="FINE_TUNE", help="A fine-tune of the base model.")],
    folder: NewFolder,
    scale: Annotated[
        float, typer.Option(callback=finite, help="The weight (lambda) of what the transfer changed in the base.")
    ] = 1.0,
) -> None:
    """Give a fine-tune the tokenizer that its base model was transferred to, by task arithmetic."""
    from alm_pipeline.transfer.task_arithmetic import apply_transfer

    with user_errors():
        apply_transfer(base, transferred, fine_tune, folder, scale=scale)
        out.print_line(f"{folder}: {fine_tune} with the tokenizer of {transferred}")


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(metavar="URL", help="The folder of an alignments dataset.")],
    shard: Annotated[int, typer.Option(help="The number of the shard.")] = 0,
    example: Annotated[str | None, typer.Option(help="The id of the example; by default the shard's first.")] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="The number of chunks to show.  [default: 30, or 200 in a picture]")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Show coverage by script and the lengths of chunks, for all shards.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of the example to this .html or .png file.")
    ] = None,
) -> None:
    """Show the aligned chunks of one example: its text, the teacher's tokens, the student's tokens.

    With --summary, show statistics of the whole dataset instead; with --picture, draw the example.
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
        raise UserError(f"{url}: {what} has no chunks (it was dropped, or is empty); --summary counts what was dropped")
    first = frame.filter(frame["id"] == frame["id"][0])
    header = ("bytes", "text", "teacher's tokens", "student's tokens", "kind")
    out.print_table(
        header, list(map(_chunk_row, first.head(chunks).iter_rows(named=True))), f"example {first['id'][0]}"
    )
    out.print_line(f"{min(chunks, len(first))} of {len(first)} chunks of this example, {len(frame)} in the shard")


def _chunk_row(chunk: dict[str, Any]) -> list[str]:
    sides = [" ".join(map(repr, chunk[side])) for side in ("teacher", "student")]
    return [f"{chunk['start']}-{chunk['end']}", repr(chunk["text"]), *sides, chunk["kind"]]


def _print_summary(url: str) -> None:
    from alm_pipeline.inspection.summary import summarize_alignments
    from alm_pipeline.inspection.tables import tables

    for title, header, rows in tables(summarize_alignments(url)):
        out.print_table(header, rows, title)


def _write_picture(file: Path, url: str, shard: int, example: str | None, chunks: int) -> None:
    from alm_pipeline.inspection.drawing import draw
    from alm_pipeline.inspection.page import page
    from alm_pipeline.inspection.picture import picture

    if file.suffix not in (".html", ".png"):
        raise UserError(f"--picture {file}: not an .html or .png file: write FILE.html or FILE.png")
    shown = picture(url, example, shard, chunks)
    try:
        content = page(shown).encode() if file.suffix == ".html" else draw(shown)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--picture {file}: needs {error.name}: pip install 'alm-pipeline[pictures]', or write FILE.html"
        ) from error
    write_picture(file, content)
    out.print_line(f"{file}: {len(shown.chunks)} of {len(shown.chunks) + shown.left} chunks")
