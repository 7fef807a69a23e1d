"""Two tokens datasets are aligned shard by shard."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alm_pipeline.alignment.ends import SideEdges
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.vocabulary.token_edges import TokenEdge
from storage.dataset import Dataset, ShardRecord
from storage.errors import UserError
from storage.schemas import SCHEMAS, ChunkEnd, ChunkKind, Kind, TokenKind

CONTENT, PAIRED, UNPAIRED = ChunkKind
START, END = TokenKind.START_OF_TURN, TokenKind.END_OF_TURN
EDGES = SideEdges(*np.uint8([[0, TokenEdge.BOUNDARY] * 8] * 2))
"""every second token of each example begins with white space"""


@dataclass(frozen=True)
class Row:
    """An example's tokens on one side."""

    lengths: tuple[int, ...] = ()
    kinds: tuple[int, ...] | None = None
    """None if all are content"""
    turns: tuple[int, ...] | None = None
    """None for a plain text"""
    roles: tuple[str, ...] = ()
    turn_bytes: tuple[int, ...] = ()
    uncovered: Mapping[int, int] | None = None
    """numbers of bytes by the token that follows them"""
    dropped: str | None = None

    def columns(self) -> dict[str, object]:
        count, uncovered = len(self.lengths), self.uncovered or {}
        return {
            "token_ids": list(range(count)),
            "byte_lengths": list(self.lengths),
            "kinds": list(self.kinds or (TokenKind.CONTENT,) * count),
            "turns": list(self.turns or ()),
            "roles": list(self.roles),
            "turn_bytes": list(self.turn_bytes),
            "uncovered_at": list(uncovered),
            "uncovered_bytes": list(uncovered.values()),
            "dropped": self.dropped,
        }


def tokens_dataset(root: Path, label: str, shards: list[list[Row]], examples: str = "tiny-1") -> Dataset:
    tokens = Dataset(str(root), Kind.TOKENS, label, {"examples": examples})
    for shard, rows in enumerate(shards):
        columns = [{"id": f"{shard}-{k}", **row.columns()} for k, row in enumerate(rows)]
        table = pa.Table.from_pylist(columns, SCHEMAS[Kind.TOKENS])
        count = sum(len(row.lengths) for row in rows)
        tokens.write_shard(shard, dict(zip(table.column_names, table.columns, strict=True)), {"tokens": count})
    tokens.finish(len(shards))
    return tokens


DROPPED = Row(dropped="normalized")
TEACHER = [[Row((3, 2, 4)), Row((0, 5), (TokenKind.BEGIN_OF_TEXT, 0)), DROPPED], [Row((2,), uncovered={0: 1}), Row()]]
STUDENT = [[Row((3, 1, 3, 2)), Row((5,)), Row((1,))], [Row((1, 2)), Row()]]
ROWS = [
    [
        ([1, 2], [1, 3], [3, 6], [CONTENT, CONTENT]),
        ([1, 1], [0, 1], [0, 5], [UNPAIRED, CONTENT]),
        ([], [], [], []),
    ],
    [([0, 1], [1, 1], [1, 2], [UNPAIRED, CONTENT]), ([], [], [], [])],
]
EXACT, ANCHOR = ChunkEnd.EXACT, ChunkEnd.ANCHOR
ENDS = [[[ANCHOR, EXACT], [EXACT, EXACT], []], [[EXACT, EXACT], []]]
"""after the first chunk of the first example, both sides' second token follows"""


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Dataset, Dataset]:
    return tokens_dataset(tmp_path, "tiny-llama", TEACHER), tokens_dataset(tmp_path, "tiny-gemma", STUDENT)


def run(teacher: Dataset, student: Dataset) -> Dataset:
    alignments = alignments_dataset(teacher, student, "tiny")
    align_datasets(teacher, student, alignments, EDGES)
    return alignments


def shard_files(dataset: Dataset) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(Path(dataset.url).iterdir())}


