"""Examples to tokens, shard by shard."""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
from alm_pipeline.tokenization import stage
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines import registry
from alm_pipeline.tokenization.engines.kitoken import KitokenEngine
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from tests.corpora import conversations, text_examples


@pytest.fixture(autouse=True)
def other_process() -> Callable[[], None]:
    """What this process keeps in memory is gone, and goes whenever it is called."""
    stage._shared_encoding.cache_clear()
    return stage._shared_encoding.cache_clear


SHARDS = [["The fox jumps.", "東京 is far", "a\u2581b"], ["x = 1\n\n", "dog " * 40]]


def shard_files(dataset: Dataset) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(Path(dataset.url).iterdir())}


def run(examples: Dataset, tokenizer: str, max_tokens: int | None = None) -> Dataset:
    tokens = tokens_dataset(examples, LoadedTokenizer(tokenizer), max_tokens)
    tokenize(examples, tokens, LoadedTokenizer(tokenizer), max_tokens)
    return tokens


@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_rows_are_the_encoders(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    tokens = run(text_examples(tmp_path, SHARDS), tokenizer)
    encoder = ByteEncoder(LoadedTokenizer(tokenizer))
    for shard, texts in enumerate(SHARDS):
        rows = tokens.read_shard(shard).to_pylist()
        assert [row["id"] for row in rows] == [f"{shard}-{k}" for k in range(len(texts))]
        batch = encoder.encode(texts)
        columns = {name: column.to_pylist() for name, column in batch.columns().items()}
        assert [row.pop("id") for row in rows] == [f"{shard}-{k}" for k in range(len(texts))]
        assert not any(row["turns"] for row in rows)  # of plain texts
        assert rows == [{name: column[k] for name, column in columns.items()} for k in range(len(texts))]


def test_counts(tmp_path: Path, gemma_folder: str) -> None:
    tokens = run(text_examples(tmp_path, SHARDS), gemma_folder, max_tokens=40)
    manifest = tokens.complete_manifest()
    assert manifest.rows == 5
    assert manifest.dropped == {"holds_the_space_stand_in": 1, "over_context": 1}
    assert [record.dropped for record in manifest.shards] == [{"holds_the_space_stand_in": 1}, {"over_context": 1}]
    for shard, record in enumerate(manifest.shards):
        assert record.counts == {"tokens": sum(map(len, tokens.read_shard(shard)["token_ids"].to_pylist()))}


def test_conversations(tmp_path: Path, gemma_folder: str) -> None:
    chats = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"role": "user", "content": "trimmed "}],
        [{"role": "user", "content": "a\u2581b"}],
    ]
    tokens = run(conversations(tmp_path, chats), gemma_folder)
    kept, trimmed, dropped = tokens.read_shard(0).to_pylist()
    assert sum(kept["byte_lengths"]) == len("HiHello")
    assert kept["roles"] == ["user", "assistant"]
    assert set(kept["turns"]) == {-1, 0, 1}
    assert sum(trimmed["byte_lengths"]) == len("trimmed")
    assert trimmed["uncovered_bytes"] == [1]
    assert dropped["dropped"] == "holds_the_space_stand_in"
    assert tokens.complete_manifest().dropped == {"holds_the_space_stand_in": 1}


MANY = [[f"The fox {shard} jumps over {k} dogs <|im_end|>." for k in range(4)] for shard in range(4)]


