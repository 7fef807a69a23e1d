"""What replaces, repairs, deletes or prunes is killed at each of its writes: what was whole stays so, or is gone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.storage.killed import OPERATIONS

PROJECT = Path(__file__).parents[2]


SOAK = int(os.environ.get("ALM_SOAK", "1"))


def _kills(operation: str, folder: Path, every: int, *endpoint: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.storage.killed", operation, str(folder), str(every), *endpoint]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _assert_nothing_is_lost(kills: list[dict[str, Any]], least: int) -> None:
    assert [kill for kill in kills if kill["prepare"] or kill["problem"] or kill["rerun"] or kill["end"]] == []
    assert [kill["killed"] for kill in kills] == [True] * (len(kills) - 1) + [False]
    assert len(kills) > least


@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_write_on_a_disk_loses_nothing(operation: str, tmp_path: Path) -> None:
    _assert_nothing_is_lost(_kills(operation, tmp_path, 1), least=10)


@pytest.mark.timeout(600)
def test_a_kill_at_any_request_to_a_bucket_loses_nothing(s3_root: str, s3_server: Any, tmp_path: Path) -> None:
    """At every fifth, since each takes a second; at all with ALM_SOAK."""
    every = 5 if SOAK == 1 else 1
    _assert_nothing_is_lost(_kills("again", tmp_path, every, s3_server.endpoint), least=20 // every)
