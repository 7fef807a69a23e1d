"""The commands that maintain a store: verify, repair, lineage, prune, delete."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from flows.terminal.console import JsonOption, Shown, err, out, show_count, show_megabytes, user_errors
from flows.terminal.options import Root, finite
from storage.errors import UserError
from storage.printed.inert import one_line

if TYPE_CHECKING:
    from alm_pipeline.repair import Repair
    from storage.upkeep.catalog import Catalog, LineageNode
    from storage.upkeep.prune import WasteItem
    from storage.upkeep.verify import Damage

store = typer.Typer()

RootOrFolder = Annotated[
    str, typer.Argument(metavar="URL", help="The storage root, or the folder of one dataset, tokenizer or student.")
]
Folder = Annotated[str, typer.Argument(metavar="URL", help="The folder of one dataset, tokenizer or student.")]
Checksums = Annotated[bool, typer.Option("--checksums", help="Also read all files and compare their checksums.")]


def _select(url: str) -> tuple["Catalog", list[str]]:
    """Open the store that a URL is the root of or is in. Return it with the keys of the selected entries."""
    from storage.upkeep.catalog import Catalog, is_root
    from storage.urls import absolute_url

    if is_root(url):
        opened = Catalog.open(url)
        return opened, list(opened.entries)
    root, kind, name = absolute_url(url).rsplit("/", 2)
    opened = Catalog.open(root)
    if f"{kind}/{name}" not in opened.entries:
        raise UserError(f"{url}: does not exist; `alm list {root}` lists what does")
    return opened, [f"{kind}/{name}"]


def _select_one(url: str) -> tuple["Catalog", str]:
    """Like `_select`, but refuses a root: lineage and deletion are of a single entry."""
    from storage.upkeep.catalog import is_root

    if is_root(url):
        raise UserError(
            f"{url}: is a storage root, not a single folder; `alm list {url}` lists its folders, "
            f"`alm prune {url}` lists what can be deleted"
        )
    opened, keys = _select(url)
    return opened, keys[0]


@store.command()
def verify(url: RootOrFolder = "alm-data", checksums: Checksums = False, as_json: JsonOption = False) -> None:
    """Check that every stored file exists and has its recorded size. Exits with 1 if something is wrong.

    With --checksums, also read every file, compare its SHA-256, and look for scores that are not finite.
    """
    from alm_pipeline.scoring.finite import find_damages

    with user_errors():
        opened, keys = _select(url)
        damages = [damage for key in keys for damage in find_damages(opened.entries[key], checksums)]
    size = sum(opened.entries[key].bytes for key in keys)
    if as_json:
        out.write_json(
            {
                "url": url,
                "checksums": checksums,
                "folders": len(keys),
                "bytes": size,
                "links": {entry.url: entry.link for entry in map(opened.entries.__getitem__, keys) if entry.link},
                "damages": _damage_rows(damages),
            }
        )
        raise typer.Exit(1 if damages else 0)
    for entry in (opened.entries[key] for key in keys):
        if entry.link:
            out.print_line(f"{entry.url}: is a link to {entry.link}")
    if damages:
        _print_damages(damages, f"alm repair {url}{' --checksums' if checksums else ''}")
        raise typer.Exit(1)
    how = "by checksums" if checksums else "by sizes; --checksums compares contents"
    out.print_line(f"{len(keys)} datasets and folders, {show_megabytes(size)} MB: no problems ({how})")


DAMAGES = (Shown("url", "file"), Shown("problem", "problem"), Shown("fix", "fix"))


def _damage_rows(damages: "Sequence[Damage]") -> list[dict[str, Any]]:
    return [
        {"url": item.url, "problem": item.problem, "fix": "alm repair" if item.is_repairable else "by hand"}
        for item in damages
    ]


def _print_damages(damages: "list[Damage]", repair_command: str) -> None:
    out.print_rows(DAMAGES, _damage_rows(damages))
    if any(damage.is_repairable for damage in damages):
        out.print_line(f"`{repair_command}` writes only the damaged or missing files again")


@store.command()
def repair(
    url: RootOrFolder = "alm-data",
    checksums: Checksums = False,
    config: Annotated[
        Path | None, typer.Option(help="A YAML or JSON configuration, used for datasets without a readable manifest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify, remove damaged files, and run their stages again, which write only the missing shards.

    The configuration comes from the manifest. What was made from a repaired dataset stays as it is, since the
    repaired bytes are the same. Exits with 1 if something is still wrong.
    """
    from alm_pipeline.config import load_config
    from alm_pipeline.repair import repair as repair_all
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors():
        opened, keys = _select(url)
        with progress_bars(err):
            done = list(repair_all(opened, keys, checksums, load_config(config) if config else None))
    if as_json:
        out.write_json({"url": url, "folders": len(keys), "repairs": list(map(_repair_row, done))})
    else:
        _print_repairs(done, url, len(keys))
    if any(item.remaining for item in done):
        raise typer.Exit(1)


