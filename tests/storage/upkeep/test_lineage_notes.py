"""The words about each dataset in a lineage: names instead of the hashes in identities."""

from dataclasses import replace
from pathlib import Path

from alm_pipeline.config import AlmConfig, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.provenance import provenance
from storage.upkeep.catalog import KINDS, Catalog, LineageNode
from storage.upkeep.lineage_notes import SETTINGS_OF_KIND, highlights, origin


def highlights_by_role(node: LineageNode) -> dict[str, list[str]]:
    """Return the highlights by role."""
    found = {node.role: highlights(node)}
    for made_from in node.inputs:
        found |= highlights_by_role(made_from)
    return found


def test_models_and_tokenizers_are_named(config: AlmConfig, tmp_path: Path) -> None:
    setting = TrainedTokenizer(vocab_size=320)
    config = config.model_copy(update={"student": StudentConfig(model=config.student.model, tokenizer=setting)})
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    store = Catalog.open(str(tmp_path))
    alignments = highlights_by_role(store.lineage(f"alignments/{pipeline.alignments.name}"))
    assert alignments["teacher_tokens"] == [f"tokenizer: {config.teacher}"]
    assert alignments["student_tokens"] == ["tokenizer: trained"]
    assert alignments["tokenizer"] == [
        "trained: train_bytes 16777216, vocab_size 320",
        f"special tokens of: {config.student.model}",
    ]
    scores = highlights_by_role(store.lineage(f"teacher_scores/{pipeline.scores.name}"))
    settings = "dtype float32, engine transformers, mantissa_bits 15, top_k 0"
    assert scores[""] == [f"teacher: {config.teacher}, {settings}"]
    assert scores["tokens"] == [f"tokenizer: {config.teacher}"]
    # without a role, a tokens dataset may belong to either side
    assert highlights_by_role(store.lineage(f"tokens/{pipeline.tokens('teacher').name}"))[""] == []


def test_the_commit_and_the_versions_are_shown(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.shard()
    (entry,) = Catalog.open(str(tmp_path)).entries.values()
    assert f"python {provenance(config)['versions']['python']}" in origin(entry)
    provenance_values = {"commit": "0123456789abcdef", "uncommitted_changes": True, "versions": {"torch": "2"}}
    manifest = entry.manifest
    assert manifest
    changed = replace(entry, manifest=manifest.model_copy(update={"provenance": provenance_values}))
    assert origin(changed) == "commit 0123456789ab, with uncommitted changes; torch 2"
    # a manifest without provenance
    old = replace(entry, manifest=manifest.model_copy(update={"provenance": {}}))
    assert origin(old) == ""
    assert highlights(LineageNode("", old.key, old, (), False)) == []


def test_the_settings_of_every_kind_are_known() -> None:
    assert sorted(SETTINGS_OF_KIND) == sorted(KINDS)
