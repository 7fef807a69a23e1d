"""The student's model card: the models, data and settings of the distillation, its results, and how to use it.

It may be published, so it names models by their hub names or the last part of their folders, and files by their last
part. It contains no path of this machine, and no password or signature of a URL.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alm_pipeline.alignment.table import visibility_rows
from alm_pipeline.config import AlmConfig, CorpusConfig, HubSource, TrainedTokenizer
from alm_pipeline.models.configuration import ModelConfiguration
from alm_pipeline.models.files import label, model_folder
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.naming.names import student_title
from alm_pipeline.training.student.curves import PICTURE
from alm_pipeline.transfer.level.words import level_text
from storage.dataset import Dataset
from storage.folders import StoredFolder
from storage.printed.inert import markdown, markdown_block, markdown_code, one_line, yaml_text
from storage.printed.secrets import without_secrets

CARD = "README.md"
HERE = "."
"""the student's name in the snippet, until it is published under a repository's name"""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LOCAL = re.compile(r"(file://|[/~\\]|[A-Za-z]:[/\\])")

_SNIPPET = """```python
from transformers import {model}, {tokenizer}

name = "{name}"
model = {model}.from_pretrained(name{trusted})
tokenizer = {tokenizer}.from_pretrained(name)
inputs = tokenizer("The", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```"""


@dataclass(frozen=True)
class DistilledStudent:
    """The content of a card: the configuration, the datasets by role, the student's folder and its results."""

    config: AlmConfig
    datasets: Mapping[str, Dataset]
    student: StoredFolder
    results: Mapping[str, Any]


def write_card(distilled: DistilledStudent) -> None:
    """Write the card into the student's folder, which holds the model and tokenizer."""
    sections = [write(distilled) for write in (_title, _use, _results, _data, _settings, _lineage)]
    content = f"---\n{_metadata(distilled.config).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    (distilled.student.path / CARD).write_text(content, encoding="utf-8")


def card_for(folder: Path, repo: str) -> str:
    """Return the card for publication, with the repository's name in its snippet."""
    return (folder / CARD).read_text(encoding="utf-8").replace(f'name = "{HERE}"', f'name = "{repo}"')


def _metadata(config: AlmConfig) -> ModelCardData:
    named = [part.texts.source for part in config.parts]
    datasets = [source.name for source in named if isinstance(source, HubSource) and _on_hub(source.name)] or None
    transfer_tags = ["tokenizer-transfer"] if config.student.tokenizer else []
    return ModelCardData(
        base_model=config.student.model if _on_hub(config.student.model) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "approximate-likelihood-matching", "alm-pipeline", *transfer_tags],
        datasets=datasets,
        **_license(config.student.model),
    )


def _license(name: str) -> dict[str, Any]:
    """Return the license fields of the source model's card; {} if it has none."""
    file = model_folder(name) / CARD
    try:
        metadata = (metadata_load(file) if file.is_file() else None) or {}
    except (ValueError, yaml.YAMLError):  # an invalid card
        metadata = {}
    fields = {field: metadata.get(field) for field in ("license", "license_name", "license_link")}
    return {field: one_line(value) if isinstance(value, str) else value for field, value in fields.items() if value}


