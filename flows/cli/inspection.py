"""The commands that show what is inside of one dataset or folder: head, describe, inspect."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal.console import (
    JsonOption,
    Shown,
    out,
    show_count,
    show_megabytes,
    show_quoted,
    user_errors,
    write_picture,
)
from storage.errors import UserError
from storage.printed.inert import one_line, visible, yaml_text

if TYPE_CHECKING:
    from alm_pipeline.inspection.head import Head

Row = Mapping[str, Any]
inspection = typer.Typer()

Folder = Annotated[str, typer.Argument(metavar="URL", help="The folder of one dataset, tokenizer or student.")]
_TEXT = 1000
"""characters that are shown of a text"""


def _quoted(value: Any) -> str:
    return "" if value is None else repr(value)


def _share(value: float | None) -> str:
    """Show a probability: 12.3 %, or 0.00012 % with two digits where it is small."""
    if value is None:
        return "–"
    return f"{value:.1%}" if value >= 0.001 or not value else f"{100 * value:.2g}%"


def _likeliest(values: Sequence[Row]) -> str:
    return ", ".join(f"{value['text']!r} {_share(value['probability'])}" for value in values)


COLUMNS = (Shown("column", "column"), Shown("meaning", "meaning"), Shown("values", "values"), Shown("unit", "unit"))
DROPPED = (Shown("reason", "dropped"), Shown("meaning", "meaning"), Shown("count", "count", show_count))
TOKENS = (
    Shown("id", "id"),
    Shown("text", "token", _quoted),
    Shown("bytes", "bytes", show_count),
    Shown("kind", "kind"),
    Shown("role", "role"),
)
SCORES = (
    Shown("text", "token", _quoted),
    Shown("probability", "probability", _share),
    Shown("boundary_probability", "boundary next", _share),
    Shown("likeliest_next", "likeliest next", _likeliest),
)
CHUNKS = (
    Shown("bytes", "bytes"),
    Shown("text", "text", _quoted),
    Shown("teacher", "teacher's tokens", show_quoted),
    Shown("student", "student's tokens", show_quoted),
    Shown("kind", "kind"),
)
CHOICES = (
    Shown("choice", "choice", _quoted),
    Shown("logprob", "log-probability", "{:.4f}".format),
    Shown("tokens", "tokens"),
    Shown("bytes", "bytes"),
)
FILES = (Shown("file", "file"), Shown("bytes", "MB", show_megabytes))
VOCABULARY = (Shown("id", "id"), Shown("text", "token", _quoted))


@inspection.command()
def head(
    url: Folder,
    rows: Annotated[
        int, typer.Option("-n", "--rows", min=1, help="The number of rows, or of a vocabulary's tokens.")
    ] = 3,
    shard: Annotated[int, typer.Option(help="The number of the shard.")] = 0,
    items: Annotated[int, typer.Option(min=1, help="The number of tokens or chunks to show of each row.")] = 20,
    dropped: Annotated[bool, typer.Option("--dropped", help="Show only rows that were dropped, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the first rows of a dataset with their meaning: texts, tokens, chunks, or scores beside their tokens.

    Rows that were dropped have their reason. Of a tokenizer or a student, print its vocabulary, results and files.
    """
    from storage.folders import FOLDER_KINDS

    with user_errors():
        if PurePosixPath(url).parent.name in FOLDER_KINDS:
            _show_folder(url, rows, as_json)
            return
        from alm_pipeline.inspection.head import head as read_head

        found = read_head(url, rows, shard, only_dropped=dropped)
        if as_json:
            out.write_json(found.document())
        else:
            _print_head(found, items)


def _print_head(found: "Head", items: int) -> None:
    document = found.document()
    shards = f"{found.shards:,} shard{'' if found.shards == 1 else 's'}"
    out.print_line(f"{document['kind']}/{document['name']}: {shards}, here rows of shard {found.shard}")
    present = [column for column in document["columns"] if not column["column"].startswith("top_") or _has_top(found)]
    columns = [column for column in COLUMNS if column.key != "unit" or any(row["unit"] for row in present)]
    out.print_rows(columns, present, "columns")
    for row in found.rows:
        _print_row(row, items)
    out.print_line(f"{len(found.rows)} of {found.rows_in_shard:,} rows of shard {found.shard}")
    if document["dropped"]:
        out.print_rows(DROPPED, document["dropped"], "dropped in the whole dataset, by reason")


def _has_top(found: "Head") -> bool:
    return any(token.get("likeliest_next") for row in found.rows for token in row.get("tokens", ()))


def _print_row(row: Row, items: int) -> None:
    """Print one row of any dataset."""
    title = f"example {row['id']}" + (f", {row['split']}" if "split" in row else "")
    if row["dropped"]:
        out.print_line(f"{one_line(title)}: dropped, {row['dropped']}\n")
    elif "text" in row:
        out.print_line(f"{one_line(title)}, {len(row['text'].encode()):,} bytes\n{_readable(row)}\n")
    elif "choices" in row:
        out.print_line(f"{one_line(title)}, answer {row['answer']}\n{_indented(row['prompt'])}")
        shown = [column for column in CHOICES if any(column.key in choice for choice in row["choices"])]
        _print_items(shown, row["choices"], items, None, "choices")
    elif "chunks" in row:
        chunks = [{**chunk, "bytes": f"{chunk['start']}-{chunk['end']}"} for chunk in row["chunks"]]
        _print_items(CHUNKS, chunks, items, title, "chunks")
    elif "tokens" not in row:  # of an edit
        values = {name: value for name, value in row.items() if name not in ("id", "dropped") and value is not None}
        lines = (f"{name}:\n{_indented(str(value))}" for name, value in values.items())
        out.print_line("\n".join([one_line(f"row {row['id']}"), *lines]) + "\n")
    else:
        scores = any("probability" in token for token in row["tokens"])
        columns = SCORES if scores else TOKENS
        used = [column for column in columns if any(token[column.key] for token in row["tokens"])]
        _print_items(used, row["tokens"], items, title, "tokens")


