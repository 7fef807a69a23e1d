"""The suite's texts, from files that are at hand: the source and the documentation of installed packages, and GSM8K.

Packages, and rows of GSM8K, are split by a hash of their names: most are what models are trained on from scratch, and
two disjoint sets are what students are distilled and measured on. Settings are chosen on the one, and reported on the
other.
"""

import gzip
import hashlib
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

TextSet = Literal["tuning", "report"]
Domain = Literal["python", "english", "maths"]
Share = Literal["pretraining"] | TextSet
TEXT_SETS: tuple[TextSet, ...] = get_args(TextSet)
DOMAINS: tuple[Domain, ...] = get_args(Domain)
SHARES: Mapping[Share, float] = {"pretraining": 0.7, "tuning": 0.15, "report": 0.15}
"""of the packages, and of the rows of GSM8K"""
GROUP_BYTES = 1_500_000
"""the most text of one package and domain: a few packages hold most of what is installed"""
FILE_BYTES = 60_000
"""a longer file is data or generated"""
_ENDINGS: Mapping[Domain, tuple[str, ...]] = {"python": (".py",), "english": (".md", ".rst", "METADATA")}
_LEAST_BYTES = 400
_MEASURED_CHARACTERS: Mapping[Domain, int] = {"python": 16_000, "english": 4_000, "maths": 4_000}
"""how much of a text students get: many short texts say more than few long ones"""


class Text(NamedTuple):
    group: str
    """the package, or the row: all texts of a group are of one share"""
    text: str


def share_of(group: str) -> Share:
    """Return what the texts of a group are for, by a hash of its name."""
    place, end = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32, 0.0
    for share, size in SHARES.items():
        end += size
        if place < end:
            return share
    raise AssertionError(f"the shares add up to {end}")


def installed_texts(domain: Domain, folders: Iterable[Path]) -> Iterator[Text]:
    """Yield the files of a domain in the packages of these folders, each content once, in one order everywhere."""
    seen = set[bytes]()
    for folder in folders:
        for package in sorted(folder.iterdir()):
            left = GROUP_BYTES
            for text in _package_texts(package, _ENDINGS[domain]):
                digest = hashlib.sha256(text.encode()).digest()
                if digest not in seen and left > 0:
                    seen.add(digest)
                    left -= len(text)
                    yield Text(_distribution(package.name), text)


def _distribution(name: str) -> str:
    """Return one name for a package and for the folder of its metadata."""
    return name.split("-")[0].split(".")[0].lower()


def _package_texts(package: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Yield the package's files with these endings that are texts of a fair size."""
    if package.name in ("site-packages", "dist-packages", "__pycache__"):  # of the standard library's folder
        return
    for file in sorted(package.rglob("*")) if package.is_dir() else [package]:
        if file.name.endswith(endings) and "license" not in file.name.lower() and file.is_file():
            text = file.read_bytes().decode("utf-8", errors="replace")
            if "\ufffd" not in text and _LEAST_BYTES <= len(text) <= FILE_BYTES:
                yield text


def maths_texts(file: Path) -> Iterator[Text]:
    """Yield the problems of GSM8K with their solutions."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield Text(row["question"], f"Question: {row['question']}\nAnswer: {row['answer']}\n")


def installed_folders() -> list[Path]:
    """Return where Python's standard library and the installed packages are."""
    paths = sysconfig.get_paths()
    return [Path(paths["stdlib"]), Path(paths["purelib"])]


def write_texts(root: Path, gsm8k: Path, folders: Sequence[Path] | None = None) -> dict[Share, dict[Domain, Path]]:
    """Write the texts of each share and domain as JSON lines, unless they are there; return the files.

    `folders` are those of packages (None: the installed ones).
    """
    files = {share: {domain: root / "texts" / f"{share}-{domain}.jsonl" for domain in DOMAINS} for share in SHARES}
    if all(file.exists() for of_share in files.values() for file in of_share.values()):
        return files
    (root / "texts").mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        rows: dict[Share, list[str]] = {share: [] for share in SHARES}
        read = maths_texts(gsm8k) if domain == "maths" else installed_texts(domain, folders or installed_folders())
        for text in read:
            rows[share_of(text.group)].append(text.text)
        for share, texts in rows.items():
            random.Random(0).shuffle(texts)
            most = None if share == "pretraining" else _MEASURED_CHARACTERS[domain]
            _write_lines(files[share][domain], (text[:most] for text in texts))
    return files


def _write_lines(file: Path, texts: Iterable[str]) -> None:
    partial = file.with_suffix(".partial")
    rows = ({"id": f"{number}", "text": text} for number, text in enumerate(texts))
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)


def read_lines(file: Path) -> list[str]:
    """Return the texts of a file that `write_texts` wrote."""
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").split("\n") if line]
