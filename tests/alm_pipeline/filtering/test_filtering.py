"""Duplicates and contaminated documents: what is found, the first stays, and what comes later moves nothing."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.config import AlmConfig, DeduplicationConfig, FilesSource, SourceConfig, parse_config
from alm_pipeline.corpus.contamination import words
from alm_pipeline.filtering import signatures as stage
from alm_pipeline.filtering.decisions import CONTAMINATED, EXACT, NEAR, first_of
from alm_pipeline.filtering.minhash import Bands, band_hashes
from alm_pipeline.pipeline import Pipeline
from storage.dataset import Dataset
from storage.errors import UserError

QUESTION = "A baker makes 12 loaves an hour for three hours and sells them at 2 dollars each. How much does he earn?"


def texts_file(path: Path, texts: Sequence[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def prose(seed: int, count: int = 80) -> str:
    """Return words that no other seed has."""
    generator = random.Random(seed)
    return " ".join(f"w{seed}x{generator.randrange(10**6)}" for _ in range(count))


def with_texts(config: AlmConfig, file: str, **settings: Any) -> AlmConfig:
    content = {**config.texts.model_dump(), "source": FilesSource(urls=(file,)), **settings}
    return config.model_copy(update={"corpus": type(config.texts).model_validate(content)})


def stored_ids(examples: Dataset) -> list[str]:
    shards = range(len(examples.complete_manifest().shards))
    return [id_ for shard in shards for id_ in examples.read_shard(shard, ["id"])["id"].to_pylist()]


def documents(examples: Dataset) -> list[int]:
    """Return the row numbers of the documents that the examples are of."""
    return sorted({int(id_.partition("#")[0].rpartition(":")[2]) for id_ in stored_ids(examples)})


# hashes


def jaccard(one: str, other: str, run: int) -> float:
    sets = []
    for text in (one, other):
        found = words(text)
        sets.append({tuple(found[k : k + run]) for k in range(len(found) - run + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text: str, share: float, seed: int) -> str:
    generator = random.Random(seed)
    return " ".join(f"new{seed}" if generator.random() < share else word for word in text.split())


def test_what_is_similar_shares_a_band_and_what_is_not_does_not() -> None:
    """By the Jaccard similarity itself, computed from the sets: at the threshold about half of the pairs are found."""
    near, far, middle = [], [], []
    for seed in range(120):
        text = prose(seed, 200)
        other = changed(text, (0.0, 0.005, 0.02, 0.04, 0.1, 0.3)[seed % 6], seed)
        similarity, (one, two) = jaccard(text, other, 5), band_hashes([text, other], 0.8, 5)
        found = bool(set(one.tolist()) & set(two.tolist()))
        (near if similarity > 0.93 else far if similarity < 0.5 else middle).append(found)
    assert all(near)
    assert not any(far)
    assert len(near) > 30
    assert len(far) > 30
    assert 0.1 < np.mean(middle) < 0.9


@given(similarity=st.floats(0.5, 0.95))
def test_the_steepest_rise_is_at_the_similarity(similarity: float) -> None:
    count, size = Bands.of(similarity)
    assert count * size <= 128
    assert (1 / count) ** (1 / size) == pytest.approx(similarity, abs=0.05)


def test_no_band_of_one_number_is_one_of_another() -> None:
    assert len(set(np.concatenate(band_hashes([prose(k) for k in range(50)], 0.8, 5)).tolist())) == 50 * 11


def test_a_text_without_words_repeats_nothing() -> None:
    assert [len(hashes) for hashes in band_hashes(["?!", "", "one two"], 0.8, 5)] == [0, 0, 11]


hash_lists = st.lists(st.lists(st.integers(0, 20), max_size=4), max_size=30)


@settings(deadline=None)
@given(lists=hash_lists)
def test_the_first_is_the_earliest_that_shares_a_hash(lists: list[list[int]]) -> None:
    expected = [
        next(other for other in range(number + 1) if other == number or set(lists[other]) & set(hashes))
        for number, hashes in enumerate(lists)
    ]
    flat = np.array([value for hashes in lists for value in hashes], np.uint64)
    of = np.repeat(np.arange(len(lists)), list(map(len, lists)))
    assert first_of(flat, of, len(lists)).tolist() == expected


@settings(deadline=None)
@given(lists=hash_lists, at=st.integers(0, 30))
def test_what_comes_later_decides_nothing(lists: list[list[int]], at: int) -> None:
    found = []
    for part in (lists[:at], lists):
        flat = np.array([value for hashes in part for value in hashes], np.uint64)
        found.append(first_of(flat, np.repeat(np.arange(len(part)), list(map(len, part))), len(part)).tolist())
    assert found[1][: len(lists[:at])] == found[0]


# a corpus


@pytest.fixture
def texts() -> list[str]:
    """Twenty documents: 5 repeats 1 exactly, 12 nearly repeats 3, 15 contains the question."""
    found = [prose(k) for k in range(20)]
    found[5] = f"  {found[1]}\n"
    found[12] = found[3] + " and one more word"
    found[15] = f"{found[15]} {QUESTION.upper()} {prose(99)}"
    return found


@pytest.fixture
def filtered(config: AlmConfig, texts: list[str], tmp_path: Path) -> AlmConfig:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": QUESTION, "answer": "72"}))
    asked = {"questions": [str(questions)], "text": "{question}"}
    return with_texts(config, texts_file(tmp_path / "texts.jsonl", texts), deduplicate={}, decontaminate=asked)


def test_documents_are_left_out_and_counted_by_reason(filtered: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(filtered, str(tmp_path / "store"))
    manifest = pipeline.shard()
    assert manifest.dropped == {EXACT: 1, NEAR: 1, CONTAMINATED: 1}
    assert documents(pipeline.examples) == [k for k in range(20) if k not in (5, 12, 15)]
    assert pipeline.decisions
    rows = pipeline.decisions.read_shard(0).to_pylist()
    assert [(row["reason"], row["repeats"].rpartition(":")[2]) for row in rows if row["reason"]] == [
        (EXACT, "1"),
        (NEAR, "3"),
        (CONTAMINATED, "0"),
    ]


def test_sets_of_one_file_name_do_not_hide_each_other(config: AlmConfig, texts: list[str], tmp_path: Path) -> None:
    """`gsm8k/test.jsonl` and `mmlu/test.jsonl`: the questions of the first one were looked for no more."""
    texts[17] = f"{texts[17]} {prose(77)}"
    sets = []
    for name, question in (("one", QUESTION), ("two", prose(77))):
        (tmp_path / name).mkdir()
        sets.append(str(tmp_path / name / "test.jsonl"))
        Path(sets[-1]).write_text(json.dumps({"question": question}))
    for asked in (sets, sets[::-1]):
        settings = {"questions": asked, "text": "{question}"}
        chosen = with_texts(config, texts_file(tmp_path / "texts.jsonl", texts), decontaminate=settings)
        pipeline = Pipeline(chosen, str(tmp_path / "store"))
        assert pipeline.shard().dropped == {CONTAMINATED: 2}
        assert documents(pipeline.examples) == [k for k in range(20) if k not in (15, 17)]


def test_everything_is_kept_by_default_under_the_same_name(filtered: AlmConfig, tmp_path: Path) -> None:
    plain = filtered.texts.model_copy(update={"deduplicate": None, "decontaminate": None})
    pipeline = Pipeline(filtered.model_copy(update={"corpus": plain}), str(tmp_path / "store"))
    assert pipeline.decisions is None
    assert not {"deduplicate", "decontaminate", "decisions"} & set(
        json.dumps(dict(pipeline.examples.identity)).split('"')
    )
    pipeline.shard()
    assert len(documents(pipeline.examples)) == 20


@pytest.mark.parametrize("shard_documents", [1, 3, 1000])
def test_decisions_are_over_all_shards(
    filtered: AlmConfig, tmp_path: Path, shard_documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "DOCUMENTS_PER_SHARD", shard_documents)
    pipeline = Pipeline(filtered, str(tmp_path / "store"))
    assert pipeline.shard().dropped == {EXACT: 1, NEAR: 1, CONTAMINATED: 1}
    assert pipeline.signatures
    assert len(pipeline.signatures.complete_manifest().shards) == -(-20 // shard_documents)


def test_an_interrupted_stage_goes_on_to_the_same_bytes(
    filtered: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the second shard of signatures; then after the second of decisions."""
    monkeypatch.setattr(stage, "DOCUMENTS_PER_SHARD", 4)
    roots = [tmp_path / name for name in ("whole", "stopped")]
    Pipeline(filtered, str(roots[0])).shard()
    write, calls = Dataset.write_shard, 0

    def interrupt(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (3, 8):
            raise KeyboardInterrupt
        return write(*arguments, **options)

    monkeypatch.setattr(Dataset, "write_shard", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Pipeline(filtered, str(roots[1])).shard()
    Pipeline(filtered, str(roots[1])).shard()
    assert calls > 8
    assert contents(roots[0]) == contents(roots[1])


def contents(root: Path) -> dict[str, bytes]:
    files = [file for kind in ("signatures", "decisions", "examples") for file in (root / kind).rglob("*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.suffix in (".parquet", ".json")}


def test_more_texts_at_the_end_move_no_decision(filtered: AlmConfig, texts: list[str], tmp_path: Path) -> None:
    more = [*texts, texts[0], changed(texts[2], 0.01, 1), prose(50)]
    longer = with_texts(filtered, texts_file(tmp_path / "longer.jsonl", more))
    found = []
    for config in (filtered, longer):
        pipeline = Pipeline(config, str(tmp_path / "store"))
        pipeline.shard()
        found.append(documents(pipeline.examples))
    assert found[1] == [*found[0], 22]


def test_another_model_or_cut_compares_nothing_again(filtered: AlmConfig, llama_folder: str, tmp_path: Path) -> None:
    others = [filtered, filtered.model_copy(update={"teacher": llama_folder})]
    others.append(with_texts(filtered, filtered.texts.source.urls[0], max_bytes=120, held_out=0.4))
    pipelines = [Pipeline(config, str(tmp_path / "store")) for config in others]
    assert len({pipeline.decisions.name for pipeline in pipelines if pipeline.decisions}) == 1
    assert pipelines[0].examples.name != pipelines[2].examples.name


def test_another_evaluation_set_decides_again(filtered: AlmConfig, tmp_path: Path) -> None:
    before = Pipeline(filtered, str(tmp_path / "store")).examples.name
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "Another one?", "answer": "1"}))
    assert Pipeline(filtered, str(tmp_path / "store")).examples.name != before


def test_a_store_with_lost_decisions_is_repaired(filtered: AlmConfig, tmp_path: Path) -> None:
    from alm_pipeline.repair import repair
    from storage.upkeep.catalog import Catalog

    root = tmp_path / "store"
    Pipeline(filtered, str(root)).shard()
    before = contents(root)
    for file in (*root.glob("decisions/*/shard-00000.parquet"), *root.glob("signatures/*/shard-00000.parquet")):
        file.write_bytes(b"damaged")
    catalog = Catalog.open(str(root))
    repairs = list(repair(catalog, list(catalog.entries)))
    assert [(each.refused, each.remaining) for each in repairs] == [("", ()), ("", ())]
    assert contents(root) == before


# mixtures


def sources_of(config: AlmConfig, texts: list[list[str]], folder: Path, **settings: Any) -> AlmConfig:
    content = {**config.texts.model_dump(), "deduplicate": {}, **settings}
    listed = [
        {**content, "name": name, "source": FilesSource(urls=(texts_file(folder / f"{name}.jsonl", own),))}
        for name, own in zip(("first", "second", "third"), texts, strict=False)
    ]
    return config.model_copy(update={"corpus": tuple(map(SourceConfig.model_validate, listed))})


def test_a_source_is_compared_with_those_before_it(config: AlmConfig, texts: list[str], tmp_path: Path) -> None:
    second = [prose(30), texts[2], f"{texts[4]} and one more word", prose(31)]
    chosen = sources_of(config, [texts, second], tmp_path)
    pipeline = Pipeline(chosen, str(tmp_path / "store"))
    drops = [part.shard().dropped for part in pipeline.parts]
    assert drops == [{EXACT: 1, NEAR: 1}, {EXACT: 1, NEAR: 1}]
    decisions = pipeline.parts[1].decisions
    assert decisions
    repeats = [row["repeats"] for row in decisions.read_shard(0).to_pylist() if row["repeats"]]
    assert [(name.partition(": ")[0], name.rpartition(":")[2]) for name in repeats] == [("first", "2"), ("first", "4")]


def test_a_source_at_the_end_changes_none_of_the_others(config: AlmConfig, texts: list[str], tmp_path: Path) -> None:
    second, third = [prose(30), texts[2]], [texts[3], prose(40)]
    found = []
    for listed in ([texts, second], [texts, second, third]):
        pipeline = Pipeline(sources_of(config, listed, tmp_path), str(tmp_path / "store"))
        found.append([part.examples.name for part in pipeline.parts])
    assert found[1][:2] == found[0]
    alone = Pipeline(sources_of(config, [third], tmp_path), str(tmp_path / "store"))
    assert found[1][2] != alone.parts[0].examples.name


def test_a_source_is_not_compared_across_if_it_says_so(config: AlmConfig, texts: list[str], tmp_path: Path) -> None:
    chosen = sources_of(config, [texts, [texts[2], prose(33)]], tmp_path, deduplicate={"across": False})
    pipeline = Pipeline(chosen, str(tmp_path / "store"))
    assert [part.shard().dropped for part in pipeline.parts] == [{EXACT: 1, NEAR: 1}, {}]


# what is refused


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"deduplicate": {"exact": False, "near": False}}, "exact and near are both false"),
        ({"deduplicate": {"similarity": 0.99}}, r"corpus\.deduplicate\.similarity: Input should be less than"),
        ({"deduplicate": {}, "max_examples": 10}, "read the corpus to its end, whatever max_examples is; use sample"),
        ({"decontaminate": {"questions": []}}, r"corpus\.decontaminate\.questions"),
        ({"decontaminate": {}}, r"corpus\.decontaminate\.questions: is missing"),
        ({"deduplicate": {"similarty": 0.7}}, "did you mean corpus.deduplicate.similarity"),
    ],
)
def test_settings_that_can_decide_nothing_are_refused(config: AlmConfig, settings: Any, problem: str) -> None:
    content = config.model_dump(mode="json")
    with pytest.raises(UserError, match=problem):
        parse_config({**content, "corpus": {**content["corpus"], **settings}})


