"""Every section in a process of its own; then the table."""

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

import benchmarks.device
from benchmarks.device import SMALL
from benchmarks.device.attention import attention, fsdp
from benchmarks.device.head import head_correctness, head_speed
from benchmarks.device.measuring import Line, Lines, environment, failed
from benchmarks.device.scoring import compiled, scoring_correctness, scoring_speed
from benchmarks.device.training import reader, training_correctness, training_speed


class Section(NamedTuple):
    run: Callable[[], Lines]
    budget: float
    """seconds"""


SECTIONS = {
    "environment": Section(environment, 30),
    "head_correctness": Section(head_correctness, 60),
    "scoring_correctness": Section(scoring_correctness, 30),
    "training_correctness": Section(training_correctness, 45),
    "head_speed": Section(head_speed, 100),
    "scoring_speed": Section(scoring_speed, 60),
    "training_speed": Section(training_speed, 60),
    "reader": Section(reader, 45),
    "attention": Section(attention, 40),
    "fsdp": Section(fsdp, 45),
    "compiled": Section(compiled, 90),
}
TOTAL_S = 450.0
"""under 8 minutes with the imports: what is left for a section is cut to it"""


def main() -> int:
    options = arguments()
    started, report, method = time.perf_counter(), dict[str, Any](), start_method()
    for name in options.section:
        left = TOTAL_S - (time.perf_counter() - started)
        budget = min(SECTIONS[name].budget, left)
        report[name] = run_apart(name, budget, method) if left > 5 else unstarted()
        print(f"{name}: {report[name]['seconds']:.0f} s {report[name]['error']}", file=sys.stderr, flush=True)
        write(report, options.output, time.perf_counter() - started)  # what there is, if this is ended from outside
    print(table(report))
    wrong = any(line.is_wrong for section in report.values() for line in section["lines"])
    return int(wrong or any(section["error"] for section in report.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=benchmarks.device.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="everything small, on a processor")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    out = os.environ.get("OUT")
    parser.add_argument("--output", type=Path, default=Path(out, "device.json") if out else None)
    return parser.parse_args()


def unstarted() -> dict[str, Any]:
    return {"lines": [], "error": "not started: no time was left", "seconds": 0.0}


def start_method() -> str:
    """Fork, since imports take ten seconds, unless a library has touched CUDA while it was imported."""
    pid = os.fork()
    if not pid:
        os._exit(int(torch.cuda._is_in_bad_fork()))
    _, status = os.waitpid(pid, 0)
    return "spawn" if status else "fork"


def run_apart(name: str, budget: float, method: str) -> dict[str, Any]:
    """Run a section in a process of its own, which is ended after `budget` seconds; what it has by then counts."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_section, args=(name, sender))
    started = time.perf_counter()
    process.start()
    sender.close()
    lines, error = list[Line](), ""
    try:
        while (left := budget - (time.perf_counter() - started)) > 0 and receiver.poll(left):
            content = receiver.recv()
            if isinstance(content, Line):
                lines.append(content)
            else:
                error = content
        if time.perf_counter() - started >= budget:
            error = f"ended after {budget:.0f} s, its time"
    except EOFError:
        pass
    if error.startswith("ended"):
        process.kill()
    process.join(10)
    if not error and process.exitcode:
        error = f"its process ended with status {process.exitcode}"
    return {"lines": lines, "error": error, "seconds": time.perf_counter() - started}


def run_section(name: str, sender: Connection) -> None:
    # how the head and the batches were chosen
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
    try:
        for line in SECTIONS[name].run():
            value = line.value if isinstance(line.value, str) else float(line.value)
            sender.send(line._replace(value=value))
    except BaseException as error:
        traceback.print_exc()
        sender.send(failed(error))
    sender.close()
    sys.stderr.flush()
    os._exit(0)  # without the exit handlers of a parent


def write(report: Mapping[str, Any], output: Path | None, taken: float) -> None:
    sections = {
        name: section | {"lines": [line._asdict() | {"is_wrong": line.is_wrong} for line in section["lines"]]}
        for name, section in report.items()
    }
    content = json.dumps({"small": SMALL, "seconds": taken, "sections": sections}, indent=1)
    if output:
        output.write_text(content)


def table(report: Mapping[str, Any]) -> str:
    rows = []
    for name, section in report.items():
        rows.append(f"\n{name} ({section['seconds']:.0f} s)")
        for line in section["lines"]:
            value = line.value if isinstance(line.value, str) else f"{line.value:,.4g}"
            limit = "" if line.limit is None else f" (at most {line.limit:g})"
            rows.append(f"  {'WRONG ' if line.is_wrong else ''}{line.what}: {value} {line.unit}{limit}".rstrip())
        if section["error"]:
            rows.append(f"  FAILED {section['error']}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