def test_rows(sides: tuple[Dataset, Dataset]) -> None:
    alignments = run(*sides)
    for shard, expected in enumerate(ROWS):
        table = alignments.read_shard(shard)
        assert table.schema.equals(SCHEMAS[Kind.ALIGNMENTS])
        rows = table.to_pylist()
        assert [row["id"] for row in rows] == [f"{shard}-{k}" for k in range(len(expected))]
        columns = ("teacher_tokens", "student_tokens", "byte_lengths", "kinds")
        assert [tuple(row[name] for name in columns) for row in rows] == expected
        assert [row["ends"] for row in rows] == ENDS[shard]
        assert not any(row["assistant"] for row in rows)  # empty lists, since there are no turns


def test_counts(sides: tuple[Dataset, Dataset]) -> None:
    manifest = run(*sides).complete_manifest()
    none = {"assistant": 0, "paired": 0, "uncompared_bytes": 0, "teacher_only_bytes": 0, "unseen_bytes": 0}
    first = {"aligned_bytes": 14, "aligned_bytes.text": 14, "unaligned_bytes": 0, "student_only_bytes": 0}
    second = {"aligned_bytes": 2, "aligned_bytes.text": 2, "unaligned_bytes": 1}
    second |= {"student_only_bytes": 1, "student_only_bytes.text": 1}
    assert [record.counts for record in manifest.shards] == [
        {"chunks": 4, **first, **none},
        {"chunks": 2, **second, **none},
    ]
    assert manifest.dropped == {"teacher: normalized": 1}
    assert manifest.rows == 5


ROLES = {"roles": ("user", "assistant"), "turn_bytes": (3, 2)}
CHAT = {"kinds": (START, 0, END, START, 0, END), "turns": (0, 0, 0, 1, 1, 1), **ROLES}


def test_conversations(tmp_path: Path) -> None:
    teacher = tokens_dataset(tmp_path, "tiny-llama", [[Row((0, 3, 0, 0, 2, 0), **CHAT)]])
    student = {"kinds": (0, END, START, 0, 0, END), "turns": (0, 0, 1, 1, 1, 1), **ROLES}
    alignments = run(teacher, tokens_dataset(tmp_path, "tiny-gemma", [[Row((3, 0, 0, 1, 1, 0), **student)]]))
    (row,) = alignments.read_shard(0).to_pylist()
    assert row["kinds"] == [UNPAIRED, CONTENT, PAIRED, PAIRED, CONTENT, PAIRED]
    assert row["assistant"] == [False, False, False, False, True, True]
    counts = alignments.complete_manifest().counts
    names = ("chunks", "paired", "assistant", "aligned_bytes", "aligned_bytes.user", "unaligned_bytes")
    assert [counts[name] for name in names] == [6, 3, 2, 5, 3, 0]


def test_the_sides_have_the_same_roles(tmp_path: Path) -> None:
    row = Row((0, 3, 0, 0, 2, 0), **CHAT)
    other = replace(row, roles=("user", "tool"))
    with pytest.raises(AssertionError, match="different roles"):
        run(tokens_dataset(tmp_path, "tiny-llama", [[row]]), tokens_dataset(tmp_path, "tiny-gemma", [[other]]))


def test_the_sides_have_the_same_sizes(tmp_path: Path) -> None:
    row = Row((0, 3, 0, 0, 2, 0), **CHAT)
    other = replace(row, turn_bytes=(2, 3))
    with pytest.raises(AssertionError, match="different sizes"):
        run(tokens_dataset(tmp_path, "tiny-llama", [[row]]), tokens_dataset(tmp_path, "tiny-gemma", [[other]]))


def test_the_reasons_of_both_sides_are_named(tmp_path: Path) -> None:
    row = Row((3,))
    teacher = tokens_dataset(tmp_path, "tiny-llama", [[row, DROPPED, DROPPED, Row((0, 3, 0, 0, 2, 0), **CHAT)]])
    others = [Row(dropped="template_refuses"), DROPPED, Row(dropped="over_context"), Row(dropped="template_refuses")]
    manifest = run(teacher, tokens_dataset(tmp_path, "tiny-gemma", [others])).complete_manifest()
    assert manifest.dropped == {
        "student: template_refuses": 2,
        "teacher: normalized, student: normalized": 1,
        "teacher: normalized, student: over_context": 1,
    }


