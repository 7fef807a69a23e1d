"""The snippets of docs/how-to/reading-caches.md run as they are printed there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.inspection.frame import chunk_frame
from alm_pipeline.pipeline import Pipeline
from storage.schemas import Kind
from tests.storage.samples import dataset, write

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "reading-caches.md"


def snippets() -> list[str]:
    """The snippet for a folder, and the one for S3."""
    return re.findall(r"<!-- tested: .*? -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", ["quick brown", "Änderung"], ids=["whole", "parts_of_characters"])
def test_the_snippet_shows_chunks_side_by_side(config: AlmConfig, text: str, tmp_path: Path) -> None:
    snippet, _ = snippets()
    pipeline = Pipeline(config, str(tmp_path / "alm-data"))
    pipeline.shard()
    for side in ("teacher", "student"):
        pipeline.tokenize(side)
    pipeline.align()
    frame = chunk_frame(pipeline.alignments.url)
    examples = pl.read_parquet(f"{pipeline.examples.url}/shard-*.parquet")
    first = examples.filter(pl.col("text").str.contains(text))["id"][0]
    example = frame.filter(frame["id"] == first)
    both = pl.col("kind") == "content"
    differing = example.filter(both, pl.col("teacher") != pl.col("student")).head(12)
    # the snippet names the default job's datasets
    for tokens, name in ((pipeline.tokens("teacher"), "smollm2"), (pipeline.tokens("student"), "bpe-16384")):
        shutil.move(tokens.url, tmp_path / "alm-data" / "tokens" / f"python-stdlib-{name}-0")
    code = snippet.replace('"def __repr__"', f'"{text}"')
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert f"shape: ({len(differing)}, 5)" in shown.stdout
    assert all(text.replace("\n", "⏎") in shown.stdout for text in differing["text"])


def test_other_programs_read_a_bucket(s3_root: str, tmp_path: Path) -> None:
    write(dataset(s3_root, Kind.TEACHER_SCORES), 2)
    _, snippet = snippets()
    code = snippet.replace("s3://bucket/prefix", s3_root)
    # `datasets` takes any URL for a hub, when it is to be offline
    environment = {**os.environ, "AWS_ALLOW_HTTP": "true", "HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"6 . +6 ", shown.stdout)  # DuckDB: six examples, six tokens
    assert "num_rows: 6" in shown.stdout
