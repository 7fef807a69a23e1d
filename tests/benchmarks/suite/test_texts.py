"""The shares of the suite's texts have nothing in common, and are the same everywhere."""

import gzip
import json
from pathlib import Path

from benchmarks.suite.texts import (
    DOMAINS,
    SHARES,
    Text,
    installed_texts,
    maths_texts,
    read_lines,
    share_of,
    write_texts,
)


def test_shares_are_as_large_as_they_are_declared() -> None:
    assert sum(SHARES.values()) == 1
    shares = [share_of(f"package-{number}") for number in range(4000)]
    for share, size in SHARES.items():
        assert abs(shares.count(share) / 4000 - size) < 0.02


def test_a_package_and_its_metadata_are_one_group(tmp_path: Path) -> None:
    (tmp_path / "Some").mkdir()
    (tmp_path / "some-1.0.dist-info").mkdir()
    (tmp_path / "Some" / "code.py").write_text("x = 1\n" * 100)
    (tmp_path / "Some" / "data.py").write_bytes(b"\xff" * 1000)  # not text
    (tmp_path / "Some" / "copy.py").write_text("x = 1\n" * 100)
    (tmp_path / "Some" / "short.py").write_text("x = 1\n")
    (tmp_path / "some-1.0.dist-info" / "METADATA").write_text("A package that does some things. " * 20)
    (tmp_path / "some-1.0.dist-info" / "LICENSE.md").write_text("Permission is granted. " * 50)
    (code,) = installed_texts("python", [tmp_path])
    (metadata,) = installed_texts("english", [tmp_path])
    assert code == Text("some", "x = 1\n" * 100)
    assert metadata.group == "some"


def test_texts_are_written_once_and_each_is_of_one_share(tmp_path: Path) -> None:
    rows = [
        {"question": f"How much is {n} and {n}?", "answer": f"{n}+{n} = {2 * n}\u2028#### {2 * n}"} for n in range(60)
    ]
    gsm8k = tmp_path / "gsm8k.jsonl.gz"
    gsm8k.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    installed = tmp_path / "installed"
    for number in range(30):
        (installed / f"package{number}").mkdir(parents=True)
        (installed / f"package{number}" / "code.py").write_text(f"x = {number}\n" * 100)
        (installed / f"package{number}" / "README.md").write_text(f"This is package {number}. " * 100)
    files = write_texts(tmp_path / "suite", gsm8k, [installed])
    texts = {(share, domain): read_lines(files[share][domain]) for share in SHARES for domain in DOMAINS}
    for domain in DOMAINS:
        of_domain = [text for share in SHARES for text in texts[share, domain]]
        assert len(of_domain) == len(set(of_domain)) == (60 if domain == "maths" else 30)
    assert {text.text for text in maths_texts(gsm8k)} == {text for share in SHARES for text in texts[share, "maths"]}
    gsm8k.unlink()  # what is there is not read again
    assert write_texts(tmp_path / "suite", gsm8k, [installed]) == files
