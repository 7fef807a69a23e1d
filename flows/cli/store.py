"""The commands that keep a store: list, verify, repair, lineage, prune, delete."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table
from rich.tree import Tree

from flows.cli.console import err, out, user_errors
from storage.errors import UserError

if TYPE_CHECKING:
    from storage.upkeep.catalog import Entry, Node, Store
    from storage.upkeep.prune import Wasted
    from storage.upkeep.verify import Finding

store = typer.Typer()

Root = Annotated[str, typer.Argument(metavar="ROOT", help="a storage root: a folder or any fsspec URL")]
Place = Annotated[str, typer.Argument(metavar="URL", help="a storage root, or one dataset's or student's folder")]
One = Annotated[str, typer.Argument(metavar="URL", help="one dataset's, tokenizer's or student's folder")]
Checksums = Annotated[bool, typer.Option("--checksums", help="read everything, instead of comparing sizes")]


@store.command(name="list")
def list_(root: Root = "alm-data") -> None:
    """Say what is stored under a root: sizes, what is complete, and what it counts."""
    from storage.upkeep.catalog import Store

    with user_errors():
        entries = list(Store.open(root).entries.values())
    # names are there to be copied: the counts are folded, not they
    table = Table("kind", Column("name", no_wrap=True, overflow="fold"), "rows", "MB", "state", "counts")
    for entry in entries:
        table.add_row(entry.kind, entry.name, _rows(entry), _mb(entry.bytes), entry.state, escape(_counts(entry)))
    out.print(table)
    out.print(f"{len(entries)} datasets and folders, {_mb(sum(entry.bytes for entry in entries))} MB")


def _rows(entry: "Entry") -> str:
    rows = getattr(entry.manifest, "rows", None)
    return "" if rows is None else f"{rows:,}"


def _counts(entry: "Entry") -> str:
    if counts := getattr(entry.manifest, "counts", None):
        return ", ".join(f"{count:,} {what}" for what, count in counts.items())
    results = getattr(entry.manifest, "results", None)
    if not results:
        return ""
    rounded = json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 4))
    return json.dumps(rounded, ensure_ascii=False).replace('"', "").removeprefix("{").removesuffix("}")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _chosen(url: str) -> tuple["Store", list[str]]:
    """The store that a URL is the root of, or lies in, and what of it is meant."""
    from storage.upkeep.catalog import Store, is_root
    from storage.urls import absolute_url

    if is_root(url):
        found = Store.open(url)
        return found, list(found.entries)
    root, kind, name = absolute_url(url).rsplit("/", 2)
    found = Store.open(root)
    if f"{kind}/{name}" not in found.entries:
        raise UserError(f"{url}: is not there; `alm list {root}` says what is")
    return found, [f"{kind}/{name}"]


def _chosen_one(url: str) -> tuple["Store", str]:
    """A root stands for all that is in it, which lineage and deletion are not for."""
    from storage.upkeep.catalog import is_root

    if is_root(url):
        raise UserError(f"{url}: is no dataset's folder; `alm list {url}` names them, `alm prune` tells what can go")
    found, keys = _chosen(url)
    return found, keys[0]


@store.command()
def verify(url: Place = "alm-data", checksums: Checksums = False) -> None:
    """Check that what is stored is what was written. Exits with 1 where something is wrong.

    By sizes, for which each folder is listed once; with --checksums by the SHA-256 of every file.
    """
    from storage.upkeep.verify import verify_entry

    with user_errors():
        found, keys = _chosen(url)
        findings = [finding for key in keys for finding in verify_entry(found.entries[key], checksums)]
    if findings:
        _print_findings(findings, f"alm repair {url}{' --checksums' if checksums else ''}")
        raise typer.Exit(1)
    size = sum(found.entries[key].bytes for key in keys)
    how = "by checksums" if checksums else "by sizes; --checksums reads everything"
    out.print(f"{len(keys)} datasets and folders, {_mb(size)} MB: nothing wrong ({how})", highlight=False)


def _print_findings(findings: "list[Finding]", mend: str) -> None:
    table = Table(Column("file", overflow="fold"), "what is wrong", "mend")
    for finding in findings:
        can = "alm repair" if finding.stale or finding.again else "by hand"
        table.add_row(escape(finding.url), escape(finding.problem), can)
    out.print(table)
    if any(finding.stale or finding.again for finding in findings):
        out.print(f"`{mend}` makes again just what is wrong", highlight=False, markup=False, soft_wrap=True)


@store.command()
def repair(
    url: Place = "alm-data",
    checksums: Checksums = False,
    config: Annotated[
        Path | None, typer.Option(help="a YAML or JSON configuration, where no manifest holds the one to use")
    ] = None,
) -> None:
    """Verify, remove what is wrong, and run the stages again that make it: only missing shards are written.

    The configuration is the one that the manifest holds. What was made from a repaired dataset stays as it is: the
    bytes are the same. Exits with 1 where something is still wrong.
    """
    from alm_pipeline.config import load_config
    from alm_pipeline.repair import repair as repair_all
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors():
        found, keys = _chosen(url)
        with progress_bars(err):
            done = list(repair_all(found, keys, checksums, load_config(config) if config else None))
    for item in done:
        for problem in item.found:
            out.print(f"{problem.url}: {problem.problem}", highlight=False, markup=False, soft_wrap=True)
        if item.refused:
            err.print(f"[bold red]not repaired:[/] {escape(item.refused)}", highlight=False, soft_wrap=True)
        elif item.left:
            _print_findings(list(item.left), f"alm repair {url}")
        else:
            how = "repaired; its bytes are others than before" if item.changed else "repaired, to the same bytes"
            out.print(f"{item.key}: {how}", highlight=False, markup=False, soft_wrap=True)
    if not done:
        out.print(f"{len(keys)} datasets and folders: nothing wrong", highlight=False)
    if any(item.left for item in done):
        raise typer.Exit(1)


@store.command()
def lineage(url: One) -> None:
    """Print what a student or dataset was made from, down to the corpus, as a tree."""
    with user_errors():
        found, key = _chosen_one(url)
    out.print(_tree(found.lineage(key)), highlight=False)


def _tree(node: "Node", above: str = "", parent: Tree | None = None) -> Tree:
    from storage.upkeep.lineage import highlights, origin

    label = f"{_role(node)}[bold]{escape(node.key)}[/]  {_state(node)}"
    tree = parent.add(label) if parent else Tree(label)
    if node.shown_before:
        return tree
    made_by = origin(node.entry)
    for line in highlights(node):
        tree.add(escape(line), style="dim")
    if made_by != above and node.entry:
        tree.add(escape(f"made by: {made_by}" if made_by else "made by: its manifest does not tell"), style="dim")
    for made_from in node.inputs:
        _tree(made_from, made_by, tree)
    return tree


def _role(node: "Node") -> str:
    return "" if node.role in ("", node.key.split("/")[0]) else f"{node.role.replace('_', ' ')}: "


def _state(node: "Node") -> str:
    if node.entry is None:
        return "[red]is not there any more[/]"
    if node.entry.manifest is None:
        return f"[red]{node.entry.state}[/]"
    rows = f"{rows} rows, " if (rows := _rows(node.entry)) else ""
    return f"{rows}{_mb(node.entry.bytes)} MB{', as above' if node.shown_before else ''}"


@store.command()
def prune(
    root: Root = "alm-data",
    incomplete: Annotated[bool, typer.Option("--incomplete", help="also what is not complete")] = False,
    unused: Annotated[bool, typer.Option("--unused", help="also what no complete student was made from")] = False,
    older_than: Annotated[float, typer.Option(min=0, metavar="HOURS", help="what was last written before that")] = 1,
    apply: Annotated[bool, typer.Option("--apply", help="delete; without it nothing is")] = False,
) -> None:
    """Say what can go, and with --apply delete it.

    By itself only what killed runs left and nobody can use: temporary files, interrupted uploads to S3, checkpoints of
    finished students. What cost computing goes only when asked for: what is not complete (its run would go on from
    there), and what is complete but no complete student was made from. Students that are complete are never pruned.
    """
    from storage.upkeep.catalog import Store
    from storage.upkeep.prune import Waste, blockers, discard, find_waste

    chosen = {Waste.TEMPORARY} | ({Waste.INCOMPLETE} if incomplete else set()) | ({Waste.UNUSED} if unused else set())
    with user_errors():
        found, before = Store.open(root), time.time() - older_than * 3600
        blocking = blockers(found, before, incomplete)
        if unused and blocking:
            raise UserError(
                f"{blocking[0]}: is not complete, so that nobody knows what it is made from: let its run finish it, "
                "repair or delete it, or add --incomplete (which goes by age, see --older-than)"
            )
        items = find_waste(found, before, incomplete)
        going = [item for item in items if item.waste in chosen]
        _print_waste(items, going, apply)
        for item in going if apply else ():
            discard(item)


def _print_waste(items: "list[Wasted]", going: "list[Wasted]", apply: bool) -> None:
    table = Table(Column("what", overflow="fold"), "why", "", "MB", "goes")
    for item in items:
        goes = "yes" if item in going else f"with --{item.waste}"
        table.add_row(escape(item.url), item.waste, item.what, _mb(item.bytes), goes)
    if items:
        out.print(table)
    size = _mb(sum(item.bytes for item in going))
    said = f"{len(going)} deleted, {size} MB freed" if apply else f"--apply deletes {len(going)} and frees {size} MB"
    out.print(said, highlight=False)


@store.command()
def delete(
    url: One,
    force: Annotated[bool, typer.Option("--force", help="even if something else was made from it")] = False,
) -> None:
    """Delete one dataset, tokenizer or student, unless something else was made from it."""
    from storage.upkeep.prune import delete as delete_one

    with user_errors():
        found, key = _chosen_one(url)
        freed = delete_one(found, key, force)
    out.print(f"{key}: deleted, {_mb(freed)} MB freed", highlight=False, markup=False, soft_wrap=True)
