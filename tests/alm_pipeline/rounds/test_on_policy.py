"""Rounds from end to end: what each is made of, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from alm_pipeline.config import (
    AlmConfig,
    ObjectiveConfig,
    RoundsConfig,
    SamplingConfig,
    SourceConfig,
    WrittenSource,
    parse_config,
)
from alm_pipeline.inspection.head import head
from alm_pipeline.inspection.summary import summarize_alignments
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.rounds.on_policy import OnPolicy
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from storage.dataset import Dataset
from storage.errors import UserError
from storage.schemas import ChunkKind
from storage.upkeep.catalog import Catalog
from storage.upkeep.verify import verify_entry


@pytest.fixture(scope="module")
def rounds(text_rounds: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> OnPolicy:
    made = OnPolicy(text_rounds, str(tmp_path_factory.mktemp("rounds") / "root"))
    made.run()
    return made


def rows_of(rounds: OnPolicy, round_: int) -> list[dict[str, Any]]:
    (dataset,) = rounds.rollouts(round_)
    shards = range(len(dataset.complete_manifest().shards))
    return [row for shard in shards for row in dataset.read_shard(shard).to_pylist()]


def test_every_student_wrote_what_the_next_one_is_trained_on(rounds: OnPolicy) -> None:
    for round_ in (1, 2):
        student = rounds.pipeline(round_).student.manifest()
        assert student
        (written,) = rounds.rollouts(round_)
        assert student.identity["inputs"]["examples"] == written.name
        assert written.identity["model"] == student.identity["model"] == rounds.model(round_ - 1).identity
        assert student.identity["objective"]["divergence"] == "reverse_binary_kl"
        splits = [row["split"] for row in rows_of(rounds, round_)]
        assert (splits.count("train"), splits.count("held_out")) == (24, 10)
    assert [row["split"] for row in rows_of(rounds, 3)] == ["held_out"] * 10
    assert len({rounds.model(student).identity for student in range(3)}) == 3


def test_all_is_verified_and_named(rounds: OnPolicy) -> None:
    entries = Catalog.open(rounds.root).entries
    assert all(verify_entry(entry, checksums=True) == [] for entry in entries.values())
    (written,) = rounds.rollouts(2)
    origins = Catalog.open(rounds.root).origins([f"examples/{written.name}"])
    made_from = {f"students/{rounds.pipeline(1).student.name}", f"examples/{rounds.start.examples.name}"}
    assert made_from <= origins
    shown = head(written.url, 2).rows
    assert {"finish_reason", "written_ids", "text"} <= set(shown[0])
    alignments = rounds.pipeline(2).alignments
    assert summarize_alignments(alignments.url)
    # names do not grow from round to round
    assert len(rounds.pipeline(2).student.name) == len(rounds.pipeline(1).student.name)


def test_a_finished_run_loads_and_writes_nothing(rounds: OnPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    before = {file: file.stat().st_mtime_ns for file in Path(rounds.root).rglob("*") if file.is_file()}
    monkeypatch.setattr(ModelReference, "load", refuse)
    again = OnPolicy(rounds.config, rounds.root)
    assert again.run() == rounds.folder.manifest()
    assert {file: file.stat().st_mtime_ns for file in Path(rounds.root).rglob("*") if file.is_file()} == before


def test_the_results_are_those_of_the_texts(rounds: OnPolicy) -> None:
    folder = rounds.folder.path
    document = json.loads((folder / "rounds.json").read_text())
    table = pq.read_table(folder / "rounds.parquet").to_pylist()
    assert document["measures"] == table
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG")
    value = {(row["measure"], row["student"]): row["value"] for row in table}
    for student in range(3):
        rows = [row for row in rows_of(rounds, student + 1) if row["split"] == "held_out"]
        written = [row["text"].encode()[row["completion_at"] :] for row in rows]
        assert value["bytes per text", student] == pytest.approx(np.mean(list(map(len, written))))
        assert value["usable", student] == len(rows) / 10
        assert value["finished", student] == np.mean([row["finish_reason"] == "stop" for row in rows])
        prompt_tokens = [
            len(
                ModelReference(rounds.config.student.model).tokenizer.fast.encode(
                    row["text"].encode()[: row["completion_at"]].decode()
                )
            )
            for row in rows
        ]
        tokens = [len(row["written_ids"]) - before for row, before in zip(rows, prompt_tokens, strict=True)]
        assert value["tokens per text", student] == np.mean(tokens)


def test_reverse_kl_is_the_mean_log_ratio_of_the_written_words(rounds: OnPolicy) -> None:
    """By the definition: every word's likelihood from plain softmaxes over whole sequences, in float64."""
    run = Pipeline(rounds._config_on(1), rounds.root)
    value = {
        (row["measure"], row["student"]): row["value"]
        for row in json.loads((rounds.folder.path / "rounds.json").read_text())["measures"]
    }
    ratios: list[float] = []
    models = {"teacher": run.teacher, "student": rounds.model(0)}
    for shard in range(len(run.examples.complete_manifest().shards)):
        splits = run.examples.read_shard(shard)["split"].to_pylist()
        aligned = run.alignments.read_shard(shard).to_pylist()
        tokens = {side: run.tokens(side).read_shard(shard)["token_ids"].to_pylist() for side in models}
        for row, split in enumerate(splits):
            if split == "held_out":
                numbers = {side: _sums(models[side], tokens[side][row]) for side in models}
                ratios += _word_ratios(aligned[row], numbers)
    assert np.mean(ratios) == pytest.approx(value["reverse KL per word", 0], abs=2e-4)