def engines_used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engine of each shard that is written from now on."""
    used: list[str] = []
    write = stage._write_shard

    def spy(*arguments: object) -> None:
        used.append(engine_now[0])
        write(*arguments)  # type: ignore[arg-type]

    engine_now = ["tokenizers"]
    choose = stage._fast_if_proven

    def chosen(*arguments: object) -> object:
        engine = choose(*arguments)  # type: ignore[arg-type]
        engine_now[0] = engine.name
        return engine

    monkeypatch.setattr(stage, "_write_shard", spy)
    monkeypatch.setattr(stage, "_fast_if_proven", chosen)
    return used


@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_the_fast_engine_takes_over_and_writes_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(family)
    used = engines_used(monkeypatch)
    fast = run(text_examples(tmp_path / "fast", MANY), tokenizer)
    assert used == ["tokenizers", "kitoken", "kitoken", "kitoken"]
    monkeypatch.setattr(stage, "_SHARDS_WORTH_A_PROOF", 99)
    standard = run(text_examples(tmp_path / "standard", MANY), tokenizer)
    assert {name: content for name, (content, _) in shard_files(fast).items()} == {
        name: content for name, (content, _) in shard_files(standard).items()
    }


def run_groups(examples: Dataset, tokenizer: str, groups: list[list[int]]) -> Dataset:
    tokens = tokens_dataset(examples, LoadedTokenizer(tokenizer), None)
    with ThreadPoolExecutor(3) as pool:  # also at once
        done = pool.map(lambda group: tokenize(examples, tokens, LoadedTokenizer(tokenizer), None, group), groups)
        assert list(done) == [None] * len(groups)
    assert tokens.manifest() is None
    tokenize(examples, tokens, LoadedTokenizer(tokenizer), None)
    return tokens


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {name: content for name, (content, _) in shard_files(dataset).items()}


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3]], [[3], [1], [0], [2]], [[2, 3], [0, 1]], [[1, 2], [], [3, 0]]])
def test_groups_of_shards_are_written_as_all_at_once(
    groups: list[list[int]], tmp_path: Path, gemma_folder: str
) -> None:
    whole = run(text_examples(tmp_path / "whole", MANY), gemma_folder)
    parts = run_groups(text_examples(tmp_path / "parts", MANY), gemma_folder, groups)
    assert contents(parts) == contents(whole)


def test_a_process_proves_the_engine_once_for_its_groups(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = engines_used(monkeypatch)
    examples = text_examples(tmp_path, MANY)
    tokens = tokens_dataset(examples, LoadedTokenizer(llama_folder), None)
    for group in ([2], [3, 1]):
        tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, group)
    assert used == ["tokenizers", "kitoken", "kitoken"]
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None)
    assert tokens.complete_manifest().rows == 16


def test_what_one_process_found_is_not_found_again(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch, other_process: Callable[[], None]
) -> None:
    examples = text_examples(tmp_path, MANY)
    tokens = tokens_dataset(examples, LoadedTokenizer(llama_folder), None)
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, [2])
    other_process()
    monkeypatch.setattr(KitokenEngine, "_misread", None)
    monkeypatch.setattr(stage, "_difference", None)
    used = engines_used(monkeypatch)
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, [0, 1, 3])
    assert used == ["kitoken"] * 3


def test_what_one_process_found_against_the_engine_holds_for_others(
    tmp_path: Path,
    llama_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    other_process: Callable[[], None],
) -> None:
    monkeypatch.setattr(stage, "KitokenEngine", WrongOn)
    monkeypatch.setattr(WrongOn, "word", "0 dogs")
    used = engines_used(monkeypatch)
    examples = text_examples(tmp_path, MANY)
    tokens = tokens_dataset(examples, LoadedTokenizer(llama_folder), None)
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, [1])
    other_process()
    for effort in ("KitokenEngine", "_difference"):
        monkeypatch.setattr(stage, effort, None)
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, [0, 2, 3])
    assert used == ["tokenizers"] * 4
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tokens.label}: encoded with the standard engine, since kitoken gives other ids for shard 1"
    ] * 2


def test_a_folder_that_can_not_be_written_to_or_holds_nonsense_costs_time_only(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    proofs: list[object] = []
    prove = stage._difference
    monkeypatch.setattr(stage, "_difference", lambda *arguments: proofs.append(arguments) or prove(*arguments))
    monkeypatch.setattr(registry, "cache_folder", lambda: tmp_path / "file")
    run(text_examples(tmp_path / "first", MANY), llama_folder)
    monkeypatch.setattr(registry, "cache_folder", lambda: tmp_path / "machine")
    run(text_examples(tmp_path / "second", MANY), llama_folder)
    for kept in (tmp_path / "machine").rglob("*.json"):
        kept.write_text("{")
    run(text_examples(tmp_path / "third", MANY), llama_folder)
    assert len(proofs) == 3


def test_where_nothing_is_missing_no_tokenizer_is_loaded(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, MANY)
    tokens = tokens_dataset(examples, LoadedTokenizer(llama_folder), None)
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, [3, 2, 1, 0])
    tokenizer = LoadedTokenizer(llama_folder)
    assert tokenize(examples, tokens, tokenizer, None, [1]) is None
    manifest = tokenize(examples, tokens, tokenizer, None)
    assert manifest is not None
    assert tokenize(examples, tokens, tokenizer, None, [1]) == manifest
    assert "fast" not in vars(tokenizer)


def test_shards_that_are_not_there_are_refused(tmp_path: Path, llama_folder: str) -> None:
    examples, tokenizer = text_examples(tmp_path, SHARDS), LoadedTokenizer(llama_folder)
    for shard in (2, -1):
        with pytest.raises(UserError, match=f"has 2 shards, and no shard {shard}"):
            tokenize(examples, tokens_dataset(examples, tokenizer, None), tokenizer, None, [0, shard])


class WrongOn(KitokenEngine):
    """Differs from `tokenizers` on texts with a certain word."""

    word = ""

    def encode(self, texts, *, special_literals):  # type: ignore[no-untyped-def]
        rows = super().encode(texts, special_literals=special_literals)
        return [row[::-1] if self.word in text else row for text, row in zip(texts, rows, strict=True)]


@pytest.mark.parametrize(("word", "said"), [("\u0e20", "gives other ids for "), ("0 dogs", "for shard 0")])
def test_an_engine_that_differs_is_not_used(
    word: str,
    said: str,
    tmp_path: Path,
    llama_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(stage, "KitokenEngine", WrongOn)
    monkeypatch.setattr(WrongOn, "word", word)
    used = engines_used(monkeypatch)
    run(text_examples(tmp_path, MANY), llama_folder)
    assert used == ["tokenizers"] * 4
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "encoded with the standard engine, since kitoken " in warning.getMessage()
    assert said in warning.getMessage()


def test_without_kitoken_nothing_is_said(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kitoken", None)
    used = engines_used(monkeypatch)
    run(text_examples(tmp_path, MANY), llama_folder)
    assert used == ["tokenizers"] * 4
    assert not caplog.records


def test_the_engine_is_proven_again_on_resuming(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = run(text_examples(tmp_path, MANY), llama_folder)
    for name in ("manifest.json", "shard-00003.json"):
        (Path(tokens.url) / name).unlink()
    used = engines_used(monkeypatch)
    run(text_examples(tmp_path, MANY), llama_folder)
    assert used == ["kitoken"]


def test_a_failed_write_is_told(tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    examples = text_examples(tmp_path, SHARDS)
    monkeypatch.setattr(Dataset, "write_shard", fail)
    with pytest.raises(OSError, match="disk full"):
        run(examples, llama_folder)


def test_the_next_is_worked_on_while_this_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    started: list[int] = []
    event = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item == 1:
            event.set()
        return item * 10

    results = stage._ahead(work, range(9))
    assert next(results) == 0
    assert event.wait(5)
    assert max(started) <= 2
    assert list(results) == [10 * item for item in range(1, 9)]
    assert list(stage._ahead(work, [])) == []


def test_no_chat_template(tmp_path: Path, gemma_folder: str) -> None:
    plain = load_tokenizer(gemma_folder)
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    examples = conversations(tmp_path, [[{"role": "user", "content": "Hi"}]])
    with pytest.raises(UserError, match="plain: the tokenizer has no chat template"):
        run(examples, str(tmp_path / "plain"))


def test_resume_writes_only_the_shard_without_a_record(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    tokens = run(examples, llama_folder)
    before = shard_files(tokens)
    for name in ("manifest.json", "shard-00001.json"):
        (Path(tokens.url) / name).unlink()
    with pytest.raises(UserError, match="no manifest"):
        tokens.complete_manifest()
    run(examples, llama_folder)
    after = shard_files(tokens)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    rewritten = {name for name in after if after[name][1] != before[name][1]}
    assert rewritten == {"manifest.json", "shard-00001.json"}  # the shard itself is there


def test_a_complete_dataset_is_left_alone(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    before = shard_files(run(examples, llama_folder))
    assert shard_files(run(examples, llama_folder)) == before


def test_what_decides_the_name(tmp_path: Path, llama_folder: str, gemma_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    names = [
        tokens_dataset(given, LoadedTokenizer(tokenizer), limit).name
        for given in (examples, text_examples(tmp_path, [["other"]]))
        for tokenizer in (llama_folder, gemma_folder)
        for limit in (None, 8)
    ]
    assert len(set(names)) == len(names)
    assert tokens_dataset(examples, LoadedTokenizer(llama_folder), None).name in names
    assert tokens_dataset(examples, LoadedTokenizer(llama_folder), None).label == "tiny-tiny-llama"


def test_a_chat_template_decides_the_name(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    tokenizer = load_tokenizer(llama_folder)
    for name in ("one", "two"):
        tokenizer.save_pretrained(tmp_path / name)
        tokenizer.chat_template = "{{ messages }}"
    one, two = (tokens_dataset(examples, LoadedTokenizer(str(tmp_path / name)), None) for name in ("one", "two"))
    assert json.dumps(one.identity["tokenizer"]) != json.dumps(two.identity["tokenizer"])


def test_an_empty_shard(tmp_path: Path, llama_folder: str) -> None:
    tokens = run(text_examples(tmp_path, [[], ["a"]]), llama_folder)
    assert [record.rows for record in tokens.complete_manifest().shards] == [0, 1]


def test_examples_have_to_be_complete(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    (Path(examples.url) / "manifest.json").unlink()
    with pytest.raises(UserError, match="not complete"):
        run(examples, llama_folder)
