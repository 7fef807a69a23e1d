"""Runs commands of a list in one process, each with its output in files, as a shell would with each of them alone.

python -m tests.flows.cli.every_command LIST FOLDER {file,broken pipe}
"""

import json
import os
import sys
from pathlib import Path

from alm_pipeline.__main__ import _run as run_command
from alm_pipeline.runtime.streams import prepare_streams


def _run(arguments: list[str], folder: Path, name: str, is_broken: bool) -> int:
    files = [os.open(folder / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT) for stream in ("out", "err")]
    if is_broken:
        reader, files[0] = os.pipe()
        os.close(reader)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    # what a stream knows of its file (whether it can seek) is no longer true
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding=stream.encoding, errors="strict", closefd=False)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    sys.argv = ["alm", *arguments]
    try:
        prepare_streams()
        run_command()  # without a supervisor, whose worker would go on here
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
            return 1
        return int(end.code or 0)
    return 0


def run_all(commands: dict[str, list[str]], folder: Path, is_broken: bool) -> None:
    codes = {}
    for number, (name, arguments) in enumerate(commands.items()):
        codes[name] = _run([os.fsdecode(bytes(part)) for part in arguments], folder, str(number), is_broken)  # type: ignore[arg-type]
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    run_all(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), sys.argv[3] == "broken pipe")
