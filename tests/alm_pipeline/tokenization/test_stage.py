"""Examples are encoded shard by shard."""

import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alm_pipeline.models.tokenizer import LoadedTokenizer, load_tokenizer
from alm_pipeline.tokenization import stage
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines import registry
from alm_pipeline.tokenization.engines.fastokens import FastokensEngine
from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES, EngineFactory
from alm_pipeline.tokenization.engines.standard import Engine
from alm_pipeline.tokenization.prepared_encoders import Encoders
from alm_pipeline.tokenization.stage import _sample, tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from tests.alm_pipeline.tokenization.engines.wrong_ids import with_rows
from tests.corpora import conversations, text_examples

Ids = npt.NDArray[np.int32]
SHARDS = [["The fox jumps.", "東京 is far", "a\u2581b"], ["x = 1\n\n", "dog " * 40]]


@pytest.fixture(autouse=True)
def any_text_is_worth_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_BYTES_WORTH_A_TRIAL", 0)
    monkeypatch.setattr(stage, "_BYTES_WORTH_A_PROVEN_ENGINE", 0)


def shard_files(dataset: Dataset) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(Path(dataset.url).iterdir())}


def run(
    examples: Dataset,
    tokenizer: str,
    max_tokens: int | None = None,
    engines: Mapping[str, EngineFactory] = FAST_ENGINES,
) -> Dataset:
    tokens = tokens_dataset(examples, LoadedTokenizer(tokenizer), max_tokens)
    tokenize(examples, tokens, LoadedTokenizer(tokenizer), max_tokens, encoders=Encoders(engines))
    return tokens


