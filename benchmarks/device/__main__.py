"""Every section in a process of its own; then the table. Of this project, only the sections' modules are imported."""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

import benchmarks.device
from benchmarks.device import SMALL, STARTED
from benchmarks.device.measuring import Line, Lines, failed


class Section(NamedTuple):
    module: str
    """of the function with the section's name"""
    budget: float
    """seconds"""

    def function(self, name: str) -> Callable[[], Lines]:
        function: Callable[[], Lines] = getattr(import_module(self.module), name)
        return function


SECTIONS = {
    "environment": Section("benchmarks.device.measuring", 30),
    "head_correctness": Section("benchmarks.device.head", 60),
    "scoring_correctness": Section("benchmarks.device.scoring", 30),
    "training_correctness": Section("benchmarks.device.training", 45),
    "head_speed": Section("benchmarks.device.head", 100),
    "scoring_speed": Section("benchmarks.device.scoring", 60),
    "training_speed": Section("benchmarks.device.training", 60),
    "reader": Section("benchmarks.device.training", 45),
    "attention": Section("benchmarks.device.attention", 40),
    "fsdp": Section("benchmarks.device.attention", 45),
    "compiled": Section("benchmarks.device.scoring", 90),
}
TOTAL_S = 450.0
"""under 8 minutes, imports included: what is left for a section is cut to it"""


def main() -> int:
    options = arguments()
    import_sections(options.section)
    report, method = dict[str, Any](), start_method()
    for name in options.section:
        left = TOTAL_S - (time.monotonic() - STARTED)

        def record(section: dict[str, Any], name: str = name) -> None:
            report[name] = section
            write(report, options.output)  # what there is, if this is ended from outside

        section = run_apart(name, min(SECTIONS[name].budget, left), method, record) if left > 5 else unstarted()
        record(section)
        print(f"{name}: {section['seconds']:.0f} s {section['error']}", file=sys.stderr, flush=True)
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


def import_sections(names: list[str]) -> None:
    """Import what the sections need once, for the processes that are forked; what fails is the section's own error."""
    for name in names:
        with contextlib.suppress(Exception):
            SECTIONS[name].function(name)


def unstarted() -> dict[str, Any]:
    return {"lines": [], "error": "not started: no time was left", "seconds": 0.0}


def start_method() -> str:
    """Fork, since imports take ten seconds, unless a library has touched CUDA while it was imported."""
    pid = os.fork()
    if not pid:
        os._exit(int(torch.cuda._is_in_bad_fork()))
    _, status = os.waitpid(pid, 0)
    return "spawn" if status else "fork"


def run_apart(
    name: str, budget: float, method: str, record: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Run a section in a process of its own, which is ended after `budget` seconds; what it has by then counts.

    `record` is called with what there is after each line.
    """
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_section, args=(name, sender, os.getpid()))
    started = time.perf_counter()
    process.start()
    sender.close()
    lines = list[Line]()
    while isinstance(content := next_content(receiver, process, started, budget), Line):
        lines.append(content)
        record({"lines": lines, "error": "not ended yet", "seconds": time.perf_counter() - started})
    end_group(process)
    return {"lines": lines, "error": content, "seconds": time.perf_counter() - started}


def next_content(receiver: Connection, process: Any, started: float, budget: float) -> Line | str:
    """The next line of a section, or its error; "" if it has ended without one."""
    try:
        while (left := budget - (time.perf_counter() - started)) > 0:
            if receiver.poll(min(left, 1.0)):
                content: Line | str = receiver.recv()
                return content
            # the pipe has no end while a process that the section has started holds it
            if not process.is_alive() and not receiver.poll():
                break
        else:
            return f"ended after {budget:.0f} s, its time"
    except EOFError:
        process.join(10)
    return f"its process ended with status {process.exitcode}"


def end_group(process: Any) -> None:
    """Kill a section's process and all that it has started, such as the workers of a compiler."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(10)


def end_with_parent(parent: int) -> None:
    """Kill this process and its group once its parent has ended, however that ended: a GPU is not left in use."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run_section(name: str, sender: Connection, parent: int) -> None:
    """Send each line of a section, and last its error; "" if there is none."""
    os.setpgid(0, 0)
    end_with_parent(parent)
    # how the head and the batches were chosen
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
    error = ""
    try:
        for line in SECTIONS[name].function(name)():
            value = line.value if isinstance(line.value, str) else float(line.value)
            sender.send(line._replace(value=value))
    except BaseException as problem:
        traceback.print_exc()
        error = failed(problem)
    sys.stderr.flush()
    # the parent does not wait for the pipe's end, which the section's own children may hold
    sender.send(error)
    os._exit(0)  # without the exit handlers of a parent


def write(report: Mapping[str, Any], output: Path | None) -> None:
    """Write the report as it is now, whole or not at all; an error is only printed."""
    if not output:
        return
    sections = {
        name: section | {"lines": [line._asdict() | {"is_wrong": line.is_wrong} for line in section["lines"]]}
        for name, section in report.items()
    }
    content = {"small": SMALL, "seconds": time.monotonic() - STARTED, "sections": sections}
    unfinished = output.with_name(f"{output.name}.part")
    try:
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.replace(output)
    except OSError as error:  # the table is still to come
        print(f"{output}: {error}", file=sys.stderr, flush=True)


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
