"""The page of benchmarks: `benchmarks/README.md` as it is, which stays beside its scripts."""

from pathlib import Path

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def page() -> str:
    """The text of `benchmarks/README.md`."""
    return README.read_text(encoding="utf-8")
