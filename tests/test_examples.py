"""The examples run as they are, on tiny models: from the command line, from the environment, in a bucket."""

import ast
import io
import json
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
import yaml
from PIL import Image

from alm_pipeline.config import AlmConfig
from alm_pipeline.inspection.frame import chunk_frame

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb"))


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run a script with these arguments, in this process, which has torch already."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def store(gemma_folder: str, llama_folder: str, corpus_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `alm-data` that `own_models.py` wrote, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("own"), io.StringIO()
    options = ["--storage", str(folder / "alm-data"), "--steps", "4", "--batch-tokens", "256"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("ALM_CACHE", str(folder / "cache"))
        run(patch, "own_models.py", gemma_folder, llama_folder, corpus_url, *options)
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def test_own_models_plans_runs_and_prints_results(store: Path) -> None:
    printed = (store / "printed.txt").read_text()
    assert re.search(r"^tokens: teacher ~[\d,]+, student ~[\d,]+$", printed, re.MULTILINE)
    (manifest,) = store.glob("alm-data/students/*/manifest.json")
    bits = json.loads(manifest.read_text())["results"]["held_out_bits_per_byte"]
    assert f"has {bits['student_after']:.3f} bits per byte, {bits['student_before']:.3f} before" in printed
    assert (manifest.parent / "model.safetensors").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "wrong"), [("own_models.py", 2), ("bucket.py", 0)])
def test_what_is_wrong_is_said_in_a_sentence(
    name: str, wrong: int, config: AlmConfig, gemma_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [gemma_folder, gemma_folder, "corpus.jsonl"] if name == "own_models.py" else ["mine.yaml", "root"]
    given[wrong] = str(tmp_path / "missing.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: .*missing\.jsonl") as error:
        run(monkeypatch, name, *given)
    assert isinstance(error.value.code, str)  # printed, with exit status 1
    assert not (tmp_path / "alm-data").exists()


def test_the_caches_are_read_with_polars_alone(store: Path) -> None:
    script = EXAMPLES / "read_caches.py"
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['alm_pipeline', 'storage', 'torch'])); "
        f"sys.argv = ['read_caches.py', 'alm-data']; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=store, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "teacher's bits/byte" in done.stdout
    assert re.search(r"student +┆ times ┆ probability", done.stdout)


def test_the_numbers_read_from_the_caches_are_those_of_the_run(store: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / "read_caches.py"))
    datasets = names["related"](str(store / "alm-data"), "*")
    chunks = names["with_logprobs"](names["content_chunks"](datasets), datasets["scores"]).collect()
    (alignments,) = store.glob("alm-data/alignments/*")
    shards = sorted(alignments.glob("shard-*.parquet"))
    expected = pl.concat([chunk_frame(str(alignments), shard) for shard in range(len(shards))])
    content = expected.filter(pl.col("kind") == "content")
    assert chunks["id"].to_list() == content["id"].to_list()
    assert [text.decode(errors="replace") for text in chunks["text"]] == content["text"].to_list()
    for side in ("teacher", "student"):
        assert chunks[f"{side}_tokens"].to_list() == content[side].list.len().to_list()
        texts = names["token_texts"](chunks, datasets, side)
        in_order = chunks.join(texts, on=["id", "chunk"], maintain_order="left")[side].to_list()
        assert in_order == [[text.replace("\n", "⏎") for text in tokens] for tokens in content[side]]

    # each token's score is in one chunk: those of the text are all but the special tokens' scores
    logprobs = datasets["scores"].select(pl.col("logprobs").explode().drop_nans().sum()).collect().item()
    special = expected.filter(pl.col("kind") != "content")["teacher"].list.len().sum()
    assert special == expected["id"].n_unique()  # Gemma's <bos>, which has no prediction
    assert chunks["logprob"].sum() == pytest.approx(logprobs, rel=1e-4)


@pytest.mark.bad_input
def test_a_store_without_alignments_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=rf"{tmp_path}: has 0 alignments"):
        run(monkeypatch, "read_caches.py", str(tmp_path))


def test_a_bucket_holds_the_texts_the_caches_and_the_student(
    config: AlmConfig,
    s3_root: str,
    corpus_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("s3").put(corpus_url, f"{s3_root}/texts/documents.jsonl")
    content = config.model_dump(mode="json")
    content["corpus"]["source"]["urls"] = [f"{s3_root}/texts/*.jsonl"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))

    run(monkeypatch, "bucket.py", str(file), f"{s3_root}/out", "--only-cache")
    cached = capsys.readouterr().out
    assert "teacher_scores/" in cached
    assert "students/" not in cached
    run(monkeypatch, "bucket.py", str(file), f"{s3_root}/out")
    printed = capsys.readouterr().out
    copied = Path(re.search(r"copied to (.*)", printed)[1])
    assert set(cached.splitlines()) < set(printed.splitlines())  # nothing of the cache was made again
    (stored,) = fsspec.filesystem("s3").glob(f"{s3_root}/out/students/*/model.safetensors")
    assert (copied / "model.safetensors").read_bytes() == fsspec.filesystem("s3").cat(stored)


def cells(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(code: str, names: dict[str, Any]) -> Any:
    """Execute a cell as a kernel does: the value of a last expression is what it shows."""
    *body, last = ast.parse(code).body
    shows = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if shows else [*body, last], []), "cell", "exec"), names)
    shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None
    return shown.copy() if isinstance(shown, Image.Image) else shown  # a copy is read, as it is where it is shown


def test_the_notebook_ends_with_a_student(
    gemma_folder: str,
    llama_folder: str,
    corpus_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    given = {"TEACHER": gemma_folder, "STUDENT": llama_folder, "CORPUS": corpus_url, "STEPS": "2"}
    for name, value in {**given, "STORAGE": str(tmp_path / "root")}.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    notebook = json.loads((EXAMPLES / "first_student.ipynb").read_text())
    shown = [execute(code, names) for code in cells(notebook)]
    plan, bits, chunks, picture = (value for value in shown if value is not None)
    assert plan["stage"].to_list()[-1] == "train"
    assert set(bits) == {"teacher", "student_before", "student_after"}
    assert (chunks["teacher"].list.len() > 0).all()
    assert isinstance(picture, Image.Image)
    assert picture.width > 500
    printed = capsys.readouterr().out
    assert all(f"\n{title}: The tokenizer" in printed for title in ("teacher", "before", "after"))
    assert list(tmp_path.glob("root/students/*/manifest.json"))


def test_the_notebook_stores_no_outputs() -> None:
    notebook = json.loads((EXAMPLES / "first_student.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []


def test_every_example_is_listed_with_its_command() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert sorted(set(re.findall(r"^\| \[([\w.]+)\]\(\1\)", page, re.MULTILINE))) == FILES
    commands = re.findall(r"`(?:python|jupyter notebook) examples/([\w.]+)", page)
    assert sorted(commands) == FILES


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_every_script_prints_its_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, name, "--help")
    assert end.value.code == 0
    assert f"python examples/{name}" in capsys.readouterr().out
