"""The summary as it is printed."""

from pathlib import Path

from alm_pipeline.inspection.summary import summarize_alignments
from alm_pipeline.inspection.tables import tables
from tests.alm_pipeline.inspection.datasets import Chunk, Row, Side, write


def test_tables_of_a_summary(tmp_path: Path) -> None:
    teacher, student = Side([(1, 0, 2), (2, 2, 3), (3, 3, 9)]), Side([(1, 0, 3), (2, 3, 6), (3, 6, 9)])
    rows = [
        Row("0-0", "abc東京", teacher, student, [Chunk(2, 1, 3), Chunk(1, 2, 6)]),
        Row("0-1", "12", Side(dropped="too_long"), Side(dropped="changed"), []),
    ]
    found = {
        title.partition(",")[0]: printed
        for title, _, printed in tables(summarize_alignments(write(tmp_path, [rows]).url))
    }
    assert found["coverage by script"] == [
        ["all", "11", "81.82%", "2", "4.50", "4.50", "1.50", "1.50", "3.00", "3.00"],
        ["Latin", "3", "100.00%", "1", "3.00", "3.00", "2.00", "1.00", "1.50", "3.00"],
        ["Han", "6", "100.00%", "1", "6.00", "6.00", "1.00", "2.00", "6.00", "3.00"],
        ["digits", "2", "0.00%", "0", "", "", "", "", "", ""],
        ["prose", "11", "81.82%", "2", "4.50", "4.50", "1.50", "1.50", "3.00", "3.00"],
    ]
    assert found["content chunks by tokens"] == [["1:2", "1", "50.00%"], ["2:1", "1", "50.00%"]]
    assert found["content chunks by bytes"] == [["3-4", "1", "50.00%"], ["5-8", "1", "50.00%"]]
    assert found["largest content chunks"][0] == ["0", "0-0", "3-9", "1:2", "'東京'"]
    assert [row[:3] for row in found["dropped examples"]] == [
        ["alignments", "teacher: too_long, student: changed", "1"],
        ["student", "changed", "1"],
        ["teacher", "too_long", "1"],
    ]
