"""Preparing a corpus against bare tokenization: `python -m benchmarks.prepare [--megabytes 140] [--teacher NAME] …`.

Timed in turn in one run, on the same documents and threads: two bare `encode_batch_fast` calls, and the stages that
tokenize with both sides' tokenizers, verify every byte, align, and write all of it as Parquet; with the standard
engine, and with the fast one, which is built and, in a first run, proven. Loading the tokenizers is left out on all
sides. A text of less than 130 bytes per token of a vocabulary and core is encoded by the standard engine anyway.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from alm_pipeline.alignment.ends import SideEdges
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization import prepared_encoders, stage
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.engines.findings import Findings
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES, EngineFactory
from alm_pipeline.tokenization.prepared_encoders import Encoders
from alm_pipeline.vocabulary.text_forms import NFC, TextNormalizer
from benchmarks.corpus import mixed_documents
from storage.dataset import Dataset
from tests.corpora import text_examples
from tests.real_tokenizers import tokenizer_folder

BATCH = 1024


def main() -> None:
    options = arguments()
    shard_bytes = options.shard_megabytes * 2**20
    names = [name if "/" in name else str(tokenizer_folder(name)) for name in (options.teacher, options.student)]
    normalize = TextNormalizer([NFC])
    documents = [normalize(text) for text in mixed_documents(options.megabytes)]
    started = time.perf_counter()
    encoders = {name: ByteEncoder(LoadedTokenizer(name)) for name in names}
    print(f"{options.teacher} and {options.student}, loaded in {time.perf_counter() - started:.1f} s")
    with (
        tempfile.TemporaryDirectory() as root,
        patch.object(stage, "ByteEncoder", lambda tokenizer, *_: encoders[tokenizer.name]),
    ):
        prepare(text_examples(Path(root), shards(documents[:100], shard_bytes), "warm"), encoders, {})  # compiles
        examples = text_examples(Path(root), shards(documents, shard_bytes))
        print(f"{examples.complete_manifest().counts['text_bytes'] / 1e6:.1f} MB, {len(documents)} documents")
        rounds = [measure(examples, encoders, documents) for _ in range(options.rounds)]
    for name, column in zip(("standard", "fast, proven first", "fast, known"), zip(*rounds, strict=True), strict=True):
        print(f"ratio, {name}: median {median(column):.3f}, {min(column):.3f} to {max(column):.3f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=140)
    # the first shard is encoded by both engines: a small text needs small shards to tell what a large one costs
    parser.add_argument("--shard-megabytes", type=float, default=4)
    parser.add_argument("--teacher", default="gemma3")
    parser.add_argument("--student", default="llama3")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def shards(documents: list[str], shard_bytes: float) -> list[list[str]]:
    made: list[list[str]] = []
    size = shard_bytes
    for document in documents:
        if size >= shard_bytes:
            made.append([])
            size = 0
        made[-1].append(document)
        size += len(document.encode())
    return made


def measure(examples: Dataset, encoders: dict[str, ByteEncoder], documents: list[str]) -> tuple[float, ...]:
    """The ratios to the bare calls with the standard engine, and with the fast one before and after it is proven."""
    writing = Writing()
    bare, standard, fast = (
        partial(encode, encoders, documents),
        partial(writing.watch, partial(prepare, examples, encoders, {})),
        partial(prepare, examples, encoders, FAST_ENGINES),
    )
    with tempfile.TemporaryDirectory() as folder:
        findings = Findings(Path(folder), {})
        with patch.object(prepared_encoders, "machine_findings", lambda: findings):
            # the machine's speed drifts: bare before and behind each
            runs = [seconds(run) for run in (bare, standard, bare, fast, fast, bare)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    measured = "bare {:.1f}, standard {:.1f}, bare {:.1f}, fast {:.1f}, again {:.1f}, bare {:.1f} s".format(*runs)
    print(f"{measured}; writing {writing.share:.1%} of standard's processor time; memory {peak:.2f} GB", flush=True)
    return tuple(2 * runs[k] / (runs[before] + runs[after]) for k, before, after in ((1, 0, 2), (3, 2, 5), (4, 2, 5)))


class Writing:
    """The share of some work's processor time that goes into writing shards."""

    share = 0.0

    def watch(self, work: Callable[[], object]) -> None:
        spent: list[float] = []
        write_shard = Dataset.write_shard

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            record = write_shard(*arguments, **named)
            spent.append(time.thread_time() - started)
            return record

        started = time.process_time()
        with patch.object(Dataset, "write_shard", timed):
            work()
        self.share = sum(spent) / (time.process_time() - started)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def encode(encoders: dict[str, ByteEncoder], documents: list[str]) -> None:
    for encoder in encoders.values():
        backend = encoder.tokenizer.encoding_backend
        for start in range(0, len(documents), BATCH):
            backend.encode_batch_fast(documents[start : start + BATCH])


def prepare(examples: Dataset, encoders: dict[str, ByteEncoder], engines: Mapping[str, EngineFactory]) -> None:
    """What the pipeline does, into a new root."""
    with tempfile.TemporaryDirectory() as root:
        sides = []
        for encoder in encoders.values():
            tokens = stage.tokens_dataset(examples, encoder.tokenizer, None)
            sides.append(Dataset(root, tokens.kind, tokens.label, tokens.identity))
            stage.tokenize(examples, sides[-1], encoder.tokenizer, None, encoders=Encoders(engines))
        teacher, student = sides
        edges = SideEdges.of(*(encoder.view for encoder in encoders.values()))
        align_datasets(teacher, student, alignments_dataset(teacher, student, examples.label), edges)


if __name__ == "__main__":
    main()
