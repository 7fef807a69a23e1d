"""The README's Polars snippet runs as it is printed there."""

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

README = Path(__file__).parent.parent / "README.md"


def test_the_snippet_shows_chunks_side_by_side(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippet = re.search(r"<!-- tested: .*? -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert snippet
    pipeline = Pipeline(config, str(tmp_path / "alm-data"))
    pipeline.shard()
    for side in ("teacher", "student"):
        pipeline.tokenize(side)  # type: ignore[arg-type]
    pipeline.align()
    frame = chunk_frame(pipeline.alignments.url)
    example = frame.filter(frame["id"] == frame["id"][0])
    both = pl.col("kind") == "content"
    differing = example.filter(both, pl.col("teacher") != pl.col("student")).head(12)
    # the snippet names the default job's datasets
    for dataset, name in ((pipeline.tokens("teacher"), "smollm2"), (pipeline.tokens("student"), "bpe-16384")):
        shutil.move(dataset.url, tmp_path / "alm-data" / "tokens" / f"python-stdlib-{name}-0")
    code = snippet[1].replace('"def __repr__"', '"quick brown"')
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert f"shape: ({len(differing)}, 5)" in shown.stdout
    assert all(text.replace("\n", "⏎") in shown.stdout for text in differing["text"])