HIDDEN = Row((0, 2, 0), (START, 0, END), (1, 1, 1), uncovered={0: 3}, **ROLES)
"""the student's template leaves out the user's message"""


@pytest.fixture
def one_sided(tmp_path: Path) -> tuple[Dataset, Dataset]:
    row = Row((0, 3, 0, 0, 2, 0), **CHAT)
    teacher = tokens_dataset(tmp_path, "tiny-llama", [[row, row], [row]])
    return teacher, tokens_dataset(tmp_path, "tiny-gemma", [[row, HIDDEN], [row]])


def with_settings(sides: tuple[Dataset, Dataset], settings: AlignmentSettings) -> Dataset:
    alignments = alignments_dataset(*sides, "tiny", settings)
    align_datasets(*sides, alignments, EDGES)
    return alignments


def test_one_sided_bytes_are_counted(one_sided: tuple[Dataset, Dataset]) -> None:
    manifest = run(*one_sided).complete_manifest()
    names = ("aligned_bytes", "teacher_only_bytes", "teacher_only_whole_bytes.user", "teacher_only_sections.user")
    assert [manifest.counts[name] for name in names] == [12, 3, 3, 1]
    assert manifest.dropped == {}


def test_one_sided_examples_are_dropped(one_sided: tuple[Dataset, Dataset]) -> None:
    alignments = with_settings(one_sided, AlignmentSettings("drop"))
    manifest = alignments.complete_manifest()
    assert manifest.dropped == {"one_sided_bytes": 1}
    assert (manifest.counts["teacher_only_bytes"], manifest.counts["aligned_bytes"]) == (0, 10)
    assert [bool(kinds) for kinds in alignments.read_shard(0)["kinds"].to_pylist()] == [True, False]
    assert alignments.name != alignments_dataset(*one_sided, "tiny").name


@pytest.mark.bad_input
def test_one_sided_examples_are_refused(one_sided: tuple[Dataset, Dataset]) -> None:
    problem = r"example 0-1: only the teacher's tokens show 3 bytes of the role user .*corpus\.one_sided"
    with pytest.raises(UserError, match=problem):
        with_settings(one_sided, AlignmentSettings("refuse"))
    same = (one_sided[0], one_sided[0])
    assert with_settings(same, AlignmentSettings("refuse")).complete_manifest().rows == 3


@pytest.mark.bad_input
def test_sides_that_show_none_of_the_same_bytes_are_refused(tmp_path: Path) -> None:
    other = Row((0, 3, 0), (START, 0, END), (0, 0, 0), uncovered={2: 2}, **ROLES)
    teacher, student = (
        tokens_dataset(tmp_path, "tiny-llama", [[HIDDEN]]),
        tokens_dataset(tmp_path, "tiny-gemma", [[other]]),
    )
    with pytest.raises(UserError, match=r"have no bytes in common \(2 are shown by the teacher's"):
        run(teacher, student)


def test_a_dropped_side_may_have_no_roles(tmp_path: Path) -> None:
    row = Row((0, 3, 0, 0, 2, 0), **CHAT)
    teacher = tokens_dataset(tmp_path, "tiny-llama", [[DROPPED, row]])
    alignments = run(teacher, tokens_dataset(tmp_path, "tiny-gemma", [[row, row]]))
    assert alignments.read_shard(0)["assistant"].to_pylist() == [[], [False] * 4 + [True] * 2]


def test_resume_writes_only_the_shard_without_a_record(sides: tuple[Dataset, Dataset]) -> None:
    alignments = run(*sides)
    before = shard_files(alignments)
    for name in ("manifest.json", "shard-00000.json"):
        (Path(alignments.url) / name).unlink()
    after = shard_files(run(*sides))
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    rewritten = {name for name in after if after[name][1] != before[name][1]}
    assert rewritten == {"manifest.json", "shard-00000.json"}  # the shard itself exists
    assert shard_files(run(*sides)) == after