def _repair_row(item: "Repair") -> dict[str, Any]:
    return {
        "folder": item.key,
        "is_repaired": not item.remaining,
        "has_changed_bytes": item.changed,
        "refused": item.refused or None,
        "damages": _damage_rows(item.damages),
        "remaining": _damage_rows(item.remaining),
    }


def _print_repairs(done: "Sequence[Repair]", url: str, folders: int) -> None:
    for item in done:
        _print_repair(item, url)
    if not done:
        out.print_line(f"{folders} datasets and folders: no problems")


def _print_repair(item: "Repair", url: str) -> None:
    for damage in item.damages:
        out.print_line(f"{damage.url}: {damage.problem}")
    if item.refused:
        err.print_labeled("not repaired:", item.refused)
    elif item.remaining:
        _print_damages(list(item.remaining), f"alm repair {url}")
    else:
        how = "repaired, but its bytes have changed" if item.changed else "repaired, with the same bytes"
        out.print_line(f"{item.key}: {how}")


@store.command()
def lineage(url: Folder, as_json: JsonOption = False) -> None:
    """Print what a student or dataset was made from, down to the corpus, as a tree."""
    with user_errors():
        opened, key = _select_one(url)
    node = opened.lineage(key)
    if as_json:
        out.write_json(_node(node))
    else:
        out.print(_tree(node))


def _node(node: "LineageNode") -> dict[str, Any]:
    from storage.upkeep.lineage_notes import highlights, origin

    return {
        "role": node.role or None,
        "folder": node.key,
        "state": str(node.entry.state) if node.entry else "no longer exists",
        "problem": (node.entry.problem if node.entry else "") or None,
        "rows": getattr(node.entry and node.entry.manifest, "rows", None),
        "bytes": node.entry.bytes if node.entry else None,
        "notes": [] if node.shown_before else highlights(node),
        "made_by": origin(node.entry) or None,
        "is_shown_above": node.shown_before,
        "inputs": list(map(_node, node.inputs)),
    }


def _tree(node: "LineageNode", parent_origin: str = "", parent: Tree | None = None) -> Tree:
    from storage.upkeep.lineage_notes import highlights, origin

    label = Text.assemble(_role(node), (one_line(node.key), "bold"), "  ", _state(node), overflow="fold")
    tree = parent.add(label) if parent else Tree(label)
    if node.shown_before:
        return tree
    made_by = origin(node.entry)
    for line in highlights(node):
        tree.add(line, style="dim")
    if made_by != parent_origin and node.entry:
        tree.add(f"made by: {made_by}" if made_by else "made by: not recorded in its manifest", style="dim")
    for source in node.inputs:
        _tree(source, made_by, tree)
    return tree


def _role(node: "LineageNode") -> str:
    return "" if node.role in ("", node.key.split("/")[0]) else f"{one_line(node.role).replace('_', ' ')}: "


def _state(node: "LineageNode") -> Text:
    if node.entry is None:
        return Text("no longer exists", "red")
    if node.entry.manifest is None:
        problem = f": {one_line(node.entry.problem)}" if node.entry.problem else ""
        return Text(f"{node.entry.state}{problem}", "red")
    count = getattr(node.entry.manifest, "rows", None)
    rows = "" if count is None else f"{show_count(count)} rows, "
    return Text(f"{rows}{show_megabytes(node.entry.bytes)} MB{', as above' if node.shown_before else ''}")