def _sums(model: ModelReference, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each token, and of a boundary after it; [tokens] each."""
    with torch.no_grad():
        logits = model.load("float32")(torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    boundary = torch.logsumexp(logprobs[:, torch.from_numpy(model.tokenizer.boundary_ids)], -1)
    own = torch.cat([torch.zeros(1), logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]])
    return own.numpy(), boundary.numpy()


def _word_ratios(aligned: dict[str, Any], numbers: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """log q - log p of each word of the completion: from anchor to anchor, and the end of the text.

    The first word begins where the completion does, and the last ends with the text, if that was cut.
    """
    ends = {side: np.cumsum(aligned[f"{side}_tokens"]) for side in numbers}
    kinds, anchors, learned = (np.array(aligned[name]) for name in ("kinds", "ends", "assistant"))
    found, first = [], None
    for place in np.flatnonzero(learned).tolist():
        assert kinds[place] != ChunkKind.UNPAIRED
        first = place if first is None else first
        is_paired, is_anchor = kinds[place] == ChunkKind.PAIRED, anchors[place] == 3
        if not (is_paired or is_anchor or place + 1 == len(kinds)):
            continue
        values = []
        for side, (own, boundary) in numbers.items():
            start, stop = ends[side][first - 1], ends[side][place]
            value = own[start:stop].sum() + (0 if is_paired else boundary[stop - 1])
            values.append(min(0.0, value - (boundary[start - 1] if anchors[first - 1] == 3 else 0)))
        found.append(values[1] - values[0])
        first = None
    return found


def test_the_page_of_a_student_shows_its_rounds(rounds: OnPolicy) -> None:
    document = json.loads((rounds.folder.path / "rounds.json").read_text())
    kl = next(row for row in document["measures"] if (row["measure"], row["student"]) == ("KL per word", 1))
    for student, page in ((1, rounds.pipeline(1).student.path), (0, rounds.start.student.path)):
        html = (page / "runs" / "report.html").read_text()
        assert "On-policy rounds" in html
        assert f"this page is about student {student}." in html
        assert f"{kl['value']:.4g} [{kl['low']:.4g}, {kl['high']:.4g}]" in html
        assert html.count("<polyline") == len({row["measure"] for row in document["measures"]})


def test_lambda_mixes_the_corpus_in(text_rounds: AlmConfig, tmp_path: Path) -> None:
    assert text_rounds.rounds
    config = text_rounds.model_copy(update={"rounds": text_rounds.rounds.model_copy(update={"mix": 0.25, "count": 1})})
    made = OnPolicy(config, str(tmp_path / "root"))
    made.run()
    sources = made.round_config(1).corpus
    assert isinstance(sources, tuple)
    assert [(source.name, source.weight) for source in sources] == [("texts-round-1", 0.25), ("texts", 0.75)]
    student = made.pipeline(1).student.manifest()
    assert student
    assert student.identity["shares"] == [["texts-round-1", 1], ["texts", 3]]
    # the corpus's own datasets are those that the first student was made from
    assert student.identity["inputs"]["texts: scores"] == made.start.scores.name


def test_a_mixture_has_prompts_of_every_source(text_rounds: AlmConfig, talk_rounds: AlmConfig, tmp_path: Path) -> None:
    assert text_rounds.rounds
    corpora = [
        SourceConfig.model_validate({**config.texts.model_dump(), "weight": weight})
        for config, weight in ((text_rounds, 1.0), (talk_rounds, 3.0))
    ]
    rounds = text_rounds.rounds.model_copy(update={"count": 1, "start": "model"})
    config = text_rounds.model_copy(update={"corpus": tuple(corpora), "rounds": rounds})
    made = OnPolicy(config, str(tmp_path / "root"))
    results = made.run().results
    trained = [
        sum(
            split == "train"
            for shard in range(len(dataset.complete_manifest().shards))
            for split in dataset.read_shard(shard, ["split"])["split"].to_pylist()
        )
        for dataset in made.rollouts(1)
    ]
    assert trained[0] == 6
    assert 12 <= trained[1] <= 18  # an answer that the template would not write so is left out
    assert {row["domain"] for row in results["measures"]} == {"written, texts", "written, talks"}
    # it began with the model, so no student was trained on the corpus
    assert results["students"] == [made.pipeline(1).student.name]


def test_conversations_are_learned_to_their_end(talk_rounds: AlmConfig, tmp_path: Path) -> None:
    made = OnPolicy(talk_rounds, str(tmp_path / "root"))
    made.prepare()
    made.write(1)
    run = made.pipeline(1)
    run.cache()
    finished = [row["finish_reason"] == "stop" for row in rows_of(made, 1)]
    kinds: list[bool] = []
    for shard in range(len(run.alignments.complete_manifest().shards)):
        for row in run.alignments.read_shard(shard).to_pylist():
            learned = [kind for kind, is_learned in zip(row["kinds"], row["assistant"], strict=True) if is_learned]
            kinds.append(bool(learned) and learned[-1] == ChunkKind.PAIRED)
    assert kinds == finished
    assert any(finished)


def test_a_shard_of_which_nothing_was_usable_is_trained_on_like_the_others(rounds: OnPolicy, tmp_path: Path) -> None:
    (written,) = rounds.rollouts(1)
    other = Dataset(str(tmp_path / "root"), written.kind, written.label, written.identity)
    records = written.complete_manifest().shards
    table = written.read_shard(0)
    for shard, rows in enumerate([table, table.slice(0, 0)]):
        other.write_shard(shard, {name: rows[name] for name in rows.column_names}, records[0].counts)
    other.finish(2)
    corpus = rounds.config.texts.model_copy(update={"source": WrittenSource(examples=other.url)})
    run = Pipeline(rounds.config.model_copy(update={"corpus": corpus, "rounds": None}), other.root)
    run.cache()
    read = [read_examples(run.caches, shard, "train", rounds.config.objective) for shard in range(2)]
    assert read[0].num_rows > read[1].num_rows == 0
    assert read[0].schema.equals(read[1].schema)
    batch = next(iter(BatchStream(run.caches, rounds.config.objective, rounds.config.train)))
    assert len(batch["last_token_C"])


@pytest.mark.bad_input
def test_a_configuration_without_rounds_is_told_what_to_add(text_rounds: AlmConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rounds: is not set.*rounds: \{count: 3\}"):
        OnPolicy(text_rounds.model_copy(update={"rounds": None}), str(tmp_path))


@pytest.mark.bad_input
def test_rounds_from_the_model_need_its_tokenizer(text_rounds: AlmConfig) -> None:
    content = text_rounds.model_dump(mode="json")
    content["student"]["tokenizer"] = "bytes"
    content["rounds"] = RoundsConfig(start="model").model_dump(mode="json")
    with pytest.raises(UserError, match=r"rounds\.start: with `model`"):
        parse_config(content)


@pytest.mark.bad_input
@pytest.mark.parametrize("start", ["student", "model"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": SamplingConfig(max_tokens=512)}, r"rounds\.sampling\.max_tokens: 512 tokens leave no room"),
        (
            {"objective": ObjectiveConfig(terms={"bpm": 1.0})},
            r"rounds\.objective: score\.top_k: is 0, and",
        ),
    ],
    ids=["context", "objective"],
)
def test_what_would_stop_a_round_is_known_before_the_first_training(
    text_rounds: AlmConfig, tmp_path: Path, start: str, changes: dict[str, object], message: str
) -> None:
    assert text_rounds.rounds
    rounds = text_rounds.rounds.model_copy(update={**changes, "start": start})
    with pytest.raises(UserError, match=message):
        OnPolicy(text_rounds.model_copy(update={"rounds": rounds}), str(tmp_path / "root")).run()
    assert not (tmp_path / "root").exists()


@pytest.mark.bad_input
def test_rounds_without_steps_are_refused(text_rounds: AlmConfig, tmp_path: Path) -> None:
    assert text_rounds.rounds
    train = text_rounds.train.model_copy(update={"steps": 0, "warmup_steps": 0})
    rounds = text_rounds.rounds.model_copy(update={"steps": None})
    with pytest.raises(UserError, match=r"rounds\.steps: is not set, and train\.steps is 0"):
        OnPolicy(text_rounds.model_copy(update={"train": train, "rounds": rounds}), str(tmp_path / "root")).run()


@pytest.mark.bad_input
def test_written_examples_are_taken_only_as_such(rounds: OnPolicy, tmp_path: Path) -> None:
    (written,) = rounds.rollouts(1)
    source = WrittenSource(examples=written.url)
    corpus = rounds.config.texts.model_copy(update={"source": source, "name": "again"})
    config = rounds.config.model_copy(update={"corpus": corpus, "rounds": None})
    assert Pipeline(config, rounds.root).examples.name == written.name
    with pytest.raises(UserError, match="is in another storage than this run"):
        _ = Pipeline(config, str(tmp_path)).examples
    for wrong in (rounds.start.examples.url, rounds.start.tokens("teacher").url):
        other = corpus.model_copy(update={"source": WrittenSource(examples=wrong)})
        with pytest.raises(UserError, match="holds no examples that a model wrote"):
            _ = Pipeline(config.model_copy(update={"corpus": other}), rounds.root).examples