@dataclass(frozen=True)
class Watched(Dataset):
    """Records each shard that is to be written."""

    before: Callable[[int], None] = lambda shard: None

    def write_shard(self, shard: int, *args: object, **more: object) -> ShardRecord:
        self.before(shard)
        return super().write_shard(shard, *args, **more)  # type: ignore[arg-type]


def test_an_error_leaves_the_shards_before_it(sides: tuple[Dataset, Dataset]) -> None:
    def before(shard: int) -> None:
        if shard == 1:
            raise OSError("disk full")

    alignments = alignments_dataset(*sides, "tiny")
    failing = Watched(alignments.root, alignments.kind, alignments.label, alignments.identity, before)
    with pytest.raises(OSError, match="disk full"):
        align_datasets(*sides, failing, EDGES)
    assert alignments.record(0)
    assert not alignments.record(1)
    assert alignments.manifest() is None
    assert align_datasets(*sides, alignments, EDGES).rows == 5


def test_label_names_the_corpus_once(sides: tuple[Dataset, Dataset]) -> None:
    alignments = alignments_dataset(*sides, "tiny")
    assert alignments.label == "tiny-llama-to-gemma"
    assert alignments.kind == Kind.ALIGNMENTS
    assert alignments.name != alignments_dataset(sides[1], sides[0], "tiny").name


def test_tokens_of_other_examples(tmp_path: Path, sides: tuple[Dataset, Dataset]) -> None:
    other = tokens_dataset(tmp_path, "tiny-gemma", STUDENT, examples="tiny-2")
    with pytest.raises(UserError, match="tokens of different examples"):
        run(sides[0], other)


def test_mixed_up_ids(tmp_path: Path, sides: tuple[Dataset, Dataset]) -> None:
    mixed = tokens_dataset(tmp_path, "tiny-mixed", STUDENT[::-1])
    with pytest.raises(UserError, match="shard 0 contains different examples"):
        run(sides[0], mixed)


def test_empty_shards(tmp_path: Path) -> None:
    shards = [[], [Row((3,))], [DROPPED]]
    teacher = tokens_dataset(tmp_path, "tiny-llama", shards)
    manifest = run(teacher, tokens_dataset(tmp_path, "tiny-gemma", shards)).complete_manifest()
    assert [record.rows for record in manifest.shards] == [0, 1, 1]
    assert [record.counts["chunks"] for record in manifest.shards] == [0, 1, 0]


def test_tokens_have_to_be_complete(sides: tuple[Dataset, Dataset]) -> None:
    (Path(sides[1].url) / "manifest.json").unlink()
    with pytest.raises(UserError, match="not complete"):
        run(*sides)


def test_numba_is_loaded_only_to_align() -> None:
    modules = "alm_pipeline.alignment.stage, alm_pipeline.alignment.chunks"
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}, sys; assert 'numba' not in sys.modules"], check=False
    )
    assert done.returncode == 0


def test_groups_of_shards_are_written_as_all_at_once(sides: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    whole = files(run(*sides))
    moved = [replace(side, root=str(tmp_path / "parts")) for side in sides]
    for side, own in zip(sides, moved, strict=True):
        shutil.copytree(side.url, own.url)
        (Path(own.url) / "manifest.json").unlink()
    alignments = alignments_dataset(moved[0], moved[1], "tiny")
    (Path(moved[1].url) / "shard-00000.json").unlink()
    assert align_datasets(moved[0], moved[1], alignments, EDGES, [1]) is None
    with pytest.raises(UserError, match=r"shard-00000\.parquet: not complete"):
        align_datasets(moved[0], moved[1], alignments, EDGES, [0, 1])
    with pytest.raises(UserError, match="not complete"):
        align_datasets(moved[0], moved[1], alignments, EDGES)
    for side, own in zip(sides, moved, strict=True):
        shutil.copytree(side.url, own.url, dirs_exist_ok=True)
    align_datasets(moved[0], moved[1], alignments, EDGES, [1, 0])
    assert alignments.manifest() is None
    align_datasets(moved[0], moved[1], alignments, EDGES)
    assert files(alignments) == whole


def files(dataset: Dataset) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(dataset.url).iterdir()}
