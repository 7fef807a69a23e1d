"""Read the caches with Polars alone: where the two tokenizers cut differently, and how likely the teacher finds it.

    python examples/read_caches.py alm-data

It joins the examples, both sides' tokens, the alignments and the teacher's scores of one run by the examples' ids. The
store may also be a bucket; Polars needs AWS_ALLOW_HTTP=true if its endpoint is plain HTTP.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import fsspec
import polars as pl

CONTENT = 0
"""the kind of the chunks that hold text; others hold special tokens, or what only one side has"""
SIDES = ("teacher", "student")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", help="the folder or URL that `alm run --storage` wrote to")
    parser.add_argument("--alignments", default="*", help="a name from `alm list`, if the store has several")
    parser.add_argument("--rows", type=int, default=12, help="how many chunks to show")
    given = parser.parse_args()

    datasets = related(given.storage, given.alignments)
    chunks = with_logprobs(content_chunks(datasets), datasets["scores"]).collect()
    with pl.Config(fmt_str_lengths=30, fmt_table_cell_list_len=8, tbl_rows=-1, tbl_hide_dataframe_shape=True):
        print(by_cut(chunks))
        print(most_different(chunks, datasets, given.rows))


def related(storage: str, pattern: str) -> dict[str, pl.LazyFrame]:
    """The datasets of one run by role. The identity in each manifest names the datasets that it was made from."""
    names = {manifest["name"]: manifest["identity"] for manifest in manifests(f"{storage}/alignments/{pattern}")}
    if len(names) != 1:
        raise SystemExit(f"{storage}: has {len(names)} alignments {sorted(names)}: name one with --alignments")
    ((alignments, identity),) = names.items()
    tokens = {side: identity[f"{side}_tokens"] for side in SIDES}
    (teacher,) = manifests(f"{storage}/tokens/{tokens['teacher']}")
    scores = [m["name"] for m in manifests(f"{storage}/teacher_scores/*") if m["identity"]["tokens"] == teacher["name"]]
    if not scores:
        raise SystemExit(f"{storage}: has no scores of {teacher['name']}: `alm run` has yet to finish scoring")
    folders = {
        "examples": f"examples/{teacher['identity']['examples']}",
        **{side: f"tokens/{name}" for side, name in tokens.items()},
        "alignments": f"alignments/{alignments}",
        "scores": f"teacher_scores/{scores[0]}",
    }
    return {role: pl.scan_parquet(f"{storage}/{folder}/shard-*.parquet") for role, folder in folders.items()}


def manifests(folders: str) -> Iterator[dict[str, Any]]:
    """The manifests of the datasets that match a pattern: a dataset without one is not complete."""
    for file in fsspec.open_files(f"{folders}/manifest.json"):
        with file as stream:
            yield json.load(stream)


def content_chunks(datasets: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
    """One row per chunk: its example's `id`, its number `chunk`, and the bytes of `text` that it covers."""
    columns = ["teacher_tokens", "student_tokens", "byte_lengths", "kinds"]
    texts = datasets["examples"].select("id", pl.col("text").cast(pl.Binary))
    # joined before the lists become rows, whose order counts from here on
    rows = datasets["alignments"].join(texts, on="id", maintain_order="left").explode(columns)
    return numbered(rows, "chunk").select(
        *("id", "chunk", *columns),
        slice_before(pl.col("byte_lengths").cum_sum().over("id")),
        last_token=pl.col("teacher_tokens").cum_sum().over("id") - 1,
    )


def with_logprobs(chunks: pl.LazyFrame, scores: pl.LazyFrame) -> pl.LazyFrame:
    """The teacher's log-probability of each chunk of text: the sum of those of its tokens."""
    tokens = numbered(scores.select("id", "logprobs").explode("logprobs"), "last_token")
    sums = tokens.with_columns(sum=pl.col("logprobs").cast(pl.Float64).fill_nan(0).cum_sum().over("id"))
    joined = chunks.join(sums, on=["id", "last_token"], how="left", maintain_order="left")
    sum_before = pl.col("sum").shift(1).over("id").fill_null(0)
    return joined.with_columns(logprob=pl.col("sum").fill_null(0) - sum_before).filter(pl.col("kinds") == CONTENT)


def by_cut(chunks: pl.DataFrame) -> pl.DataFrame:
    """How much of the text each side cuts finer, and how well the teacher predicts it."""
    finer = pl.col("teacher_tokens") - pl.col("student_tokens")
    cut = pl.when(finer > 0).then(pl.lit("teacher finer")).when(finer < 0).then(pl.lit("student finer"))
    return (
        chunks.group_by(cut.otherwise(pl.lit("the same number")).alias("tokens"))
        .agg(
            pl.len().alias("chunks"),
            pl.col("byte_lengths").sum().alias("bytes"),
            (-pl.col("logprob").sum() / pl.col("byte_lengths").sum() / pl.lit(2.0).log()).alias("teacher's bits/byte"),
        )
        .sort("bytes", descending=True)
    )


def most_different(chunks: pl.DataFrame, datasets: dict[str, pl.LazyFrame], count: int) -> pl.DataFrame:
    """The chunks whose numbers of tokens differ most, each text once, with the texts of both sides' tokens."""
    difference = (pl.col("teacher_tokens") - pl.col("student_tokens")).abs()
    texts = chunks.group_by("text", maintain_order=True).agg(
        pl.len().alias("times"),
        pl.col("logprob").exp().mean().alias("probability"),
        pl.col("id", "chunk").first(),
        difference.first().alias("difference"),
    )
    shown = texts.sort("difference", "times", descending=True).head(count)
    for side in SIDES:
        shown = shown.join(token_texts(shown, datasets, side), on=["id", "chunk"], maintain_order="left")
    return shown.select(readable("text"), *SIDES, "times", "probability")


def token_texts(chunks: pl.DataFrame, datasets: dict[str, pl.LazyFrame], side: str) -> pl.DataFrame:
    """One row per chunk of text in `chunks`: the texts of one side's tokens, as a list."""
    ids = chunks.lazy().select(pl.col("id").unique())
    count = f"{side}_tokens"
    counts = numbered(datasets["alignments"].join(ids, on="id").select("id", count).explode(count), "chunk")
    of_tokens = counts.select("id", pl.col("chunk").repeat_by(count)).explode("chunk").drop_nulls()
    lengths = datasets[side].join(ids, on="id").select("id", "byte_lengths").explode("byte_lengths")
    tokens = numbered(lengths, "token").join(numbered(of_tokens, "token"), on=["id", "token"])
    return (
        tokens.join(chunks.lazy().select("id", "chunk", "text"), on=["id", "chunk"])
        .sort("id", "token")
        .with_columns(slice_before(pl.col("byte_lengths").cum_sum().over("id", "chunk")))
        .group_by("id", "chunk", maintain_order=True)
        .agg(readable("text").alias(side))
        .collect()
    )


def numbered(rows: pl.LazyFrame, name: str) -> pl.LazyFrame:
    """The rows with their number within each example, from 0."""
    return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("id").alias(name))


def slice_before(end: pl.Expr) -> pl.Expr:
    """The `byte_lengths` bytes of `text` before `end`."""
    return pl.col("text").bin.slice(end - pl.col("byte_lengths"), "byte_lengths")


def readable(name: str) -> pl.Expr:
    """Bytes as text, with � for parts of characters and ⏎ for line ends."""
    return pl.col(name).map_elements(lambda part: part.decode(errors="replace"), pl.String).str.replace_all("\n", "⏎")


if __name__ == "__main__":
    main()
