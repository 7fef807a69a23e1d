"""The command `alm list`: what is stored under a root, and its students side by side."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal.console import JsonOption, Shown, out, show_count, show_megabytes, show_text, user_errors
from flows.terminal.options import Root
from storage.errors import UserError

if TYPE_CHECKING:
    from storage.upkeep.catalog import Catalog, CatalogEntry

Row = dict[str, Any]
listing = typer.Typer()

STORED = (
    Shown("kind", "kind"),
    Shown("name", "name"),
    Shown("rows", "rows", show_count),
    Shown("bytes", "MB", show_megabytes),
    Shown("state", "state"),
    Shown("summary", "counts"),
)


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _moment(value: str | None) -> str:
    return "" if value is None else f"{datetime.fromisoformat(value).astimezone():%Y-%m-%d %H:%M}"


def _setting(value: Any) -> str:
    from alm_pipeline.comparison.students import short_text

    return short_text(value)


SETTINGS = (
    Shown("teacher", "teacher", _setting),
    Shown("student", "student", _setting),
    Shown("tokenizer", "tokenizer", _setting),
    Shown("corpus", "corpus"),
    Shown("steps", "steps", show_count),
)
RESULTS = (
    Shown("bits_teacher", "teacher's bits", _bits),
    Shown("bits_before", "bits before", _bits),
    Shown("bits_after", "bits after", _bits),
    Shown("standard_error", "standard error", _bits),
    Shown("word_kl_after", "KL per word", _bits),
    Shown("chosen_step", "chosen step", show_count),
    Shown("finished", "finished", _moment),
    Shown("bytes", "MB", show_megabytes),
)


@listing.command(name="list")
def list_(
    root: Root = "alm-data",
    students: Annotated[
        bool, typer.Option("--students", help="List only the students, with their settings and results side by side.")
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Sort by this key of the JSON; -FIELD sorts in descending order."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what is stored under a root: rows, sizes, states and counts.

    With --students, a table of the finished students: name (chosen, or made of the settings that differ), settings,
    held-out bits per byte, the step that was chosen, when it was finished, size.
    """
    from storage.upkeep.catalog import Catalog

    with user_errors():
        catalog = Catalog.open(root)
        if students:
            from alm_pipeline.comparison.students import student_rows

            rows = _sorted(student_rows(catalog), sort)
        else:
            rows = _sorted(_stored_rows(catalog), sort)
    if as_json:
        out.write_json({"root": catalog.root, "students" if students else "folders": rows})
    elif students:
        _print_students(rows)
    else:
        out.print_rows(STORED, [{**row, "state": _state(row), "summary": _summary(row)} for row in rows])
        out.print_line(f"{len(rows)} datasets and folders, {show_megabytes(sum(row['bytes'] for row in rows))} MB")


def _stored_rows(catalog: "Catalog") -> list[Row]:
    from alm_pipeline.comparison.students import STUDENTS, student_entries, student_names

    names = student_names(student_entries(catalog))
    return [
        _stored_row(entry, names.get(entry.name) if entry.kind == STUDENTS else None)
        for entry in catalog.entries.values()
    ]


def _stored_row(entry: "CatalogEntry", student_name: str | None) -> Row:
    manifest = entry.manifest
    return {
        "kind": str(entry.kind),
        "name": entry.name,
        "url": entry.url,
        "rows": getattr(manifest, "rows", None),
        "bytes": entry.bytes,
        "state": str(entry.state),
        "link": entry.link,
        "problem": entry.problem if manifest is None and entry.state != "not complete" else None,
        "student_name": student_name,
        "counts": dict(getattr(manifest, "counts", {})),
        "results": dict(getattr(manifest, "results", {})),
    }


def _state(row: Row) -> str:
    return f"{row['state']}, a link to {row['link']}" if row["link"] else str(row["state"])


def _summary(row: Row) -> str:
    """Return what was counted or measured, or what is wrong with the manifest."""
    if row["problem"]:
        return str(row["problem"])
    results = row["results"]
    bits = results.get("held_out_bits_per_byte")
    numbers = _bits_of_all(bits) if isinstance(bits, Mapping) else ", ".join(_flat({**row["counts"], **results}))
    return "; ".join(filter(None, [row["student_name"], numbers]))


