"""The model card parses, its snippet runs, and it contains no path of this machine and no credential."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from alm_pipeline.config import AlmConfig, FilesSource, HubSource, StudentConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.student.model_card import DistilledStudent, _metadata, _plain, card_for, write_card
from tests import tiny


@pytest.fixture(scope="module")
def finished(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A Llama that gets Gemma's tokenizer, from a source with a card."""
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    tokenizer = tiny.byte_level_tokenizer()
    tiny.save(folder, tiny.tiny_llama(len(tokenizer)), tokenizer)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    student = StudentConfig(model=str(folder), tokenizer=config.teacher)
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path_factory.mktemp("data")))
    pipeline.run()
    return pipeline


def test_the_card_parses_and_describes_the_run(finished: Pipeline) -> None:
    card = ModelCard.load(finished.student.path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert "tokenizer-transfer" in card.data.tags
    assert card.data.base_model is None  # a local folder is not a model of the hub
    manifest = finished.student.manifest()
    assert manifest is not None
    bits = manifest.results["held_out_bits_per_byte"]
    for text in (*(f"{value:.4f}" for value in bits.values()), *(cache.name for cache in finished.caches.values())):
        assert text in card.text
    tokens = finished.tokens("student").complete_manifest().counts["tokens"]
    assert f"| student tokens | {tokens:,} |" in card.text
    assert "![Training curves](curves.png)" in card.text
    assert (finished.student.path / "curves.png").is_file()
    assert "transformers 5" in card.text


def test_the_card_contains_no_path_of_this_machine(finished: Pipeline) -> None:
    text = (finished.student.path / "README.md").read_text()
    config = finished.config
    corpus = config.corpus.source.model_dump()["urls"][0]
    places = [Path(path).parent for path in (config.teacher, config.student.model, finished.root, corpus)]
    for place in (*places, Path.home(), Path.cwd()):
        assert len(place.parts) > 1
        assert str(place) not in text


def test_urls_lose_their_secrets_and_paths_their_folders() -> None:
    plain = _plain({"urls": ["/home/me/x/*.jsonl", "s3://me:word@bucket/a.txt", "file:///home/me/b.txt", "*/tests/*"]})
    assert plain == {"urls": ["*.jsonl", "s3://***@bucket/a.txt", "b.txt", "*/tests/*"]}


def test_names_of_the_hub_are_linked(config: AlmConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("alm_pipeline.training.student.model_card.model_folder", lambda _: tmp_path)
    corpus = config.corpus.model_copy(update={"source": HubSource(name="openai/gsm8k")})
    named = config.model_copy(update={"student": StudentConfig(model="google/gemma-3-270m"), "corpus": corpus})
    data = _metadata(named).to_dict()
    assert data["base_model"] == "google/gemma-3-270m"
    assert data["datasets"] == ["openai/gsm8k"]
    assert "tokenizer-transfer" not in data["tags"]
    (tmp_path / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert "license" not in _metadata(named).to_dict()


def test_the_snippet_runs(finished: Pipeline) -> None:
    published = card_for(finished.student.path, "me/student")
    assert 'name = "me/student"' in published
    (code,) = re.findall(r"```python\n(.*?)```", (finished.student.path / "README.md").read_text(), re.DOTALL)
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=finished.student.path, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr


def test_a_sources_secrets_are_removed(finished: Pipeline, tmp_path: Path) -> None:
    source = FilesSource(urls=("https://me:word@host/texts.jsonl?sig=abc",))
    corpus = finished.config.corpus.model_copy(update={"source": source})
    manifest = finished.student.manifest()
    assert manifest is not None
    student = replace(finished.student, root=str(tmp_path))
    student.path.mkdir(parents=True)
    for file in finished.student.path.iterdir():
        if file.is_file():
            (student.path / file.name).write_bytes(file.read_bytes())
    distilled = DistilledStudent(
        finished.config.model_copy(update={"corpus": corpus}), finished.caches, student, manifest.results
    )
    write_card(distilled)
    text = (student.path / "README.md").read_text()
    assert "https://***@host/texts.jsonl?sig=***" in text
    assert "word" not in text.split("## Data")[1].split("## Settings")[0]