def test_sources_that_are_compared_are_compared_alike(config: AlmConfig, texts: list[str], tmp_path: Path) -> None:
    content = sources_of(config, [texts, texts], tmp_path).model_dump(mode="json")
    content["corpus"][1]["deduplicate"]["words"] = 7
    with pytest.raises(UserError, match="the sources first, second are compared with each other, and have different"):
        parse_config(content)
    content["corpus"][1]["deduplicate"]["across"] = False
    parse_config(content)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"questions": ["no-such-file.jsonl"]}, "no-such-file"),
        ({"text": "{no_such_column}"}, "no_such_column"),
    ],
)
def test_evaluation_sets_are_read_before_a_run(filtered: AlmConfig, tmp_path: Path, change: Any, problem: str) -> None:
    asked = {**filtered.texts.model_dump()["decontaminate"], **change}
    wrong = with_texts(filtered, filtered.texts.source.urls[0], decontaminate=asked)
    found = [each for each in Pipeline(wrong, str(tmp_path / "store")).preflight() if each.severity == "error"]
    assert [(each.field.startswith("corpus.decontaminate"), problem in each.sentence) for each in found] == [
        (True, True)
    ]


def test_a_corpus_that_changes_between_both_readings_is_refused(filtered: AlmConfig, tmp_path: Path) -> None:
    """The decisions are by position: a document in another's place is not kept for it."""
    root = tmp_path / "store"
    pipeline = Pipeline(filtered, str(root))
    pipeline.decide()
    assert pipeline.decisions
    (found,) = root.glob("decisions/*/")
    shutil.rmtree(found)
    rows = [f"other:{number}" for number in range(20)]
    columns = {"id": rows, "reason": pa.nulls(20, pa.string()), "repeats": pa.nulls(20, pa.string())}
    pipeline.decisions.write_shard(0, columns, {"documents": 20})
    pipeline.decisions.finish(1)
    with pytest.raises(UserError, match="has a decision on the document 'other:0' where the corpus has"):
        Pipeline(filtered, str(root)).shard()


def test_defaults_are_those_of_an_empty_section() -> None:
    assert DeduplicationConfig() == DeduplicationConfig.model_validate({})
