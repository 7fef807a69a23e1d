"""A tokenizer is trained on the corpus that its folder is named for."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.config import CorpusConfig, FilesSource, TrainedTokenizer
from alm_pipeline.corpus.sources import OpenSource
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.stage import tokenizer_folder, write_tokenizer
from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import jsonl


@pytest.mark.bad_input
@pytest.mark.parametrize("row", [None, 0, 49])
def test_a_corpus_that_changes_ends_the_training_of_a_tokenizer(
    tmp_path: Path, llama_folder: str, monkeypatch: pytest.MonkeyPatch, row: int | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*({"text": f"some text, number {number}"} for number in range(50))))
    corpus = CorpusConfig(name="test", source=FilesSource(urls=(str(path),)), held_out=0)
    source, setting = LoadedTokenizer(llama_folder), TrainedTokenizer(vocab_size=300)
    folder = tokenizer_folder([corpus], setting, source, str(tmp_path / "store"))
    read = OpenSource.rows

    def rows_and_change(self: OpenSource, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[Any]:
        for number, item in enumerate(read(self, columns, dropped)):
            if number == row:
                path.write_bytes(jsonl({"text": "another corpus"}))
            yield item

    monkeypatch.setattr(OpenSource, "rows", rows_and_change)
    if row is None:
        path.write_bytes(jsonl({"text": "another corpus"}))
    with pytest.raises(UserError, match=r"a\.jsonl.*run the same command again"):
        write_tokenizer(folder, [corpus], setting, source)
    assert folder.manifest() is None
