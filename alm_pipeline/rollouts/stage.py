"""The stage PROMPTS → ROLLOUTS: a model continues prompts, and what it writes are examples like any others.

Every later stage takes them as a corpus of prompts with completions: only what was written is learned. Where the writer
is a model in this process, its own tokens are kept, so that encoding the text again can't change them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from alm_pipeline.config import PromptsConfig, SamplingConfig
from alm_pipeline.rollouts.prompts import Place, Prompt, PromptChoice, choose, read_prompts
from alm_pipeline.rollouts.written import LeftOut, Written, columns_of, counts_of
from alm_pipeline.runtime.progress import track
from storage.dataset import Dataset, Manifest
from storage.errors import UserError
from storage.printed.counts import counts_in_words
from storage.schemas import Kind
from storage.urls import join_url, remove

STAGE_VERSION = 1
_ANSWERS = "answers"
"""the part of an unfinished dataset's folder that holds single answers"""


class Writer(Protocol):
    """A model that writes."""

    @property
    def label(self) -> str:
        """A short readable name for folders."""

    @property
    def has_ids(self) -> bool:
        """Whether the tokens that it writes are known."""

    def identity(self) -> dict[str, Any]:
        """Return what decides what it writes, beside the sampling."""

    def check_unchanged(self) -> None:
        """Raise UserError if it is not the model any more that `identity` names."""

    def release(self) -> None:
        """Take the model out of memory; it is loaded again when it writes."""

    def write(self, prompts: Sequence[Prompt], rounds: Sequence[int], kept: str) -> list[Written | LeftOut]:
        """Write on each prompt.

        `rounds` are those whose random numbers each gets, and `kept` is a folder for single answers.
        """


def rollouts_dataset(
    examples: Dataset, writer: Writer, prompts: PromptsConfig, sampling: SamplingConfig, choice: PromptChoice
) -> Dataset:
    """Return the dataset of what a model writes on prompts of these examples, which need not be written yet."""
    own = writer.identity()
    identity = {
        "stage_version": STAGE_VERSION,
        "examples": examples.name,
        # apart, so that lineage finds the student that it is
        **({"model": own["model"]} if "model" in own else {}),
        "prompts": prompts.model_dump(mode="json"),
        "choice": choice.identity(),
        "writer": own,
        "sampling": sampling.identity(),
        # as the configuration of a corpus has it: later stages learn the completions alone
        "config": {"layout": "prompt_completion", "messages": None},
    }
    round_ = f"-round-{choice.round}" if choice.round else ""
    return Dataset(examples.root, Kind.EXAMPLES, f"{examples.label}{round_}-by-{writer.label}", identity)


def write_rollouts(
    rollouts: Dataset,
    examples: Dataset,
    writer: Writer,
    prompts: PromptsConfig,
    choice: PromptChoice,
    title: str = "write",
) -> Manifest:
    """Write every shard that is not written yet, and the manifest. Progress is shown under `title`.

    Raises UserError if nothing usable is written on any prompt of a split.
    """
    if manifest := rollouts.manifest():
        return manifest
    places = choose(examples, choice)
    groups = [places[start : start + prompts.per_shard] for start in range(0, len(places), prompts.per_shard)]
    missing = rollouts.missing(range(len(groups)))
    done = len(places) - sum(len(groups[shard]) for shard in missing)
    with rollouts.being_written(), track(title, len(places), "texts", done) as advance:
        for shard in missing:
            _write_shard(rollouts, examples, writer, prompts, choice, shard, groups[shard])
            advance(len(groups[shard]))
        writer.check_unchanged()
        records = rollouts.required_records(range(len(groups)))
        _require_written(rollouts, records, choice)
        remove(join_url(rollouts.url, _ANSWERS))
        return rollouts.publish_manifest(records)


def _write_shard(
    rollouts: Dataset,
    examples: Dataset,
    writer: Writer,
    prompts: PromptsConfig,
    choice: PromptChoice,
    shard: int,
    places: Sequence[Place],
) -> None:
    found = list(read_prompts(examples, places, prompts))
    usable = [prompt for prompt in found if isinstance(prompt, Prompt)]
    # the numbers of held-out texts are the same in all rounds, so that less differs between two students by chance
    rounds = [choice.round if prompt.split == "train" else 0 for prompt in usable]
    results = writer.write(usable, rounds, join_url(rollouts.url, _ANSWERS)) if usable else []
    rows = [result for result in results if isinstance(result, Written)]
    dropped = Counter(reason for reason in found if isinstance(reason, str))
    dropped += Counter(str(result) for result in results if isinstance(result, LeftOut))
    writer.check_unchanged()
    with_arguments = any(row.prompt.arguments for row in rows)
    columns = columns_of(rows, with_arguments=with_arguments, with_ids=writer.has_ids)
    rollouts.write_shard(shard, columns, counts_of(rows), dropped)


def _require_written(rollouts: Dataset, records: Sequence[Any], choice: PromptChoice) -> None:
    """Raise UserError if a split has no text."""

    def total(count: Callable[[Any], int]) -> int:
        return sum(count(record) for record in records)

    held_out = total(lambda record: record.counts["held_out_examples"])
    written = {"train": total(lambda record: record.rows) - held_out, "held_out": held_out}
    lacking = [split for split, count in written.items() if not count and getattr(choice, split) != 0]
    if lacking:
        counts = sum((Counter(record.dropped) for record in records), Counter[str]())
        reasons = counts_in_words(dict(sorted(counts.items())), "no prompt")
        raise UserError(
            f"{rollouts.url}: nothing usable was written on any prompt of the split {lacking[0]} ({reasons}): check "
            "the prompts, the sampling (max_tokens, temperature) and the model"
        )
