"""What manifests record about the run that wrote them."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, FilesSource, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.provenance import provenance, stored_config
from storage.dataset import Manifest
from storage.errors import UserError
from storage.folders import FolderManifest


def test_every_manifest_records_the_run(config: AlmConfig, tmp_path: Path) -> None:
    student = StudentConfig(model=config.student.model, tokenizer=TrainedTokenizer(vocab_size=320))
    config = config.model_copy(update={"student": student})
    pipeline = Pipeline(config, str(tmp_path))
    made = pipeline.run()
    trained = pipeline.train_tokenizer()
    assert trained
    manifests: tuple[FolderManifest | Manifest, ...] = (
        made,
        trained,
        *(cache.complete_manifest() for cache in pipeline.caches.values()),
    )
    for manifest in manifests:
        assert manifest.provenance == provenance(config)


def test_the_configuration_comes_back(config: AlmConfig) -> None:
    assert stored_config(provenance(config), "here") == config


def test_versions_and_the_commit_are_recorded(config: AlmConfig) -> None:
    recorded = provenance(config)
    assert recorded["versions"]["torch"] == metadata.version("torch")
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert recorded.get("commit", "") == head.stdout.strip()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://me:pass@host/texts.jsonl", "https://***@host/texts.jsonl"),
        ("https://host/t.jsonl?v=2&X-Amz-Signature=abc&x=1", "https://host/t.jsonl?v=***&X-Amz-Signature=***&x=***"),
    ],
)
def test_secrets_are_removed(config: AlmConfig, url: str, kept: str) -> None:
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(url,))})
    recorded = provenance(config.model_copy(update={"corpus": corpus}))
    assert recorded["configuration"]["corpus"]["source"]["urls"] == [kept]
    with pytest.raises(UserError, match=r"here: its configuration had a password or signature.*--config FILE"):
        stored_config(recorded, "here")


def test_a_manifest_without_a_configuration_is_reported() -> None:
    with pytest.raises(UserError, match="here: no manifest records the configuration"):
        stored_config({}, "here")
