"""The rooms of the code, in reading order: a table with a sentence for each, and a picture.

The order is that of `tests/test_layers.py`, where a test holds that a room imports only from rooms before it.
"""

import ast
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

from docs.generator.markdown import code, table
from docs.generator.markdown import escape as escape_markdown

ROOT = Path(__file__).parents[2]

PURPOSES = {
    "storage.printed": "What is shown or stored has no secrets, and foreign text in it is inert.",
    "storage.local": "This machine: files that are written whole or not at all, and the process that holds a lease.",
    "storage.kinds": "Columns of datasets that are not of a distillation.",
    "storage": "Datasets of Parquet shards under any URL: schemas, manifests, reading, leases, replacing.",
    "storage.upkeep": "What is stored under a root: catalog, lineage, verification, pruning.",
    "alm_pipeline.runtime": "Progress bars with rates, threads, memory given back, and what need not be derived again.",
    "alm_pipeline.config.fields": "What each setting is called, takes and means: nearest names, commented YAML.",
    "alm_pipeline.config": "The configuration of a run, one model per stage.",
    "alm_pipeline.recipes": "Configurations to begin with, and how options and `--set` change them.",
    "alm_pipeline.naming": "What things are called: runs and students, columns in words, the scripts of texts.",
    "alm_pipeline.vocabulary": "The bytes that each token of a vocabulary stands for.",
    "alm_pipeline.conversations": "The sections of conversations, and the text that both sides share.",
    "alm_pipeline.corpus.files": "A corpus's files: which are read, what each is, whether it has changed.",
    "alm_pipeline.corpus.formats": "What a corpus's rows are: conversations, prompts with completions, and others.",
    "alm_pipeline.corpus": "From a source to examples: reading, cutting, ids, the held-out split.",
    "alm_pipeline.filtering": "What documents repeat others or contain evaluations: signatures, and one pass.",
    "alm_pipeline.models.health": "What is wrong with a model's or tokenizer's files and weights, in one sentence.",
    "alm_pipeline.models.demo": "Small real models from package registries, for machines without a model hub.",
    "alm_pipeline.models": "Models and tokenizers by name: their files, loading, the output head.",
    "alm_pipeline.tokenization.templates": "The template that a setting names, with its arguments written into it.",
    "alm_pipeline.tokenization.chat": "Chat templates: which bytes of a rendered conversation are content.",
    "alm_pipeline.new_tokenizer": "Makes the student's tokenizer: trained on the corpus, or of single bytes.",
    "alm_pipeline.tokenization.engines": "The tokenizer engines, and the proof that a fast one gives the same ids.",
    "alm_pipeline.tokenization": "Token ids, and the bytes of the text that each token covers, verified.",
    "alm_pipeline.alignment": "Aligned chunks of both tokenizations, by a compiled loop.",
    "alm_pipeline.scoring.served": "Servers and engines that score: what they are asked, answer, and how they start.",
    "alm_pipeline.scoring.backends": "The output head by pieces of the vocabulary, or on a GPU as was measured best.",
    "alm_pipeline.scoring": "The teacher's two log-probabilities per token, without a dense log-softmax.",
    "alm_pipeline.exactness": "Byte-prefix sums: what a text's bytes are worth, whatever tokens spell them.",
    "alm_pipeline.evaluation": "Bits per byte on held-out text; intervals; tasks over local files.",
    "alm_pipeline.objective.chunking": "Where chunks end: the chunkings and the loop that merges chunks.",
    "alm_pipeline.objective": "The ALM loss, its divergences, and how terms are weighted.",
    "alm_pipeline.objective.baselines": "The baselines ULD, MinED, DSKD, GOLD and SimCT.",
    "alm_pipeline.hypernetwork.networks": "Networks that predict a new token's embeddings from those of its pieces.",
    "alm_pipeline.transfer.level": "How likely new tokens are as a whole, before training.",
    "alm_pipeline.transfer": "A new tokenizer's embeddings without training, and task arithmetic.",
    "alm_pipeline.transfer.bytes": "Models of bytes, with n-gram embeddings.",
    "alm_pipeline.hypernetwork.sampling": "Tokenizers drawn at random: what a hypernetwork is trained on.",
    "alm_pipeline.merging": "A model between a base and its tuned child.",
    "alm_pipeline.training.parallel": "Several processes that train one student.",
    "alm_pipeline.training.data": "From the caches, in a shuffled order, to packed batches.",
    "alm_pipeline.training.model": "The student's forward pass, the terms of a micro-batch, a teacher in memory, LoRA.",
    "alm_pipeline.training.loop": "Steps, evaluations, checkpoints, moving average, trackers.",
    "alm_pipeline.training.student": "What training writes: the student's folder, its card, its curves.",
    "alm_pipeline.training": "The stage that makes the student.",
    "alm_pipeline.ensemble": "Several models as one.",
    "alm_pipeline.rollouts": "What a model, here or behind an endpoint, writes on prompts: examples like any others.",
    "alm_pipeline.calibration.report": "Calibration from scores alone: measures, intervals, the front, pictures.",
    "alm_pipeline.calibration": "Multiple-choice questions, and what models and merges make of them.",
    "alm_pipeline.inspection": "Alignments to look at: frames, summaries, pictures.",
    "alm_pipeline.comparison": "Models side by side on the same texts.",
    "alm_pipeline.editing.directions": "From demonstrations to the directions along which activations are edited.",
    "alm_pipeline.editing": "Edited models: edits folded into weights, or in a file of code; what they do.",
    "alm_pipeline.tokenizer_report": "Tokenizers side by side: lengths, vocabularies, chunks, what a transfer costs.",
    "alm_pipeline.student_report": "Students as one HTML page: results, curves, samples, data flow, lineage.",
    "alm_pipeline.preflight": "What is looked at before a run: its settings, first rows and models, and the findings.",
    "alm_pipeline.preflight.checks": "The checks that find within seconds what would stop a run.",
    "alm_pipeline": "The stages in order, without Prefect; repair and reports.",
    "alm_pipeline.methods": "Students of several methods on the same caches, side by side.",
    "alm_pipeline.rounds": "On-policy rounds: from student to student, and what each is worth on what it writes.",
    "alm_pipeline.audit": "How exact the targets of chunks are: a student or caches against byte-prefix sums.",
    "alm_pipeline.hypernetwork": "Trains a hypernetwork; a model that changes its tokenizer on the fly.",
    "alm_pipeline.planning.speed": "How fast this machine is: what earlier runs recorded, and a short trial.",
    "alm_pipeline.planning": "What a run would do and how long it takes; what is finished already.",
    "flows.execution": "Where tasks run: jobs, runners, retries and the GPU pool.",
    "flows": "Orchestration only: the Prefect flows and their tasks.",
    "flows.models": "Flows that make several models or models of others, and measure them.",
    "flows.terminal": "What the commands print on, and the options that several of them share.",
    "flows.cli.models": "The commands that make models of others, and that use finished ones.",
    "flows.cli": "The command `alm`.",
}
"""Each room's purpose; `tests/test_docs.py` holds that every room has one."""

