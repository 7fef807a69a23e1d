"""The flows on finished models: what they return, write and show."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import Artifact
from prefect.exceptions import ParameterTypeError
from typer.testing import CliRunner

from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, ScoreConfig
from alm_pipeline.ensemble.config import MemberConfig
from alm_pipeline.ensemble.loading import load, load_ensemble
from alm_pipeline.ensemble.logprobs import text_bits_per_byte, text_logprobs
from alm_pipeline.hypernetwork.settings import parse_hypernet_config
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app
from flows.model_flows import audit, ensemble, evaluate, tokenizers, transfer
from flows.models.hypernet import hypernet
from storage.errors import UserError

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "texts.jsonl"
    rows = [{"question": f"How many are {k} and 2?", "answer": f"That makes {k + 2}."} for k in range(6)]
    rows = [{**row, "topic": "odd" if k % 2 else "even"} for k, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


TEMPLATE = "{question} {answer}"


def bits_of(models: list[str], texts: str) -> tuple[float, ...]:
    source = FilesSource(urls=(texts,))
    corpus = CorpusConfig(name="texts", source=source, text=TEMPLATE)
    return compare_models(models, [corpus], ScoreConfig(dtype="float32")).bits_per_byte


def test_models_are_measured_on_texts_and_tasks(
    llama_folder: str, gemma_folder: str, texts: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": texts}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["{{answer}}", "No."],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "sums.yaml").write_text(json.dumps(task))
    results = evaluate([llama_folder], texts, TEMPLATE, tasks=["sums"], task_folder=str(tmp_path))
    assert set(results[llama_folder]) == {"bits per byte", "sums acc"}
    assert results[llama_folder]["sums acc"] in [k / 6 for k in range(7)]

    results = evaluate([llama_folder, gemma_folder], texts, TEMPLATE)
    measured = [results[name]["bits per byte"] for name in (llama_folder, gemma_folder)]
    assert measured == pytest.approx(bits_of([llama_folder, gemma_folder], texts))
    rows = json.loads(shown("alm-evaluation")[0].data)
    assert [row["model"] for row in rows] == [llama_folder, gemma_folder]
    assert rows[0]["bits per byte"] == f"{measured[0]:.4f}"

    other = shutil.copy(texts, tmp_path / "other.jsonl")
    grouped = evaluate([llama_folder], [f"one={texts}", f"two={other}"], TEMPLATE, by="topic")
    assert list(grouped[llama_folder]) == [
        "bits per byte",
        "bits per byte, one",
        "bits per byte, two",
        "bits per byte, one, even",
        "bits per byte, one, odd",
        "bits per byte, two, even",
        "bits per byte, two, odd",
    ]
    cells = json.loads(shown("alm-bits-per-byte")[0].data)
    assert [cell["texts"] for cell in cells] == ["12", "6", "6", "3", "3", "3", "3"]
    assert float(cells[0]["low"]) < float(cells[0]["bits_per_byte"]) < float(cells[0]["high"])


def test_nothing_to_measure_and_nothing_to_combine_are_refused(llama_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        evaluate([llama_folder])
    with pytest.raises(ParameterTypeError, match="examples"):
        evaluate([llama_folder], "texts.jsonl", examples=0)
    with pytest.raises(UserError, match="not a local folder"):
        ensemble([MemberConfig(model=llama_folder), MemberConfig(model=str(tmp_path / "none"))], str(tmp_path / "both"))
    assert not (tmp_path / "both").exists()


def test_a_model_is_transferred_and_compared(
    llama_folder: str, gemma_folder: str, texts: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    folder = str(tmp_path / "moved")
    transferred = transfer(llama_folder, gemma_folder, folder, corpus=texts, text=TEMPLATE)
    assert load(folder)[1].get_vocab() == load(gemma_folder)[1].get_vocab()
    assert set(transferred["bits_per_byte"]) == {llama_folder, folder}
    assert sum(transferred["new_embeddings"].values()) == len(load(gemma_folder)[1])
    counts = {row["new embeddings"]: row["tokens"] for row in json.loads(shown("alm-transfer")[0].data)}
    assert counts == {how: f"{count:,}" for how, count in transferred["new_embeddings"].items()}


def test_a_hypernetwork_is_trained_and_gives_a_tokenizer(
    config: AlmConfig, gemma_folder: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    chosen = parse_hypernet_config(
        {
            "corpus": config.corpus.model_dump(mode="json"),
            "model": config.student.model,
            "objective": {"terms": {"alm": 1, "sft": 1}},
            "sampler": {"min_tokens": 300, "max_tokens": 400, "candidates": 400},
            "network": {"rank": 2},
            "train": {"steps": 2, "texts": 2},
            "evaluation": {"trained": {"vocab_size": 420}, "max_examples": 2},
        }
    )
    result = hypernet(chosen, str(tmp_path / "data"))
    (bits,) = result["held_out_bits_per_byte_by_tokenizer"].values()
    assert set(bits) == {"fvt", "focus", "hypernetwork"}
    assert set(result["seconds"]) == {"examples", "scores", "substrings", "train"}
    (row,) = json.loads(str(shown("alm-hypernet")[0].data))
    assert row["hypernetwork"] == f"{bits['hypernetwork']:.4f}"
    folder, setting = str(tmp_path / "moved"), {"hypernetwork": result["hypernetwork"]}
    moved = transfer(config.student.model, gemma_folder, folder, initialization="hypernetwork", **setting)
    assert moved["new_embeddings"]["predicted"] > 20
    again = hypernet(chosen, str(tmp_path / "data"))
    assert again["hypernetwork"] == result["hypernetwork"]


def test_an_ensemble_is_written_and_measured_beside_its_members(
    llama_folder: str, gemma_folder: str, texts: str, tmp_path: Path
) -> None:
    members = [MemberConfig(model=llama_folder), MemberConfig(model=gemma_folder, weight=2.0)]
    settings: dict[str, Any] = {"corpus": texts, "text": TEMPLATE}
    for _ in range(2):  # a second run finds its own file
        results = ensemble(members, str(tmp_path / "both"), **settings)
    file = str(tmp_path / "both" / "ensemble.yaml")
    assert list(results) == [file, llama_folder, gemma_folder]
    written = load_ensemble(file)
    lines = [f"{row['question']} {row['answer']}" for row in map(json.loads, Path(texts).read_text().splitlines())]
    assert results[file]["bits per byte"] == pytest.approx(text_bits_per_byte(text_logprobs(written, lines)), rel=1e-5)
    assert min(results[llama_folder].values()) != min(results[gemma_folder].values())
    with pytest.raises(UserError, match="exists already"):
        ensemble(members[:1], str(tmp_path / "both"))


def test_models_are_compared_from_the_command_line(llama_folder: str, gemma_folder: str, texts: str) -> None:
    result = CliRunner().invoke(app, ["compare", llama_folder, gemma_folder, "--corpus", texts, "--text", TEMPLATE])
    assert result.exit_code == 0, result.output
    assert "6 texts" in result.stdout
    for bits in bits_of([llama_folder, gemma_folder], texts):
        assert f"{bits:.4f}" in result.stdout


def test_models_are_compared_by_group_from_the_command_line(
    llama_folder: str, gemma_folder: str, texts: str, tmp_path: Path
) -> None:
    other = shutil.copy(texts, tmp_path / "other.jsonl")
    command = ["compare", llama_folder, gemma_folder, "--corpus", f"one={texts}", "--corpus", f"two={other}"]
    command += ["--text", TEMPLATE, "--by", "topic"]
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [(row["corpus"], row["group"], row["texts"]) for row in document["cells"][::2]] == [
        ("one", None, 6),
        ("two", None, 6),
        ("one", "even", 3),
        ("one", "odd", 3),
        ("two", "even", 3),
        ("two", "odd", 3),
    ]
    second = document["cells"][1]
    assert second["difference"] == pytest.approx(second["bits_per_byte"] - document["cells"][0]["bits_per_byte"])
    printed = CliRunner().invoke(app, command).stdout
    for row in [*document["models"], *document["cells"]]:
        assert f"{row['bits_per_byte']:.4f}" in printed


def test_tokenizers_are_compared(
    llama_folder: str, gemma_folder: str, texts: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    settings: dict[str, Any] = {"text": TEMPLATE, "by": "topic", "model": llama_folder}
    tables = tokenizers([gemma_folder], f"sums={texts}", folder=str(tmp_path / "tables"), **settings)
    assert [(row["group"], row["tokenizer"]) for row in tables["lengths"]] == [
        (group, name) for group in (None, "even", "odd") for name in (llama_folder, gemma_folder)
    ]
    assert (tmp_path / "tables" / "uses.parquet").is_file()
    artifacts = {artifact.key: json.loads(artifact.data) for artifact in shown("alm-tokenizers")}
    assert set(artifacts) == {f"alm-tokenizers-{name}" for name in ("lengths", "overlap", "chunks", "transfer")}
    assert artifacts["alm-tokenizers-lengths"][0]["text_tokens"] == str(tables["lengths"][0]["text_tokens"])
    assert int(artifacts["alm-tokenizers-transfer"][1]["rows"]) == len(load(gemma_folder)[1])


def test_tokenizers_are_compared_from_the_command_line(
    llama_folder: str, gemma_folder: str, texts: str, tmp_path: Path
) -> None:
    command = ["tokenizers", llama_folder, gemma_folder, "--corpus", texts, "--text", TEMPLATE, "--by", "topic"]
    files = ["--out", str(tmp_path / "tables"), "--picture", str(tmp_path / "lengths.png")]
    document = json.loads(CliRunner().invoke(app, [*command, *files, "--json"]).stdout)
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "tables").iterdir())) == len(document) + 1
    printed = CliRunner().invoke(app, command).stdout
    for row in document["lengths"]:
        assert f"{row['bytes_per_token']:.2f}" in printed
    assert CliRunner().invoke(app, [*command, "--picture", "lengths.svg"]).exit_code == 1


def test_the_targets_of_caches_are_audited(
    config: AlmConfig, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    pipeline = Pipeline(config, str(tmp_path / "store"))
    pipeline.cache()
    document = audit(pipeline.alignments.url, examples=1, tokens=12, budget=5, largest=2)
    assert document["tokens"] == {"teacher": 12}
    page, table = shown("alm-audit")
    assert (page.key, table.key) == ("alm-audit-report", "alm-audit")
    rows = json.loads(str(table.data))
    assert (rows[0]["side"], rows[0]["by"], rows[0]["group"]) == ("teacher", "all chunks", "all")
    assert "data:image/png;base64," in str(page.data)
    assert "Largest distances" in str(page.data)
