"""The model card of an edited model: what was edited with what, how it is part of the model, and what it does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storage.printed.inert import markdown, one_line

PICTURE = "spectrum.png"


def edit_card(record: Mapping[str, Any], measures: Sequence[Mapping[str, Any]], *, has_picture: bool) -> str:
    """Return the card, in Markdown. `record` is the content of `edit.json`, `measures` that of its evaluation."""
    sections = [_HEAD, "\n".join(_table(_settings(record))), "\n".join(_folded(record))]
    if record["warnings"]:
        sections.append("\n".join(f"- **Warning**: {markdown(warning)}" for warning in record["warnings"]))
    if measures:
        sections.append("\n".join(["## Before and after", "", *_table(_measured(measures), _MEASURED)]))
    if has_picture:
        sections.append(f"![Singular values and signature by layer]({PICTURE})")
    sections.append("Made by `alm edit`. The hash in parentheses is of the base's weights, configuration and code.")
    return "\n\n".join(sections) + "\n"


_HEAD = """---
library_name: transformers
tags:
- activation-editing
- alm-pipeline
---

# A model with edited activations"""
_MEASURED = ("", "before", "after", "difference [95 %]", "items")
_FIRST = ("place", "layer that writes it", "how", "constant", "spread over tokens")


def _settings(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "base", f"{record['model']} ({record['model_identity'][:16]})"
    yield "demonstrations", f"{record['demonstrations']} ({record['rows']:,} rows)"
    settings = record["settings"]
    yield "method", settings["method"]
    yield "edited", f"{settings['where']}, layers {', '.join(map(str, record['layers']))}"
    names = ("strength",) if settings["method"] == "mean_shift" else ("energy", "center", "nonlinearity")
    for name in (*names, "swap", "chat", "dtype"):
        yield name, str(settings[name])
    ranks = [(place["positive_rank"], place["negative_rank"]) for place in record["places"]]
    if settings["method"] == "sea":
        yield "ranks K⁺, K⁻, first to last", "; ".join(f"{plus}, {minus}" for plus, minus in ranks)


def _folded(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## How the edit is part of the model"
    yield ""
    if not record["foldings"]:
        yield (
            f"A file of code comes with the model ({markdown(record['not_folded'])}): load it with "
            "`trust_remote_code=True`."
        )
        return
    yield (
        "It is folded into the weights: the model is an ordinary one. Exact: the same as editing the activations. "
        "Constant: the mean of the scale that would keep each token's norm is used for all tokens."
    )
    yield ""
    rows = (
        (
            folding["place"],
            folding["write"],
            "exact" if folding["exact"] else "constant",
            f"{folding['scale']:.4f}",
            f"{folding['spread']:.2%}",
        )
        for folding in record["foldings"]
    )
    yield from _table(rows, _FIRST)


def _measured(measures: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for measure in measures:
        values = f"{measure['before']:.4f}", f"{measure['after']:.4f}"
        yield measure["name"], *values, difference_text(measure["difference"]), f"{measure['items']:,}"


def difference_text(difference: Mapping[str, Any]) -> str:
    """Return a difference with its interval, such as `+0.012 [−0.003, +0.027]`."""
    if difference["low"] is None:
        return f"{difference['value']:+.4f}"
    return f"{difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"


def _table(rows: Iterator[tuple[str, ...]], head: Sequence[str] = ("", "")) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(one_line(cell).replace('|', chr(92) + '|') for cell in row)} |"