@store.command()
def prune(
    root: Root = "alm-data",
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Also delete datasets and students that are not complete.")
    ] = False,
    unused: Annotated[
        bool, typer.Option("--unused", help="Also delete datasets that no complete student was made from.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(min=0, callback=finite, metavar="HOURS", help="Skip what was written in the last HOURS hours."),
    ] = 1,
    apply: Annotated[bool, typer.Option("--apply", help="Delete; without it, only list.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what can be deleted, and delete it with --apply.

    By default this covers only useless files that killed runs left: temporary files, interrupted uploads to S3, and
    checkpoints of finished students. Two options also cover what took time to compute: --incomplete adds datasets and
    students that a run could still complete, --unused adds complete datasets that no complete student was made from.
    Complete students are never pruned, and whatever a run is working on is skipped.
    """
    from storage.upkeep.catalog import Catalog
    from storage.upkeep.prune import WasteReason, blockers, find_waste

    optional = {WasteReason.INCOMPLETE: incomplete, WasteReason.UNUSED: unused}
    chosen = {WasteReason.TEMPORARY, *(reason for reason, is_chosen in optional.items() if is_chosen)}
    with user_errors():
        opened, before = Catalog.open(root), time.time() - older_than * 3600
        if unused:
            _check_unused_is_known(blockers(opened, before, incomplete))
        items = find_waste(opened, before, incomplete)
        selected = [item for item in items if item.reason in chosen]
        busy = _discard(selected) if apply else {}
        rows = [_waste_row(item, item in selected, busy) for item in items]
    if as_json:
        out.write_json({"root": opened.root, "is_applied": apply, "waste": rows})
    else:
        _print_waste(rows, apply, busy)


def _discard(items: "list[WasteItem]") -> dict[str, str]:
    """Delete the items; return the URLs of those in whose folder a process works, and which one."""
    from storage.lease import HeldError
    from storage.upkeep.prune import discard

    busy = {}
    for item in items:
        try:
            discard(item)
        except HeldError as error:
            busy[item.url] = str(error)
    return busy


def _check_unused_is_known(blocking: Sequence[str]) -> None:
    if blocking:
        raise UserError(
            f"{blocking[0]}: is not complete, so what it is made from is not known: let its run finish it, repair or "
            "delete it, or add --incomplete (which covers only what is older than --older-than)"
        )


WASTE = (
    Shown("url", "file or folder"),
    Shown("reason", "why"),
    Shown("content", "content"),
    Shown("bytes", "MB", show_megabytes),
    Shown("deletion", "delete"),
)


def _waste_row(item: "WasteItem", is_selected: bool, busy: Mapping[str, str]) -> dict[str, Any]:
    return {
        "url": item.url,
        "reason": str(item.reason),
        "content": item.what,
        "bytes": item.bytes,
        "is_selected": is_selected,
        "skipped_because": busy.get(item.url),
    }


def _deletion(row: Mapping[str, Any]) -> str:
    if row["skipped_because"]:
        return "skipped"
    return "yes" if row["is_selected"] else f"with --{row['reason']}"


def _print_waste(rows: Sequence[Mapping[str, Any]], apply: bool, busy: Mapping[str, str]) -> None:
    if rows:
        out.print_rows(WASTE, [{**row, "deletion": _deletion(row)} for row in rows])
    for problem in busy.values():
        err.print_labeled("skipped:", problem)
    going = [row for row in rows if row["is_selected"] and not row["skipped_because"]]
    size = show_megabytes(sum(row["bytes"] for row in going))
    result = f"{len(going)} deleted, {size} MB freed"
    out.print_line(result if apply else f"--apply deletes {len(going)} and frees {size} MB")


@store.command()
def delete(
    url: Folder,
    force: Annotated[bool, typer.Option("--force", help="Delete it even if something else was made from it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete one dataset, tokenizer or student, unless something else was made from it or a run is writing it."""
    from storage.upkeep.prune import delete as delete_one

    with user_errors():
        opened, key = _select_one(url)
        freed = delete_one(opened, key, force)
    if as_json:
        out.write_json({"deleted": key, "bytes": freed, "is_link": bool(opened.entries[key].link)})
        return
    what = "its link deleted, not what it points to" if opened.entries[key].link else "deleted"
    out.print_line(f"{key}: {what}, {show_megabytes(freed)} MB freed")