def _on_hub(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _public(name: str) -> str:
    """Return a model's hub name, or the last part of its folder."""
    return name if _on_hub(name) else label(name)


def _title(distilled: DistilledStudent) -> str:
    config = distilled.config
    student = markdown_code(_public(config.student.model))
    teachers = " and ".join(markdown_code(_public(name)) for name in config.teachers)
    return (
        f"# {markdown(student_title(config))}\n\n"
        f"{student}{_tokenizer(config)}, distilled from the teacher{'s'[: len(config.teachers) > 1]} {teachers} "
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
        return " with a tokenizer whose tokens are the 256 bytes"
    return f" with the tokenizer of {markdown_code(_public(setting))}" if setting else ""


def _use(distilled: DistilledStudent) -> str:
    trusted = ", trust_remote_code=True" if distilled.config.student.ngram_embeddings else ""
    runs_code = bool(trusted) or distilled.config.trust_remote_code
    tokenizer = _tokenizer_class(distilled.student.path)
    model = ModelConfiguration.read(str(distilled.student.path), trust_remote_code=runs_code).class_name
    return "## Use\n\n" + _SNIPPET.format(model=model, tokenizer=tokenizer, name=HERE, trusted=trusted)


def _tokenizer_class(folder: Path) -> str:
    """Return AutoTokenizer, except for model types for which it rebuilds the tokenizer with other ids."""
    with quiet_transformers():
        stored = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
        try:
            rebuilt = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
        except Exception:  # slow tokenizers and custom code fail in many ways, and the student is trained already
            return "PreTrainedTokenizerFast"
    return "AutoTokenizer" if rebuilt.to_str() == stored.to_str() else "PreTrainedTokenizerFast"


def _results(distilled: DistilledStudent) -> str:
    bits = distilled.results["held_out_bits_per_byte"]
    errors = distilled.results.get("held_out_standard_errors", {})
    kl = distilled.results.get("held_out_word_kl", {})
    numbers = {who: (value, errors.get(who), kl.get(who)) for who, value in bits.items()}
    rows = [[who.replace("_", " "), *map(_number, values)] for who, values in numbers.items()]
    curves = f"\n\n![Training curves]({PICTURE})" if (distilled.student.path / PICTURE).is_file() else ""
    sources = distilled.results.get("sources", {})
    by_source = f"\n\n{_sources_table(sources)}" if sources else ""
    return (
        "## Held-out text\n\nBits per byte on held-out documents of the corpus, and the divergence from the teacher in "
        "nats per word: how far the student's probability of a word is from the teacher's. Lower is better.\n\n"
        f"{_table(['model', 'bits per byte', 'standard error', 'KL per word'], rows)}{by_source}{curves}"
    )


def _sources_table(sources: Mapping[str, Any]) -> str:
    """Return the results by source; the numbers above are their means by the shares."""
    header = ["source", "teacher", "share", "examples", "epochs", "bits per byte: teacher", "before", "after"]
    rows = [
        [
            markdown(name),
            markdown_code(source["teacher"]),
            f"{source['share']:.1%}",
            f"{source['examples']:,}",
            f"{source['epochs']:,}",
            *map(_number, source["bits_per_byte"].values()),
            *(_number(source["word_kl"].get(f"student_{when}")) for when in ("before", "after")),
        ]
        for name, source in sources.items()
    ]
    return _table([*header, "KL per word: before", "after"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _data(distilled: DistilledStudent) -> str:
    tables = [_table(["item", "amount"], _source_rows(distilled, part.texts)) for part in distilled.config.parts]
    rows = []
    if initialization := distilled.results.get("initialization"):
        counts = ", ".join(f"{count:,} {how}" for how, count in initialization.items())
        rows.append(["rows of the new embedding", markdown(counts)])
    if level := distilled.results.get("level"):
        rows.append(["level of new tokens", markdown(level_text(level))])
    if rows and distilled.config.is_mixture:
        tables.append(_table(["item", "amount"], rows))
    elif rows:
        tables[0] = _table(["item", "amount"], [*_source_rows(distilled, distilled.config.texts), *rows])
    return "## Data\n\n" + "\n\n".join(tables)


def _source_rows(distilled: DistilledStudent, corpus: CorpusConfig) -> list[list[str]]:
    """Return what there is of a corpus, or of a source of a mixture."""
    prefix = f"{corpus.name}: " if distilled.config.is_mixture else ""
    manifests = {
        role.removeprefix(prefix): dataset.complete_manifest()
        for role, dataset in distilled.datasets.items()
        if role.startswith(prefix)
    }
    examples, tokens = manifests["examples"], ("teacher_tokens", "student_tokens")
    held_out = f"{examples.counts['held_out_examples']:,} of them held out"
    return [
        ["corpus", corpus.name],
        ["source", markdown_code(_inline(_plain(corpus.source.model_dump(mode="json", exclude_defaults=True))))],
        ["examples", f"{examples.rows:,}, {held_out}"],
        ["bytes of text", f"{examples.counts['text_bytes']:,}"],
        *([role.replace("_", " "), f"{manifests[role].counts['tokens']:,}"] for role in tokens),
        ["chunks", f"{manifests['alignments'].counts['chunks']:,}"],
        *(
            [markdown(what), markdown(text)]
            for what, text in visibility_rows(manifests["alignments"].counts, examples.counts["text_bytes"])
        ),
        *(
            [markdown(f"dropped from {role}: {why}"), f"{n:,}"]
            for role, part in manifests.items()
            for why, n in part.dropped.items()
        ),
    ]


def _settings(distilled: DistilledStudent) -> str:
    config = distilled.config
    parts = {"objective": config.objective.model_dump(mode="json"), "train": config.train.identity()}
    if evaluation := config.evaluation.identity():
        parts["evaluation"] = evaluation
    values = _plain({**parts, "score": config.score.identity()})
    return f"## Settings\n\n{markdown_block(yaml_text(values), 'yaml')}"


def _lineage(distilled: DistilledStudent) -> str:
    names = {role: dataset.name for role, dataset in distilled.datasets.items()} | {"student": distilled.student.name}
    rows = [[role.replace("_", " "), markdown_code(name)] for role, name in names.items()]
    provenance = distilled.student.provenance
    versions = {**provenance.get("versions", {}), "commit": provenance.get("commit")}
    software = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    made_by = f"\n\nMade with {markdown(software)}." if software else ""
    table = _table(["role", "name"], rows)
    note = "Each name ends in a fingerprint of the settings and inputs that determine it."
    return f"## Lineage\n\n{note}\n\n{table}{made_by}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(values: Any) -> str:
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20).strip()


def _plain(value: Any) -> Any:
    """Remove secrets, and shorten paths on this machine to their last part."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and _LOCAL.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return without_secrets(value)
