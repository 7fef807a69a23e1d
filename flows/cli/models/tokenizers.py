"""The command `alm tokenizers`: tokenizers side by side on the same texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.terminal.console import (
    JsonOption,
    Shown,
    err,
    out,
    show_corpus,
    show_count,
    show_text,
    used_columns,
    user_errors,
    write_picture,
)
from flows.terminal.options import MODEL, Examples, Text, TrustRemoteCode

tokenizer_commands = typer.Typer()

Row = Mapping[str, Any]
_PATTERNS = 8


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _change(value: int) -> str:
    return f"{value:+,}" if value else ""


TOKENIZERS = (
    Shown("tokenizer", "tokenizer"),
    Shown("tokens", "tokens", show_count),
    Shown("special_tokens", "special", show_count),
    Shown("mean_bytes", "mean bytes", _number),
    Shown("used", "used in the texts", show_count),
    Shown("never_used", "never used", show_count),
)
LENGTHS = (
    Shown("corpus", "corpus", show_corpus),
    Shown("group", "group", show_text),
    Shown("texts", "texts", show_count),
    Shown("text_bytes", "bytes", show_count),
    Shown("tokenizer", "tokenizer"),
    Shown("text_tokens", "tokens", show_count),
    Shown("bytes_per_token", "bytes per token", _number),
    Shown("low", "95 % from", _number),
    Shown("high", "to", _number),
    Shown("relative_tokens", "tokens to the first's", _percent),
)
OVERLAP = (
    Shown("tokenizer", "tokenizer"),
    Shown("other", "tokens that are also in"),
    Shown("shared", "tokens", show_count),
    Shown("share", "share", _percent),
    Shown("share_of_uses", "of uses", _percent),
    Shown("share_of_bytes", "of bytes", _percent),
)
CHUNKS = (
    Shown("other", "aligned with the first"),
    Shown("chunks", "chunks", show_count),
    Shown("mean_bytes", "mean bytes", _number),
    Shown("median_bytes", "median", _number),
    Shown("largest_bytes", "largest", show_count),
    Shown("tokens_per_chunk", "tokens per chunk, the first's", _number),
    Shown("other_tokens_per_chunk", "the other's", _number),
    Shown("one_to_one", "one to one", _percent),
)
PATTERNS = (
    Shown("other", "aligned with the first"),
    Shown("tokens", "the first's tokens", show_count),
    Shown("other_tokens", "the other's", show_count),
    Shown("chunks", "chunks", show_count),
)
TRANSFER = (
    Shown("tokenizer", "tokenizer"),
    Shown("relative_tokens", "tokens of a text", _percent),
    Shown("context_bytes", "bytes in the context", show_count),
    Shown("rows", "rows", show_count),
    Shown("table_parameters", "parameters of tables", show_count),
    Shown("parameters", "all parameters", show_count),
    Shown("parameter_change", "change", _change),
)
LEFT_OUT = (
    Shown("tokenizer", "tokenizer", show_text),
    Shown("corpus", "corpus"),
    Shown("reason", "left out"),
    Shown("texts", "texts", show_count),
)


@tokenizer_commands.command()
def tokenizers(
    names: Annotated[
        list[str],
        typer.Argument(metavar="TOKENIZER", help=f"The tokenizers; others are compared with the first: {MODEL}."),
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]URL",
            help="URL of Parquet, Arrow, JSON, CSV or text files, with a name for tables. Can be repeated.",
        ),
    ],
    text: Text = "text",
    examples: Examples = 1000,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Also by the values of this column, by `script`, or by `file`."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"A model: show what moving it to each tokenizer would change; its own is the first. {MODEL}."
        ),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Also write the tables to this new folder: Parquet.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of lengths and chunks to this .png file.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOption = False,
) -> None:
    """Compare tokenizers on the same texts: lengths, vocabularies by bytes, aligned chunks, what they can't represent.

    Bytes per token have 95 % intervals over documents. Tokens are the same if they stand for the same bytes. What is
    counted is of the texts that every tokenizer can represent. Weights are not loaded, also with --model.
    """
    from alm_pipeline.comparison.corpora import named_corpora
    from alm_pipeline.models.new_folder import require_new
    from alm_pipeline.preflight.storage_probe import require_picture, require_writable
    from alm_pipeline.runtime.progress import progress_bars
    from alm_pipeline.tokenizer_report.drawing import draw_report
    from alm_pipeline.tokenizer_report.files import write_tables
    from alm_pipeline.tokenizer_report.report import report_tokenizers

    with user_errors(), progress_bars(err):
        if picture:
            require_picture("--picture", picture)
        if out_folder:
            require_new(out_folder)
            require_writable("--out", out_folder.parent)
        corpora = named_corpora(corpus, text, examples)
        report = report_tokenizers(names, corpora, by, model=model, trust_remote_code=trust_remote_code)
        if out_folder:
            write_tables(report, out_folder)
        if picture:
            write_picture(picture, draw_report(report))
    if as_json:
        out.write_json(report.document())
    else:
        _print_report(report.document())


def _print_report(tables: Mapping[str, Sequence[Row]]) -> None:
    patterns = [row for rows in _by_other(tables["chunk_tokens"]) for row in rows[:_PATTERNS]]
    _print("tokens", TOKENIZERS, tables["tokenizers"])
    _print("lengths of the texts", LENGTHS, tables["lengths"])
    _print("tokens with the same bytes", OVERLAP, tables["overlap"])
    _print("aligned chunks", CHUNKS, tables["chunks"])
    _print("most frequent chunks by tokens", PATTERNS, patterns)
    _print("the model with each tokenizer", TRANSFER, tables["transfer"])
    _print("left out", LEFT_OUT, tables["left_out"])


def _by_other(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["other"], []).append(row)
    return list(found.values())


def _print(title: str, columns: Sequence[Shown], rows: Sequence[Row]) -> None:
    """Print a table that has rows, without columns that are empty in all of them."""
    if rows:
        out.print_rows(used_columns(columns, rows), rows, title)
