"""A store in which every name, id and text is hostile, and the commands that print what is in it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from typer.main import get_command

from alm_pipeline.config import AlmConfig, FilesSource
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app

NAME = "e\x1b[31mv\x9b2Jil[bold]m[red]|`x`<b>:smile:\u202e$\\frac{$\x07\nline"
TEXTS = [
    "\x1b]0;title\x07 plain text [bold]not bold[/bold] [/] [link=http://x]y[/link]",
    "<script>alert(1)</script> | a | b | `code` ![i](http://x) :smile:",
    "\u202egnihton \u2066\u200b\u2028 \x9b31m \x00 nul \x7f \r over",
    "Änderung, 東京, 🙂👩‍👩‍👧, [unbalanced [[brackets]]",
]
IDS = [
    "\x1b[2Jid",
    "[/]",
    "a|b\n# c",
    "<img src=x>",
    "\u202eid",
    "i" * 3000,
    "tab\tid\r",
    "\x00",
    "https://u:pw@h/?s=1",
]


def write_corpus(folder: Path) -> str:
    """Write files with hostile names, one of which is not UTF-8, and return their pattern."""
    folder.mkdir(parents=True)
    rows = [{"id": IDS[k] if k < len(IDS) else f"{k}{NAME}", "text": f"{TEXTS[k % 4]} number {k}"} for k in range(40)]
    for part, name in enumerate((b"\xff\xfe[bold].jsonl", NAME.encode() + b".jsonl")):
        lines = [json.dumps(row) for row in rows[part::2]]
        (folder / os.fsdecode(name)).write_text("\n".join(lines))
    return f"{folder}/**"


def write_store(folder: Path, config: AlmConfig) -> Pipeline:
    """Run every stage with models in folders of hostile names, and leave hostile remains beside the results."""
    teacher, student = (shutil.copytree(name, folder / f"{side}{NAME}") for side, name in _models(config))
    source = FilesSource(urls=(write_corpus(folder / "corpus"),), format="jsonl")
    corpus = config.corpus.model_copy(update={"source": source, "id": "id", "held_out": 0.3})
    train = config.train.model_copy(update={"steps": 2, "checkpoint_steps": 1})
    changes = {"teacher": str(teacher), "corpus": corpus, "train": train}
    changes |= {"student": config.student.model_copy(update={"model": str(student)})}
    pipeline = Pipeline(config.model_copy(update=changes), str(folder / "store"))
    pipeline.run()
    remains = folder / "store" / "tokens" / os.fsdecode(b"\xff\x1b[1m[bold]")
    remains.mkdir(parents=True)
    for name in (b"shard-\xff\x1b.parquet", b".x\x1b.0123abcd.tmp", b"manifest.json"):
        (remains / os.fsdecode(name)).write_bytes(b"\x1b[31m{ damaged")
    Path(pipeline.examples.url, f"stray{NAME}").write_text("x")
    return pipeline


def _models(config: AlmConfig) -> list[tuple[str, str]]:
    return [("teacher", config.teacher), ("student", config.student.model)]


def read_only_commands(pipeline: Pipeline, folder: Path) -> dict[str, list[str]]:
    """Every command that only shows something, with the arguments that show most."""
    root, everything = pipeline.root, [*(dataset.url for dataset in pipeline.caches.values()), pipeline.student.url]
    corpus = str(folder / "corpus" / f"{NAME}.jsonl")
    columns = str(folder / f"columns{NAME}.jsonl")
    Path(columns).write_text(json.dumps({NAME: NAME, f"other{NAME}": 1}))
    student = pipeline.student.url
    commands = {
        "list": ["list", root],
        "verify": ["verify", root],
        "verify checksums": ["verify", root, "--checksums"],
        "repair": ["repair", root],
        "prune": ["prune", root, "--older-than", "0"],
        "prune all": ["prune", root, "--older-than", "0", "--incomplete", "--unused"],
        "list students": ["list", root, "--students"],
        "sort refused": ["list", root, "--sort", NAME],
        "head dropped": ["head", pipeline.alignments.url, "--dropped"],
        "inspect": ["inspect", pipeline.alignments.url],
        "audit": ["audit", student, "--examples", "3", "--tokens", "32", "--picture", str(folder / f"audit{NAME}.png")],
        "inspect summary": ["inspect", pipeline.alignments.url, "--summary"],
        "inspect html": ["inspect", pipeline.alignments.url, "--picture", str(folder / f"{NAME}.html")],
        "inspect png": ["inspect", pipeline.alignments.url, "--picture", str(folder / f"{NAME}.png")],
        "inspect missing": ["inspect", pipeline.alignments.url, "--example", NAME],
        "report": ["report", student, student, str(folder / f"{NAME}.html")],
        "report refused": ["report", pipeline.examples.url, str(folder / f"{NAME}.html")],
        "curves": ["curves", student, student, "--picture", str(folder / f"{NAME}.png")],
        "compare": ["compare", student, "--corpus", corpus, "--examples", "3"],
        "acceptance": ["acceptance", student, student, "--corpus", corpus, "--examples", "2", "--max-tokens", "4"],
        "contamination": [
            *("contamination", str(folder / "mine.yaml"), "--questions", corpus, "--text", "{text}", "--words", "3"),
        ],
        "compare by": ["compare", student, "--corpus", corpus, "--examples", "9", "--by", "id"],
        "tokenizers": [
            *("tokenizers", student, "--corpus", corpus, "--by", "id", "--model", pipeline.config.teacher),
            *("--picture", str(folder / f"{NAME}-tokenizers.png"), "--examples", "9"),
        ],
        "generate": ["generate", student, "The \x1b[31m", "--max-tokens", "4"],
        "check": ["check", str(folder / "mine.yaml"), "--storage", root, "--teacher", f"{folder}/{NAME}"],
        "check as JSON": ["check", str(folder / "mine.yaml"), "--storage", root, "--corpus", NAME, "--json"],
        "plan": ["plan", str(folder / "mine.yaml"), "--storage", root],
        "plan as JSON": ["plan", str(folder / "mine.yaml"), "--storage", root, "--json"],
        "show": ["show", str(folder / "mine.yaml")],
        "init": ["init", str(folder / "new.yaml"), "--corpus", corpus, "--student", NAME, "--teacher", NAME],
        "init columns": ["init", str(folder / "newer.yaml"), "--corpus", columns, "--goal", "bytes", "--student", NAME],
        "show missing": ["show", str(folder / f"{NAME}.yaml")],
        "delete refused": ["delete", pipeline.examples.url],
        "push refused": ["push", root, NAME],
        "usage": ["list", "a", NAME],
        "no option": ["list", f"--{NAME}"],
        "no command": [NAME],
        "no store": ["list", f"{folder}/{NAME}"],
        "no text": ["describe", "\udcff\x1b[31m"],
        "version": ["--version"],
        "help": ["--help"],
    }
    for url in everything:
        commands[f"describe {url.split('/')[-2]} {len(commands)}"] = ["describe", url]
        commands[f"head {url.split('/')[-2]} {len(commands)}"] = ["head", url, "-n", "5"]
        commands[f"lineage {url.split('/')[-2]} {len(commands)}"] = ["lineage", url]
    takes_json = {name for name, command in get_command(app).commands.items() if _has_option(command, "--json")}  # type: ignore[attr-defined]
    firsts = {
        line[0]: line
        for name, line in reversed(commands.items())
        if line[0] in takes_json - {"compare"} and name.startswith(line[0])
    }
    return commands | {f"{name} as JSON": [*line, "--json"] for name, line in firsts.items()}


def _has_option(command: Any, option: str) -> bool:
    return any(option in parameter.opts for parameter in command.params)
