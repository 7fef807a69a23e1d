"""What is generated from the code: whole pages, and parts of written ones. Nothing here loads torch or MkDocs."""

from collections.abc import Callable

from docs.generator import benchmarks, commands, datasets, examples, rooms, settings

PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings.page,
    "reference/datasets.md": datasets.page,
    "reference/commands.md": commands.page,
    "pictures/rooms.svg": rooms.picture,
    "benchmarks.md": benchmarks.page,
    "examples.md": examples.page,
}
"""The generated pages by their path in the site."""

PARTS: dict[str, Callable[[], str]] = {"<!-- generated: rooms -->": rooms.rooms_table}
"""The generated parts of written pages, by the comment that each replaces."""