def _bits_of_all(bits: Mapping[str, Any]) -> str:
    known = {who: f"{value:.4f}" for who, value in bits.items() if isinstance(value, int | float)}
    order = (("student_before", "before"), ("student_after", "after"), ("teacher", "teacher"))
    return f"bits per byte {', '.join(f'{label} {known[who]}' for who, label in order if who in known)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield a text for each number, such as `80 examples` and `pairs within, 0.0 12`."""
    for name, value in values.items():
        title = prefix + name.replace("_", " ")
        match value:
            case Mapping():
                yield from _flat(value, f"{title}, ")
            case int():
                yield f"{value:,} {title}"
            case float():
                yield f"{title} {value:.4f}"
            case _ if value is not None:
                yield f"{title} {value}"


def _sorted(rows: list[Row], sort: str | None) -> list[Row]:
    """Sort rows by a field, or by one of `settings`; rows that lack it come last."""
    if sort is None or not rows:
        return rows
    descending, field = sort.startswith("-"), sort.removeprefix("-")
    value_of = _reader(rows, field)
    known = [row for row in rows if value_of(row) is not None]
    values = [value_of(row) for row in known]
    is_number = all(isinstance(value, int | float) for value in values)
    known.sort(key=(lambda row: value_of(row)) if is_number else (lambda row: str(value_of(row))), reverse=descending)
    return [*known, *(row for row in rows if value_of(row) is None)]


def _reader(rows: Sequence[Row], field: str) -> Any:
    """Return the function that reads a row's field. Raises UserError listing the fields if there is none."""
    plain = [name for name, value in rows[0].items() if not isinstance(value, dict)]
    settings = list(dict.fromkeys(name for row in rows for name in row.get("settings", {})))
    if field in plain:
        return lambda row: row[field]
    matches = [name for name in settings if field in (name, name.rsplit(".", 1)[-1])]
    if len(matches) == 1:
        return lambda row: row["settings"].get(matches[0])
    nearest = get_close_matches(field, [*plain, *settings], 1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise UserError(f"--sort {field}: is not a field here{hint}; there are {', '.join([*plain, *settings])}")


def _print_students(rows: list[Row]) -> None:
    from alm_pipeline.comparison.students import too_few

    finished = [row for row in rows if row["name"] is not None]
    for row in rows:
        if row["name"] is None:
            out.print_line(f"{row['state']}: {row['url']}")
    if not finished:
        out.print_line("no finished students")
        return
    shared = [column for column in (*SETTINGS, RESULTS[0]) if len({repr(row[column.key]) for row in finished}) == 1]
    texts = [f"{column.title} {text}" for column in shared if (text := column.text(finished[0][column.key]))]
    if texts:
        out.print_line(f"all: {'; '.join(texts)}" if len(finished) > 1 else "; ".join(texts))
    own = [column for column in SETTINGS if column not in shared]
    results = [column for column in RESULTS if column not in shared]
    _print_widest(finished, own, results)
    out.print_line("bits: held-out bits per byte before and after training; the standard error is that of bits after")
    for sentence in too_few(finished):
        out.print_line(sentence)


def _print_widest(rows: list[Row], own: Sequence[Shown], results: Sequence[Shown]) -> None:
    """Print the widest table that fits: settings that are part of the names are left out first."""
    from alm_pipeline.naming.differences import labels

    fields = list(dict.fromkeys(field for row in rows for field in row["settings"]))
    others = [Shown(f"settings.{field}", label, _setting) for field, label in zip(fields, labels(fields), strict=True)]
    flat = [{**row, **{f"settings.{field}": value for field, value in row["settings"].items()}} for row in rows]
    name = Shown("name", "name", show_text)
    for columns in ((name, *own, *others, *results), (name, *own, *results), (name, *results), (name, *results[:-2])):
        if out.fits(columns, flat):
            break
    else:
        columns = (name, *own, *others, *results)
    out.print_rows(columns, flat)
