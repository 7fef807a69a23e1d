"""The student's model card: what was distilled from what, on which data, how, and how well; and how to use it.

It may be published, so it names models by their hub names or the last part of their folders, and files by their
last part: no path of this machine, and no password or signature of a URL.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig, HubSource, TrainedTokenizer
from alm_pipeline.models.files import label, model_folder, quiet_transformers
from alm_pipeline.training.student.curves import PICTURE
from storage.dataset import Dataset
from storage.folders import StoredFolder
from storage.secrets import without_secrets

CARD = "README.md"
HERE = "."
"""the student's name in its snippet, until it is published under another"""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LOCAL = re.compile(r"(file://|[/~\\]|[A-Za-z]:[/\\])")

_SNIPPET = """```python
from transformers import AutoModelForCausalLM, {tokenizer}

name = "{name}"
model = AutoModelForCausalLM.from_pretrained(name{trusted})
tokenizer = {tokenizer}.from_pretrained(name)
inputs = tokenizer("The", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```"""


@dataclass(frozen=True)
class Distilled:
    """What a card tells of: the configuration, what was read by role, the student and its results."""

    config: AlmConfig
    datasets: Mapping[str, Dataset]
    student: StoredFolder
    results: Mapping[str, Any]


def write_card(told: Distilled) -> None:
    """Write the card into the student's folder, beside the model and tokenizer that are there."""
    sections = [_title(told), _use(told), _scores(told), _data(told), _settings(told), _lineage(told)]
    content = f"---\n{_metadata(told.config).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    (told.student.path / CARD).write_text(content, encoding="utf-8")


def card_for(folder: Path, repo: str) -> str:
    """The card of a student's folder as it is published: its snippet has the repository's name."""
    return (folder / CARD).read_text(encoding="utf-8").replace(f'name = "{HERE}"', f'name = "{repo}"')


def _metadata(config: AlmConfig) -> ModelCardData:
    source = config.corpus.source
    datasets = [source.name] if isinstance(source, HubSource) and _on_hub(source.name) else None
    moved = ["tokenizer-transfer"] if config.student.tokenizer else []
    return ModelCardData(
        base_model=config.student.model if _on_hub(config.student.model) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "approximate-likelihood-matching", "alm-pipeline", *moved],
        datasets=datasets,
        **_license(config.student.model),
    )


def _license(name: str) -> dict[str, Any]:
    """What the card of the source model says of it; nothing where it has none."""
    file = model_folder(name) / CARD
    try:
        known = (metadata_load(file) if file.is_file() else None) or {}
    except (ValueError, yaml.YAMLError):  # a card that someone else wrote
        known = {}
    return {field: known[field] for field in ("license", "license_name", "license_link") if known.get(field)}


def _on_hub(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _public(name: str) -> str:
    """A model's hub name, or the last part of its folder."""
    return name if _on_hub(name) else label(name)


def _title(told: Distilled) -> str:
    config = told.config
    student, teacher = _public(config.student.model), _public(config.teacher)
    return (
        f"# {label(config.student.model)} from {label(config.teacher)}\n\n"
        f"`{student}`{_tokenizer(config)}, distilled from the teacher `{teacher}` "
        f"with alm-pipeline by {_method(config)}."
    )


def _method(config: AlmConfig) -> str:
    terms = ", ".join(config.objective.terms)
    if "alm" not in config.objective.terms:
        return f"the loss terms {terms}"
    others = "" if terms == "alm" else f" (loss terms: {terms})"
    return f"[Approximate Likelihood Matching](https://arxiv.org/abs/2503.20083){others}"


def _tokenizer(config: AlmConfig) -> str:
    setting = config.student.tokenizer
    if isinstance(setting, TrainedTokenizer):
        return f" with a new tokenizer, a byte-level BPE of {setting.vocab_size:,} tokens trained on the corpus"
    if config.student.is_byte_level:
        return " with a tokenizer of the 256 bytes"
    return f" with the tokenizer of `{_public(setting)}`" if setting else ""


def _use(told: Distilled) -> str:
    trusted = ", trust_remote_code=True" if told.config.student.ngram_embeddings else ""
    return "## Use\n\n" + _SNIPPET.format(tokenizer=_tokenizer_class(told.student.path), name=HERE, trusted=trusted)


def _tokenizer_class(folder: Path) -> str:
    """AutoTokenizer, except for the model types whose tokenizer it builds anew with other ids."""
    with quiet_transformers():
        own = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
        try:
            built = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
        except (AttributeError, ImportError, OSError, ValueError):  # slow ones, and code of the model's own
            return "PreTrainedTokenizerFast"
    return "AutoTokenizer" if built.to_str() == own.to_str() else "PreTrainedTokenizerFast"


def _scores(told: Distilled) -> str:
    bits = told.results["held_out_bits_per_byte"]
    rows = [[who.replace("_", " "), f"{value:.4f}"] for who, value in bits.items()]
    return (
        "## Held-out text\n\nBits per byte on documents of the corpus that were not trained on; less is better.\n\n"
        f"{_table(['model', 'bits per byte'], rows)}\n\n![Curves of the training]({PICTURE})"
    )


def _data(told: Distilled) -> str:
    manifests = {role: dataset.complete_manifest() for role, dataset in told.datasets.items()}
    examples, tokens = manifests["examples"], ("teacher_tokens", "student_tokens")
    held_out = f"{examples.counts['held_out_examples']:,} of them held out"
    rows = [
        ["corpus", told.config.corpus.name],
        ["source", f"`{_inline(_plain(told.config.corpus.source.model_dump(mode='json', exclude_defaults=True)))}`"],
        ["examples", f"{examples.rows:,}, {held_out}"],
        ["bytes of text", f"{examples.counts['text_bytes']:,}"],
        *([role.replace("_", " "), f"{manifests[role].counts['tokens']:,}"] for role in tokens),
        ["aligned chunks", f"{manifests['alignments'].counts['chunks']:,}"],
        *(
            [f"left out of {role}: {why}", f"{n:,}"]
            for role, part in manifests.items()
            for why, n in part.dropped.items()
        ),
    ]
    if made := told.results.get("initialization"):
        rows.append(["rows of the new embedding", ", ".join(f"{count:,} {how}" for how, count in made.items())])
    return f"## Data\n\n{_table(['what', 'how much'], rows)}"


def _settings(told: Distilled) -> str:
    config = told.config
    parts = {"objective": config.objective.model_dump(mode="json"), "train": config.train.identity()}
    if chosen := config.evaluation.identity():
        parts["evaluation"] = chosen
    values = _plain({**parts, "score": config.score.identity()})
    shown = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"## Settings\n\n```yaml\n{shown}```"


def _lineage(told: Distilled) -> str:
    names = {role: dataset.name for role, dataset in told.datasets.items()} | {"student": told.student.name}
    rows = [[role.replace("_", " "), f"`{name}`"] for role, name in names.items()]
    versions = {**told.student.provenance.get("versions", {}), "commit": told.student.provenance.get("commit")}
    known = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    made_by = f"\n\nMade by {known}." if known else ""
    table = _table(["role", "name"], rows)
    return f"## Lineage\n\nEach name ends in a fingerprint of all that decided it.\n\n{table}{made_by}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(values: Any) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20).strip()


def _plain(value: Any) -> Any:
    """Without secrets, and with the last part of what is a path on this machine."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and _LOCAL.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return without_secrets(value)
