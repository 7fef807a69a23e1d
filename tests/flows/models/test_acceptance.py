"""The flow `acceptance`: what it returns and shows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.schemas.objects import Artifact

from flows.models.acceptance import acceptance
from tests import tiny

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def test_the_flow_measures_and_shows(tmp_path: Path, shown: Callable[[str], list[Artifact]]) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    target = tiny.save(tmp_path / "target", tiny.tiny_llama(len(tokenizer)), tokenizer)
    other = tiny.save(tmp_path / "other", tiny.tiny_qwen(len(tokenizer)), tokenizer)
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in (*tiny.TEXTS, "x")))
    found = acceptance(target, [target, other], str(corpus), max_tokens=8)
    assert [row["draft"] for row in found["drafts"]] == [target, other]
    assert found["drafts"][0]["acceptance"] == 1
    assert found["left_out"] == {"too_short": 1}
    (table,) = shown("alm-acceptance")
    assert [row["draft"] for row in json.loads(str(table.data))] == [target, other]
