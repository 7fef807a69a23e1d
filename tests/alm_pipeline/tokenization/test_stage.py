"""Examples to tokens, shard by shard."""

import json
from pathlib import Path

import pytest

from alm_pipeline.models import load_tokenizer
from alm_pipeline.tokenization.encoding import ByteEncoder, EncodedExample
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from tests.corpora import conversations, text_examples

SHARDS = [["The fox jumps.", "東京 is far", "a\u2581b"], ["x = 1\n\n", "dog " * 40]]


def shard_files(dataset: Dataset) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(Path(dataset.url).iterdir())}


def run(examples: Dataset, tokenizer: str, max_tokens: int | None = None) -> Dataset:
    tokens = tokens_dataset(examples, tokenizer, max_tokens)
    tokenize(examples, tokens, tokenizer, max_tokens)
    return tokens


@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_rows_are_the_encoders(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    tokens = run(text_examples(tmp_path, SHARDS), tokenizer)
    encoder = ByteEncoder(load_tokenizer(tokenizer))
    for shard, texts in enumerate(SHARDS):
        rows = tokens.read_shard(shard).to_pylist()
        assert [row["id"] for row in rows] == [f"{shard}-{k}" for k in range(len(texts))]
        for row, encoded in zip(rows, encoder.encode(texts), strict=True):
            if isinstance(encoded, EncodedExample):
                assert row["dropped"] is None
                assert row["token_ids"] == encoded.token_ids.tolist()
                assert row["byte_lengths"] == encoded.byte_lengths.tolist()
                assert row["kinds"] == encoded.kinds.tolist()
            else:
                assert row["dropped"] == str(encoded)
                assert row["token_ids"] == row["byte_lengths"] == row["kinds"] == []


def test_counts(tmp_path: Path, gemma_folder: str) -> None:
    tokens = run(text_examples(tmp_path, SHARDS), gemma_folder, max_tokens=40)
    manifest = tokens.complete_manifest()
    assert manifest.rows == 5
    assert manifest.dropped == {"over_context": 1, "tokens_spell_other_bytes": 1}
    assert [record.dropped for record in manifest.shards] == [{"tokens_spell_other_bytes": 1}, {"over_context": 1}]
    for shard, record in enumerate(manifest.shards):
        assert record.counts == {"tokens": sum(map(len, tokens.read_shard(shard)["token_ids"].to_pylist()))}


def test_conversations(tmp_path: Path, gemma_folder: str) -> None:
    chats = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"role": "user", "content": "trimmed "}],
    ]
    tokens = run(conversations(tmp_path, chats), gemma_folder)
    kept, dropped = tokens.read_shard(0).to_pylist()
    assert sum(kept["byte_lengths"]) == len("HiHello")
    assert dropped["dropped"] == "template_changes_content"
    assert tokens.complete_manifest().dropped == {"template_changes_content": 1}


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
    assert rewritten == {"manifest.json", "shard-00001.json", "shard-00001.parquet"}


def test_a_complete_dataset_is_left_alone(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    before = shard_files(run(examples, llama_folder))
    assert shard_files(run(examples, llama_folder)) == before


def test_what_decides_the_name(tmp_path: Path, llama_folder: str, gemma_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    names = [
        tokens_dataset(given, tokenizer, limit).name
        for given in (examples, text_examples(tmp_path, [["other"]]))
        for tokenizer in (llama_folder, gemma_folder)
        for limit in (None, 8)
    ]
    assert len(set(names)) == len(names)
    assert tokens_dataset(examples, llama_folder, None).name in names
    assert tokens_dataset(examples, llama_folder, None).label == "tiny-tiny-llama"


def test_a_chat_template_decides_the_name(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    tokenizer = load_tokenizer(llama_folder)
    for name in ("one", "two"):
        tokenizer.save_pretrained(tmp_path / name)
        tokenizer.chat_template = "{{ messages }}"
    one, two = (tokens_dataset(examples, str(tmp_path / name), None) for name in ("one", "two"))
    assert json.dumps(one.identity["tokenizer"]) != json.dumps(two.identity["tokenizer"])


def test_an_empty_shard(tmp_path: Path, llama_folder: str) -> None:
    tokens = run(text_examples(tmp_path, [[], ["a"]]), llama_folder)
    assert [record.rows for record in tokens.complete_manifest().shards] == [0, 1]


def test_examples_have_to_be_complete(tmp_path: Path, llama_folder: str) -> None:
    examples = text_examples(tmp_path, SHARDS)
    (Path(examples.url) / "manifest.json").unlink()
    with pytest.raises(UserError, match="not complete"):
        run(examples, llama_folder)