@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_rows_are_those_of_the_encoder(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    tokens = run(text_examples(tmp_path, SHARDS), tokenizer)
    encoder = ByteEncoder(LoadedTokenizer(tokenizer))
    for shard, texts in enumerate(SHARDS):
        rows = tokens.read_shard(shard).to_pylist()
        assert [row["id"] for row in rows] == [f"{shard}-{k}" for k in range(len(texts))]
        batch = encoder.encode(texts)
        columns = {name: column.to_pylist() for name, column in batch.columns().items()}
        assert [row.pop("id") for row in rows] == [f"{shard}-{k}" for k in range(len(texts))]
        assert not any(row["turns"] for row in rows)  # empty for plain texts
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
    assert kept["turn_bytes"] == [2, 5]
    assert set(kept["turns"]) == {-1, 0, 1}
    assert sum(trimmed["byte_lengths"]) == len("trimmed")
    assert trimmed["uncovered_bytes"] == [1]
    assert trimmed["turn_bytes"] == [len("trimmed ")]  # the omitted byte too
    assert dropped["turn_bytes"] == []
    assert dropped["dropped"] == "holds_the_space_stand_in"
    assert tokens.complete_manifest().dropped == {"holds_the_space_stand_in": 1}


USERS_ALONE = "{% for m in messages if m['role'] == 'user' %}{{ m['role'] + '\n' + m['content'] }}{% endfor %}"
HIDDEN = [{"role": "developer", "content": "Be brief."}, {"role": "gpt", "content": "Yes."}]


def users_alone(llama_folder: str, folder: Path) -> str:
    """A model whose chat template shows only the user's messages."""
    copy = Path(shutil.copytree(llama_folder, folder / "model"))
    (copy / "chat_template.jinja").write_text(USERS_ALONE)
    return str(copy)


@pytest.mark.bad_input
def test_a_shard_of_which_no_message_is_shown_is_refused(tmp_path: Path, llama_folder: str) -> None:
    name = users_alone(llama_folder, tmp_path)
    examples = conversations(tmp_path, [HIDDEN, HIDDEN[:1]])
    with pytest.raises(UserError, match=r"shows no message of .*shard-00000") as error:
        run(examples, name)
    for part in (name, examples.url, "2 conversations, of the roles developer, gpt", "student.template"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "others",
    [[[{"role": "user", "content": "Hi"}]], [[{"role": "gpt", "content": " \n"}]]],
    ids=["one is shown", "blank"],
)
def test_a_shard_of_which_something_is_shown_is_not(
    others: list[list[dict[str, Any]]], tmp_path: Path, llama_folder: str
) -> None:
    chats = [*others, HIDDEN] if others[0][0]["role"] == "user" else others
    assert run(conversations(tmp_path, chats), users_alone(llama_folder, tmp_path)).complete_manifest().rows


MANY = [[f"The fox {shard} jumps over {k} dogs <|im_end|>." for k in range(4)] for shard in range(4)]


def recording(shards: set[int], wrong_on: str | None = None) -> Mapping[str, EngineFactory]:
    """The only fast engine, which records the shards of `MANY` whose texts it encodes.

    For texts that contain `wrong_on` it gives wrong ids.
    """

    class RecordingEngine(FastokensEngine):
        def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
            shards.update(int(text.split()[2]) for text in texts if text.startswith("The fox "))
            flat = super().encode(texts, special_literals=special_literals)
            wrong = [index for index, text in enumerate(texts) if wrong_on and wrong_on in text]
            return with_rows(flat, {index: flat.row(index)[::-1] for index in wrong})

    return {"fastokens": RecordingEngine}


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {name: content for name, (content, _) in shard_files(dataset).items()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_fast_engine_takes_over_and_writes_the_same(
    tmp_path: Path, llama_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards: set[int] = set()
    with caplog.at_level("INFO"):
        fast = run(text_examples(tmp_path / "fast", MANY), llama_folder, engines=recording(shards))
    assert shards == {0, 1, 2, 3}  # shard 0 in the trial
    (line,) = (line for line in caplog.messages if "encoded with" in line)
    assert re.fullmatch(rf"{fast.label}: encoded with fastokens, which is \d+\.\d times as fast as tokenizers", line)
    assert contents(fast) == contents(run(text_examples(tmp_path / "standard", MANY), llama_folder, engines={}))


def lying(shard: int, how: Callable[[Ids], Ids], lied: list[str]) -> Mapping[str, EngineFactory]:
    """A fast engine that changes the ids of every text of `MANY` from a shard on."""

    class LyingEngine(FastokensEngine):
        def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
            flat = super().encode(texts, special_literals=special_literals)
            wrong = [
                index
                for index, text in enumerate(texts)
                if text.startswith("The fox ") and int(text.split()[2]) >= shard
            ]
            lied.extend(texts[index] for index in wrong)
            return with_rows(flat, {index: how(flat.row(index)) for index in wrong})

    return {"fastokens": LyingEngine}


def split_first_word(tokenizer: str) -> Callable[[Ids], Ids]:
    """Other ids that spell the same text."""
    (letters,) = (load_tokenizer(tokenizer).convert_tokens_to_ids(list("The")),)
    spelled = load_tokenizer(tokenizer)("The", add_special_tokens=False)["input_ids"]

    def change(ids: Ids) -> Ids:
        assert ids[: len(spelled)].tolist() == spelled != letters
        return np.concatenate([np.array(letters, np.int32), ids[len(spelled) :]])

    return change


@pytest.mark.parametrize(("shard", "spells_the_text"), [(1, False), (1, True), (3, True)])
def test_a_shard_whose_sample_differs_is_encoded_again(
    shard: int, spells_the_text: bool, tmp_path: Path, llama_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    how = split_first_word(llama_folder) if spells_the_text else lambda ids: ids[::-1]
    lied: list[str] = []
    examples = text_examples(tmp_path / "lying", MANY)
    tokens = run(examples, llama_folder, engines=lying(shard, how, lied))
    assert lied
    assert contents(tokens) == contents(run(text_examples(tmp_path / "true", MANY), llama_folder, engines={}))
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{tokens.label}: fastokens gives different ids for 'The fox {shard} jumps over ")
    assert f" in shard {shard}; tokenizers encodes this shard and later ones" in warning
    assert f"delete {tokens.url}" in warning
    # nor is it used by a process that starts now
    (Path(tokens.url) / "manifest.json").unlink()
    (Path(tokens.url) / "shard-00003.json").unlink()
    shards: set[int] = set()
    run(examples, llama_folder, engines=recording(shards))
    assert shards == set()


def test_a_difference_that_another_process_found_ends_the_use_of_an_engine(tmp_path: Path, llama_folder: str) -> None:
    shards: set[int] = set()
    examples, loaded = text_examples(tmp_path, MANY), LoadedTokenizer(llama_folder)
    encoders, other = Encoders(recording(shards)), Encoders(lying(2, lambda ids: ids[::-1], []))
    tokens = tokenize_group(examples, loaded, encoders, [0, 1])
    assert shards == {0, 1}
    tokenize_group(examples, LoadedTokenizer(llama_folder), other, [2])
    tokenize(examples, tokens, loaded, None, [3], encoders=encoders)
    assert shards == {0, 1}
    prepared = encoders.prepared(tokens.name)
    assert prepared is not None
    assert prepared.engine is prepared.standard


@pytest.mark.parametrize("sizes", [[1], [5], [128], [64, 64], [64, 64, 64, 7], [64] * 9])
@pytest.mark.parametrize("shard", [0, 1, 5, 1000])
def test_every_shard_has_a_sample_of_its_rows(sizes: list[int], shard: int) -> None:
    starts = np.cumsum(sizes) - sizes
    samples = [_sample(shard, sum(sizes), start, size) for start, size in zip(starts.tolist(), sizes, strict=True)]
    rows = [start + row for start, sample in zip(starts.tolist(), samples, strict=True) for row in sample]
    assert sum(sizes) // 128 <= len(rows) <= sum(sizes) // 128 + 1
    assert rows
    assert set(np.diff(rows)) <= {128}
    assert all(0 <= row < size for sample, size in zip(samples, sizes, strict=True) for row in sample)


def test_a_text_that_a_fast_engine_misspells_is_not_dropped(tmp_path: Path, llama_folder: str) -> None:
    """A text outside of the sample, whose ids don't spell it."""
    long = [[f"The fox {shard} jumps over {k} dogs." for k in range(150)] for shard in range(3)]
    outside = next(k for k in range(150) if k % 128 != (1 * 37) % 128 and k % 128 != (2 * 37) % 128)
    engines = recording(set(), wrong_on=f"1 jumps over {outside} dogs.")
    tokens = run(text_examples(tmp_path / "one", long), llama_folder, engines=engines)
    assert contents(tokens) == contents(run(text_examples(tmp_path / "two", long), llama_folder, engines={}))
    assert tokens.complete_manifest().dropped == {}


def test_an_engine_without_all_characters_of_its_tokens_is_refused(
    tmp_path: Path, gemma_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """fastokens takes a word for the token `<bos>` of the tiny tokenizer, which has no token `<` to make it of."""
    tokens = run(text_examples(tmp_path / "one", MANY), gemma_folder)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{tokens.label}: encoded with tokenizers; not with fastokens: fastokens gives different")
    assert contents(tokens) == contents(run(text_examples(tmp_path / "two", MANY), gemma_folder, engines={}))


def test_a_few_shards_are_not_worth_a_trial(tmp_path: Path, llama_folder: str) -> None:
    shards: set[int] = set()
    run(text_examples(tmp_path, MANY[:2]), llama_folder, engines=recording(shards))
    assert shards == set()


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("known", [True, False])
def test_a_few_bytes_are_not_worth_a_trial(
    missing: int, threads: int, known: bool, tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By threads, since an engine is made by one; a machine that knows the engine to be exact needs fewer."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    shards: set[int] = set()
    if known:
        run(text_examples(tmp_path, MANY, "other"), llama_folder, engines=recording(shards))
        assert shards
        shards.clear()
    examples = text_examples(tmp_path, [*MANY, ["one more"]])
    size = sum(record.counts["text_bytes"] for record in examples.complete_manifest().shards)
    least = (size + missing) / LoadedTokenizer(llama_folder).view.size / threads
    used, unused = ("PROVEN_ENGINE", "TRIAL") if known else ("TRIAL", "PROVEN_ENGINE")
    monkeypatch.setattr(stage, f"_BYTES_WORTH_A_{used}", least)
    monkeypatch.setattr(stage, f"_BYTES_WORTH_A_{unused}", np.inf if missing == 0 else 0)
    run(examples, llama_folder, engines=recording(shards))
    assert bool(shards) == (missing == 0)


def run_groups(examples: Dataset, tokenizer: str, groups: list[list[int]]) -> Dataset:
    loaded, encoders = LoadedTokenizer(tokenizer), Encoders()
    tokens = tokens_dataset(examples, loaded, None)
    with ThreadPoolExecutor(3) as pool:
        done = pool.map(lambda group: tokenize(examples, tokens, loaded, None, group, encoders=encoders), groups)
        assert list(done) == [None] * len(groups)
    assert tokens.manifest() is None
    tokenize(examples, tokens, loaded, None, encoders=encoders)
    return tokens


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3]], [[3], [1], [0], [2]], [[2, 3], [0, 1]], [[1, 2], [], [3, 0]]])
def test_groups_of_shards_are_written_as_all_at_once(
    groups: list[list[int]], tmp_path: Path, gemma_folder: str
) -> None:
    whole = run(text_examples(tmp_path / "whole", MANY), gemma_folder)
    parts = run_groups(text_examples(tmp_path / "parts", MANY), gemma_folder, groups)
    assert contents(parts) == contents(whole)


def tokenize_group(
    examples: Dataset, tokenizer: LoadedTokenizer, encoders: Encoders, group: list[int] | None
) -> Dataset:
    tokens = tokens_dataset(examples, tokenizer, None)
    tokenize(examples, tokens, tokenizer, None, group, encoders=encoders)
    return tokens


def test_a_group_waits_while_another_tries_an_engine(tmp_path: Path, llama_folder: str) -> None:
    """A trial reads special literals both ways, with the tokenizer that all groups of the process share."""
    examples, loaded = text_examples(tmp_path, MANY), LoadedTokenizer(llama_folder)
    tokens = tokens_dataset(examples, loaded, None)
    is_trying, was_written = threading.Event(), list[bool]()

    def try_slowly(*arguments: Any) -> Engine:
        is_trying.set()
        wait([other], timeout=0.5)
        was_written.append(tokens.record(3) is not None)
        return FastokensEngine(*arguments)

    def encode_other() -> None:
        is_trying.wait()
        tokenize(examples, tokens, loaded, None, [3], encoders=encoders)

    encoders = Encoders({"fastokens": try_slowly})
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(encode_other)
        tokenize(examples, tokens, loaded, None, [0, 1], encoders=encoders)
        other.result()
    assert was_written == [False]
    assert tokens.record(3) is not None


def test_a_process_prepares_one_encoder_for_its_groups(tmp_path: Path, llama_folder: str) -> None:
    shards: set[int] = set()
    examples, encoders = text_examples(tmp_path, MANY), Encoders(recording(shards))
    tokens = tokenize_group(examples, LoadedTokenizer(llama_folder), encoders, [2])
    assert shards == {2}  # in the trial
    prepared, unused = encoders.prepared(tokens.name), LoadedTokenizer(llama_folder)
    tokenize(examples, tokens, unused, None, [3, 1], encoders=encoders)  # the dataset is sent to each process
    assert shards == {1, 2, 3}
    assert encoders.prepared(tokens.name) is prepared
    assert "fast" not in vars(unused)
    tokenize_group(examples, LoadedTokenizer(llama_folder), encoders, None)
    assert tokens.complete_manifest().rows == 16
    assert encoders.prepared(tokens.name) is None


def test_another_process_does_not_repeat_the_trial(tmp_path: Path, llama_folder: str) -> None:
    examples, tokenizer = text_examples(tmp_path, MANY), LoadedTokenizer(llama_folder)
    tokenize_group(examples, tokenizer, Encoders(), [2])
    shards: set[int] = set()
    tokenize_group(examples, tokenizer, Encoders(recording(shards)), [0, 1, 3])
    assert shards == {0, 1, 3}


def test_another_process_does_not_repeat_a_trial_that_failed(
    tmp_path: Path, llama_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    examples, tokenizer = text_examples(tmp_path, MANY), LoadedTokenizer(llama_folder)
    shards: set[int] = set()
    tokens = tokenize_group(examples, tokenizer, Encoders(recording(shards, wrong_on="0 dogs")), [1])
    assert shards == {1}
    tokenize_group(examples, tokenizer, Encoders(recording(shards)), [0, 2, 3])
    assert shards == {1}
    refusal = (
        "not with fastokens: fastokens gives different ids for 'The fox 1 jumps over 0 dogs <|im_end|>.' in shard 1"
    )
    assert warnings(caplog) == [f"{tokens.label}: encoded with tokenizers; {refusal}"] * 2


def test_without_findings_the_trial_is_repeated(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried_shards(name: str) -> set[int]:
        shards: set[int] = set()
        run(text_examples(tmp_path / name, MANY), llama_folder, engines=recording(shards, wrong_on="0 dogs"))
        return shards

    (tmp_path / "file").touch()
    monkeypatch.setattr(registry, "cache_folder", lambda: tmp_path / "file")
    assert tried_shards("first") == {0}
    monkeypatch.setattr(registry, "cache_folder", lambda: tmp_path / "machine")
    assert tried_shards("second") == {0}
    assert tried_shards("third") == set()
    for finding in (tmp_path / "machine").rglob("*.json"):
        finding.write_text("{")
    assert tried_shards("fourth") == {0}


def test_if_nothing_is_missing_no_tokenizer_is_loaded(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, MANY)
    tokens = tokens_dataset(examples, LoadedTokenizer(llama_folder), None)
    tokenize(examples, tokens, LoadedTokenizer(llama_folder), None, [3, 2, 1, 0])
    tokenizer = LoadedTokenizer(llama_folder)
    assert tokenize(examples, tokens, tokenizer, None, [1]) is None
    manifest = tokenize(examples, tokens, tokenizer, None)
    assert manifest is not None
    assert tokenize(examples, tokens, tokenizer, None, [1]) == manifest
    assert "fast" not in vars(tokenizer)


def test_shards_that_do_not_exist_are_refused(tmp_path: Path, llama_folder: str) -> None:
    examples, tokenizer = text_examples(tmp_path, SHARDS), LoadedTokenizer(llama_folder)
    for shard in (2, -1):
        with pytest.raises(UserError, match=f"has 2 shards, and no shard {shard}"):
            tokenize(examples, tokens_dataset(examples, tokenizer, None), tokenizer, None, [0, shard])


@pytest.mark.parametrize(
    ("wrong_on", "reason", "tried"), [("\u0e20", "different ids for ", set()), ("0 dogs", " in shard 0", {0})]
)
def test_an_engine_that_differs_is_not_used(
    wrong_on: str, reason: str, tried: set[int], tmp_path: Path, llama_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards: set[int] = set()
    tokens = run(text_examples(tmp_path / "one", MANY), llama_folder, engines=recording(shards, wrong_on))
    assert shards == tried
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{tokens.label}: encoded with tokenizers; not with fastokens: fastokens gives ")
    assert reason in warning
    assert contents(tokens) == contents(run(text_examples(tmp_path / "two", MANY), llama_folder, engines={}))


def test_without_a_fast_engine_there_is_no_warning(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    shards: set[int] = set()
    run(text_examples(tmp_path, MANY), llama_folder, engines=recording(shards))
    assert shards == set()
    assert not caplog.records


def test_a_resumed_run_uses_the_fast_engine(tmp_path: Path, llama_folder: str) -> None:
    tokens = run(text_examples(tmp_path, MANY), llama_folder)
    for name in ("manifest.json", "shard-00003.json"):
        (Path(tokens.url) / name).unlink()
    shards: set[int] = set()
    run(text_examples(tmp_path, MANY), llama_folder, engines=recording(shards))
    assert shards == {3}


def test_a_failed_write_is_raised(tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    examples = text_examples(tmp_path, SHARDS)
    monkeypatch.setattr(Dataset, "write_shard", fail)
    with pytest.raises(OSError, match="disk full"):
        run(examples, llama_folder)


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
    assert rewritten == {"manifest.json", "shard-00001.json"}  # the shard itself exists


def test_a_complete_dataset_is_left_alone(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    before = shard_files(run(examples, llama_folder))
    assert shard_files(run(examples, llama_folder)) == before


def test_what_decides_the_name(tmp_path: Path, llama_folder: str, gemma_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    names = [
        tokens_dataset(dataset, LoadedTokenizer(tokenizer), limit).name
        for dataset in (examples, text_examples(tmp_path, [["other"]]))
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