def _print_items(columns: Sequence[Shown], values: Sequence[Row], items: int, title: str | None, what: str) -> None:
    out.print_rows(columns, values[:items], title)
    out.print_line(f"{min(items, len(values))} of {len(values):,} {what}\n")


def _readable(row: Row) -> str:
    """Return an example's text or messages, indented, and shortened if it is very long."""
    return "\n".join(map(_indented, _said(row["messages"]) if row["messages"] else [row["text"]]))


def _said(messages: Sequence[Row]) -> Iterator[str]:
    """Yield what each message says: thoughts, content and calls, each after the role."""
    from alm_pipeline.conversations.sections import reasoning_of, tool_calls

    for message in messages:
        role, content = one_line(message["role"]), message.get("content")
        calls = tool_calls(message)
        if reasoning := reasoning_of(message):
            yield f"{role}, reasoning: {reasoning}"
        if content or not calls:
            yield f"{role}: {content if isinstance(content, str) else _quoted(content)}"
        for call in calls:
            yield f"{role}, call: {call.name}{call.arguments}"


def _indented(text: str) -> str:
    text = visible(text)
    shown = text if len(text) <= _TEXT else f"{text[:_TEXT]} … ({len(text) - _TEXT:,} more characters)"
    return "  " + shown.replace("\n", "\n  ")


def _show_folder(url: str, count: int, as_json: bool) -> None:
    from alm_pipeline.inspection.folder_head import folder_head

    document = folder_head(url, count)
    if as_json:
        out.write_json(document)
        return
    vocabulary, files = document.pop("tokenizer", None), document.pop("files")
    out.write(yaml_text(document))
    if vocabulary:
        template = "a" if vocabulary["has_chat_template"] else "no"
        out.print_line(f"\n{vocabulary['tokens']:,} tokens, {template} chat template")
        out.print_rows(VOCABULARY, vocabulary["special_tokens"], "special tokens")
        out.print_rows(VOCABULARY, vocabulary["first_tokens"], "first tokens")
    out.print_rows(FILES, files, "files")


@inspection.command()
def describe(url: Folder, as_json: JsonOption = False) -> None:
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
        if as_json:
            out.write_json(_description(manifest))
        else:
            out.write(yaml_text(_description(manifest)))


def _description(manifest: Any) -> dict[str, Any]:
    content: dict[str, Any] = manifest.model_dump(mode="json")
    if "shards" in content:
        content["shards"] = len(content["shards"])
    return content


@inspection.command()
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
    as_json: JsonOption = False,
) -> None:
    """Show the aligned chunks of one example: its text, the teacher's tokens, the student's tokens.

    With --summary, show statistics of the whole dataset instead; with --picture, draw the example.
    """
    with user_errors():
        if picture:
            drawn = _write_picture(picture, url, shard, example, chunks or 200)
            if not as_json:
                out.print_line(drawn)
        document: dict[str, Any] = {"url": url}
        if summary:
            document |= _summary(url, as_json)
        elif as_json or not picture:
            document |= _chunks(url, shard, example, chunks or 30, as_json)
    if as_json:
        out.write_json(document)


def _chunks(url: str, shard: int, example: str | None, chunks: int, as_json: bool) -> dict[str, Any]:
    """Return the first chunks of an example; also print them unless they are for JSON."""
    from alm_pipeline.inspection.frame import chunk_frame

    frame = chunk_frame(url, shard, example)
    if frame.is_empty():
        what = f"example {example}" if example else f"shard {shard}"
        raise UserError(f"{url}: {what} has no chunks (it was dropped, or is empty); --summary counts what was dropped")
    first = frame.filter(frame["id"] == frame["id"][0])
    rows = first.head(chunks).drop("id").to_dicts()
    document = {
        "example": first["id"][0],
        "shard": shard,
        "chunks_of_example": len(first),
        "chunks_of_shard": len(frame) if example is None else None,
        "chunks": rows,
    }
    if not as_json:
        shown = [{**row, "bytes": f"{row['start']}-{row['end']}", "kind": _kind(row)} for row in rows]
        out.print_rows(CHUNKS, shown, f"example {first['id'][0]}")
        of_shard = f", {len(frame)} in the shard" if example is None else ""
        out.print_line(f"{len(rows)} of {len(first)} chunks of this example{of_shard}")
    return document


def _kind(row: dict[str, Any]) -> str:
    """Return a chunk's kind, with whose it is if not both sides see its bytes."""
    seen = {"teacher": "only the teacher sees it", "student": "only the student sees it", "neither": "neither sees it"}
    seen["partly"] = "partly seen"
    return f"{row['kind']}: {seen[row['seen_by']]}" if row["seen_by"] in seen else row["kind"]


def _summary(url: str, as_json: bool) -> dict[str, Any]:
    """Return the statistics of a dataset; also print their tables unless they are for JSON."""
    from alm_pipeline.inspection.summary import summarize_alignments
    from alm_pipeline.inspection.tables import plain, tables

    summary = summarize_alignments(url)
    if not as_json:
        for title, header, rows in tables(summary):
            out.print_table(header, rows, title)
    return plain(summary)


def _write_picture(file: Path, url: str, shard: int, example: str | None, chunks: int) -> str:
    """Write a picture, and return a line about it."""
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
    return f"{file}: {len(shown.chunks)} of {len(shown.chunks) + shown.left} chunks"