_COLORS = {"storage": "#e0f2f1", "alm_pipeline": "#e8eaf6", "flows": "#fff3e0"}
_WIDTH, _BOX_WIDTH, _BOX_HEIGHT, _GAP = 1080, 248, 44, 12


def room_names() -> list[str]:
    """`ROOMS` of `tests/test_layers.py`, read without importing the tests."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    values = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS"
    )
    return list(ast.literal_eval(next(values)))


def rooms_table() -> str:
    """A row per room: its folder, its purpose and its modules with the first line of their docstrings."""
    rows = [(code(folder(name)), escape_markdown(PURPOSES[name]), _modules(name)) for name in room_names()]
    return table(("room", "what it is for", "modules"), rows)


def folder(room: str) -> str:
    """A room's folder, from the root of the checkout."""
    return room.replace(".", "/") + "/"


def _modules(room: str) -> str:
    files = sorted((ROOT / folder(room)).glob("*.py"))
    return ", ".join(code(file.name) for file in files if file.name != "__init__.py")


def picture() -> str:
    """An SVG of the rooms in reading order: a band for each of the three packages."""
    shapes, y = [], _GAP
    for package, names in groupby(room_names(), lambda name: name.split(".")[0]):
        band, y = _band(package, list(names), y)
        shapes += band
    style = "text{font:13.5px sans-serif;fill:#222}.package{font:600 15px monospace}.room{font:13px monospace}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img" aria-label="Rooms of the code">'
    )
    return "\n".join([head, f"<style>{style}</style>", *shapes, "</svg>\n"])


def _band(package: str, names: list[str], y: int) -> tuple[list[str], int]:
    """A package's band at `y`, and where the next one begins."""
    boxes = list(_boxes(names, y + 34))
    rows = -(-len(names) // _columns())
    height = 34 + rows * (_BOX_HEIGHT + _GAP)
    background = f'<rect x="0" y="{y}" width="{_WIDTH}" height="{height}" rx="10" fill="{_COLORS[package]}"/>'
    title = f'<text x="{_GAP}" y="{y + 22}" class="package">{package}/</text>'
    return [background, title, *boxes], y + height + _GAP


def _boxes(names: list[str], y: int) -> Iterator[str]:
    for index, name in enumerate(names):
        row, column = divmod(index, _columns())
        left, top = _GAP + column * (_BOX_WIDTH + _GAP), y + row * (_BOX_HEIGHT + _GAP)
        label = "/".join(name.split(".")[1:]) + "/" if "." in name else "(its own modules)"
        yield (
            f'<g><title>{escape(PURPOSES[name])}</title><rect x="{left}" y="{top}" width="{_BOX_WIDTH}" '
            f'height="{_BOX_HEIGHT}" rx="6" fill="#fff" stroke="#888"/>'
            f'<text x="{left + 10}" y="{top + 27}" class="room">{room_names().index(name) + 1}. {label}</text></g>'
        )


def _columns() -> int:
    return (_WIDTH - _GAP) // (_BOX_WIDTH + _GAP)
