"""Seconds from the start of a process to its first tokens: `python -m benchmarks.startup [NAME …] [--run RECIPE …]`.

For each tokenizer, two processes are started with an empty cache folder of their own, one after the other: the second
finds what the first has recorded. Each does what a process of a pool does before it encodes its first texts, and
prints the seconds of every part, and those of the processor. With `--run`, `alm run RECIPE` is timed on a store where
it is finished.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from storage.urls import absolute_url

NAMES = ("gemma3", "llama3", "smollm2")
TEXTS = ["The quick brown fox jumps over the lazy dog.\n"] * 64


def main() -> None:
    options = arguments()
    if options.child:
        started, folder = options.child
        first_tokens(float(started), folder, with_flow=options.with_flow)
    else:
        for name in options.names:
            measure(name, with_flow=options.with_flow)
        if options.run:
            finished_run([*options.run, "--storage", options.storage])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--with-flow", action="store_true", help="import the flow's tasks, as a worker of Prefect does")
    parser.add_argument(
        "--run", nargs="+", metavar="RECIPE", help="a recipe and options that are finished in --storage"
    )
    parser.add_argument("--storage", default="alm-data")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(name: str, *, with_flow: bool) -> None:
    from tests.real_tokenizers import tokenizer_folder

    folder = absolute_url(str(tokenizer_folder(name)))
    with tempfile.TemporaryDirectory() as cache:
        for cached in ("nothing recorded", "recorded"):
            print(f"{name}, {cached}:", flush=True)
            command = [sys.executable, "-m", "benchmarks.startup", "--child", repr(time.monotonic()), folder]
            subprocess.run(
                command + ["--with-flow"] * with_flow,
                env=os.environ | {"ALM_CACHE": cache},
                check=True,
                stderr=sys.stderr,
            )


def first_tokens(started: float, folder: str, *, with_flow: bool) -> None:
    """Do what a process of a pool does before its first tokens, and go on until its fast engine is made."""
    with part("start and imports", started):
        if with_flow:
            import flows.tasks  # noqa: F401  # as a worker does, before it gets the pipeline
        import alm_pipeline.pipeline  # noqa: F401
        from alm_pipeline.models.tokenizer import LoadedTokenizer
        from alm_pipeline.runtime.threads import meanwhile
        from alm_pipeline.tokenization.encoder import ByteEncoder, load_spelling_kernel
        from alm_pipeline.tokenization.engines.fastokens import FastokensEngine
        from alm_pipeline.tokenization.engines.making import EngineInTheMaking
    tokenizer = LoadedTokenizer(folder)
    with part("identity"):
        _ = tokenizer.identity
    with part("byte view"):
        _ = tokenizer.view
    with part("standard engine and numba"), meanwhile(load_spelling_kernel):
        encoder = ByteEncoder(tokenizer)
    backend, view, standard = tokenizer.encoding_backend, encoder.view, encoder.standard
    engine = EngineInTheMaking("fastokens", lambda: FastokensEngine(backend, view, standard), standard)
    engine.making.start()
    with part("first texts"):
        encoder.with_engine(engine).encode(TEXTS)
    show("first tokens", time.monotonic() - started, time.process_time())
    with part("fast engine, in its thread"):
        engine.making.join()
    print(
        "  modules:", ", ".join(each for each in ("torch", "transformers", "prefect") if each in sys.modules) or "none"
    )


@contextmanager
def part(name: str, started: float | None = None) -> Iterator[None]:
    start, processor = started or time.monotonic(), 0 if started else time.process_time()
    yield
    show(name, time.monotonic() - start, time.process_time() - processor)


def show(name: str, seconds: float, processor: float) -> None:
    print(f"  {name:27} {seconds:6.2f} s, {processor:5.2f} s of the processor", flush=True)


def finished_run(run: list[str]) -> None:
    """Time a run that is finished, twice: the first time may record that it is."""
    for _ in range(2):
        started, before = time.monotonic(), os.times()
        subprocess.run([sys.executable, "-m", "flows.cli", "run", *run], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        show("alm run, finished", time.monotonic() - started, processor)


if __name__ == "__main__":
    main()
