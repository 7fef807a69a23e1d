"""The values that people change from run to run, put into a configuration or a recipe.

`Overrides` is the only list of them: the command line makes its options from it, and a test compares the parameters of
the flow `alm` with it.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, SourceConfig, parse_config
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.settings import annotation_at
from alm_pipeline.config.fields.spelling import unknown_setting
from alm_pipeline.config.frozen import Frozen
from alm_pipeline.recipes.recipes import FOLLOWING, recipe_content, require_complete
from storage.errors import UserError
from storage.printed.secrets import naming_path


class Overrides(Frozen):
    """Values that replace those of a configuration; None keeps the configuration's own."""

    corpus: str | list[str] | None = Field(
        None,
        description="URL of files to use as the corpus, in place of its source and "
        "name. Several (as NAME=URL) are a mixture.",
    )
    teacher: str | None = Field(None, description="The teacher: a local folder, a name on the Hub, or demo:NAME.")
    student: str | None = Field(None, description="The student: a local folder, a name on the Hub, or demo:NAME.")
    tokenizer: str | None = Field(
        None, description="The student's new tokenizer: a local folder, a name on the Hub, or bytes."
    )
    steps: int | None = Field(None, description="The number of training steps.")
    learning_rate: float | None = Field(None, description="The peak learning rate.")
    gamma: float | None = Field(
        None, description="A chunk ends where the teacher's probability of a boundary token exceeds this."
    )
    temperature: float | None = Field(None, description="The temperature of the ALM objective.")
    name: str | None = Field(None, description="What the run and its student are called in lists and pictures.")
    settings: dict[str, Any] | None = Field(
        None, description='Any other fields of the configuration, by dotted name: {"train.seed": 1}.'
    )


def parse_overrides(values: Mapping[str, Any]) -> Overrides:
    """Build overrides from plain values. Raises UserError with each wrong one."""
    try:
        return Overrides.model_validate(values)
    except ValidationError as error:
        raise UserError(f"these values are wrong:\n{wrong_fields(error, Overrides)}") from error


FIELDS = {
    "corpus": "corpus",
    "teacher": "teacher",
    "student": "student.model",
    "tokenizer": "student.tokenizer",
    "steps": "train.steps",
    "learning_rate": "train.learning_rate",
    "gamma": "objective.gamma",
    "temperature": "objective.temperature",
    "name": "name",
}
"""The field of the configuration that each override replaces; `settings` names its own."""


def override(config: AlmConfig, overrides: Overrides) -> AlmConfig:
    """Return a configuration with the given values replaced. Only `settings` can set a field to None.

    `corpus` replaces the source and the name of the configuration's corpus, and nothing else of it. Of a mixture, it
    replaces the sources of these names. Raises UserError naming a field that does not exist or does not accept the
    value.
    """
    content = config.model_dump(mode="json")
    if overrides.corpus is not None:
        content["corpus"] = _with_files(content["corpus"], overrides.corpus)
    _put_all(content, overrides)
    return parse_config(content)


def configure(name: str, overrides: Overrides) -> AlmConfig:
    """Return the recipe of this name with the given values.

    What the recipe sets for its own corpus (how much of it is taken, how it is cut) does not apply to a given one, and
    its warm-up keeps its share of a shorter training. Raises UserError naming what the recipe needs and was not given,
    and as `override` does.
    """
    content = configured_content(name, overrides)
    require_complete(name, content)
    return parse_config(content)


def configured_content(name: str, overrides: Overrides) -> dict[str, Any]:
    """Return the same as plain values, with null for each field that has to be given and was not."""
    content = recipe_content(name)
    if overrides.corpus is not None:
        urls = _urls(overrides.corpus)
        corpora = [corpus_at(url, {"name": name}).model_dump(mode="json") for name, url in urls.items()]
        content["corpus"] = corpora[0] if len(corpora) == 1 else corpora
    own = dict(content["train"])
    _put_all(content, overrides)
    for field, followed in FOLLOWING.get(name, {}).items():
        is_given = any(field == path or field.startswith(f"{path}.") for path in given_fields(overrides))
        if content[followed] is not None and not is_given:
            _put(content, field.split("."), content[followed])
    corpus = content["corpus"]
    if isinstance(corpus, dict) and corpus.get("name", "") is None:
        corpus["name"] = _source_name(corpus.get("source"))
    if not given_fields(overrides) & {"train", "train.warmup_steps"}:
        content["train"] = {**content["train"], "warmup_steps": _warmup_steps(own, content["train"]["steps"])}
    return content


def _warmup_steps(own: Mapping[str, int], steps: Any) -> int:
    """Return the warm-up of a recipe's training with other steps: a shorter one for fewer."""
    is_fewer = isinstance(steps, int) and steps < own["steps"]
    return own["warmup_steps"] * max(0, steps) // own["steps"] if is_fewer else own["warmup_steps"]


def given_fields(overrides: Overrides) -> set[str]:
    """Return the fields that the overrides set, by dotted name."""
    given = {FIELDS[name] for name, value in overrides if name in FIELDS and value is not None}
    if "corpus" in given:
        given = {*given - {"corpus"}, "corpus.name", "corpus.source"}
    return given | set(overrides.settings or {})


def _put_all(content: dict[str, Any], overrides: Overrides) -> None:
    """Put all values but the corpus into a configuration's content."""
    values = {
        FIELDS[name]: value for name, value in overrides if name in FIELDS and name != "corpus" and value is not None
    }
    settings = overrides.settings or {}
    for field in settings:
        if not all(field.split(".")):
            raise UserError(f"{field!r} is not the dotted name of a field, such as train.seed")
    _require_known(settings)
    # a source's kind first: it decides which fields the source has; and a section before its fields
    for field, value in sorted(
        {**values, **settings}.items(), key=lambda item: (not item[0].endswith(".kind"), item[0].count("."))
    ):
        if field == "corpus" or not field.startswith("corpus.") or not isinstance(content["corpus"], list):
            _put(content, field.split("."), value)
        else:
            _put(*_in_source(content["corpus"], field), value)


def _in_source(sources: list[Any], field: str) -> tuple[dict[str, Any], list[str]]:
    """Return the source of a mixture that a setting `corpus.NAME.FIELD` is about, and the path within it."""
    names = {str(source.get("name")): source for source in sources if isinstance(source, dict)}
    rest = field.removeprefix("corpus.")
    for name in sorted(names, key=len, reverse=True):
        if rest.startswith(f"{name}."):
            return names[name], rest.removeprefix(f"{name}.").split(".")
    number, _, path = rest.partition(".")
    if number.isdecimal() and int(number) < len(sources) and path:
        return sources[int(number)], path.split(".")
    raise UserError(
        f"{field}: corpus is a list of the sources {', '.join(names)}: write corpus.NAME.FIELD, as in "
        f"corpus.{next(iter(names), 'NAME')}.{rest.rpartition('.')[2]}"
    )


def _require_known(settings: Mapping[str, Any]) -> None:
    """Raise UserError with the nearest fields to each one that does not exist."""
    unknown = [field.split(".") for field in settings if not setting_annotations(field)]
    if unknown:
        raise UserError("\n".join(unknown_setting(AlmConfig, path, settings[".".join(path)]) for path in unknown))


def setting_annotations(field: str) -> list[Any]:
    """Return the annotations of a field by its dotted name, also of a source's: corpus.NAME.weight, corpus.0.weight."""
    path = field.split(".")
    found = annotation_at(AlmConfig, path)
    if found or path[0] != "corpus":
        return found
    # a source's name may have periods itself
    ends = range(2, len(path))
    return next((inner for end in ends if (inner := annotation_at(SourceConfig, path[end:]))), [])


def corpus_at(url: str, settings: Mapping[str, Any] | None = None) -> CorpusConfig:
    """Return the corpus of files at a URL, with other fields of the corpus. Raises UserError with each wrong one."""
    try:
        return CorpusConfig.model_validate({**_files(url), **(settings or {})})
    except ValidationError as error:
        raise UserError(f"the corpus is wrong:\n{wrong_fields(error, CorpusConfig)}") from error


def _files(url: str, name: str | None = None) -> dict[str, Any]:
    """Return what a URL of files replaces in a corpus."""
    return {"name": name or _name(url), "source": FilesSource(urls=(url,)).model_dump(mode="json")}


def _urls(given: str | list[str]) -> dict[str, str]:
    """Return the URLs by name; each of several is NAME=URL, or is called as its file."""
    if isinstance(given, str) or len(given) == 1:
        url = given if isinstance(given, str) else given[0]
        return {_name(url): url}
    pairs = [(match[1], match[2]) if (match := _NAMED.fullmatch(url)) else (_name(url), url) for url in given]
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"corpus: two sources are called {twice!r}: name each, as NAME=URL")
    if not pairs:
        raise UserError("corpus: is a list without a source: name at least one URL")
    return dict(pairs)


_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)


def _with_files(corpus: Any, given: str | list[str]) -> Any:
    """Return a configuration's corpus as plain values, with the files at the URLs."""
    if isinstance(corpus, dict):
        sources = [corpus | _files(url, name) for name, url in _urls(given).items()]
        return sources[0] if len(sources) == 1 else sources
    listed = [given] if isinstance(given, str) else given
    pairs = [(match[1], match[2]) if (match := _NAMED.fullmatch(url)) else ("", url) for url in listed]
    known = {source["name"]: source for source in corpus}
    if wrong := next((f"{name}={url}" if name else url for name, url in pairs if name not in known), None):
        raise UserError(
            f"corpus: {wrong}: the file has the sources {', '.join(known)}: write NAME=URL with one of these names, or "
            "add the source to the file"
        )
    urls = dict(pairs)
    return [source | _files(urls[name], name) if name in urls else source for name, source in known.items()]


_TEMPLATES = ("teacher_template", "template")


def _put(content: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        child = content.setdefault(part, {})
        # a template's name is short for a section with that name: other fields of the section may be set beside it
        section = {"template": child} if part in _TEMPLATES and isinstance(child, str) else {}
        content[part] = child if isinstance(child, dict) else section
        content = content[part]
    if path[-1] == "kind" and content.get("kind") != value:  # the fields of another kind do not apply
        content.clear()
    content[path[-1]] = value


def _source_name(source: Any) -> str | None:
    """Return a name for a source that was set without one; None if it is not set."""
    values = source if isinstance(source, dict) else {}
    first = values.get("name") or values.get("task") or next(iter(values.get("urls") or ()), None)
    return _name(first) if isinstance(first, str) else None


def _name(url: str) -> str:
    """Make a folder's name out of a URL: its last part without patterns and file endings."""
    path = naming_path(url) if "://" in url else url
    parts = [part for part in PurePosixPath(path.split("://")[-1]).parts if "*" not in part]
    stem = (parts[-1] if parts else "").split(".")[0]
    return "".join(character if character.isalnum() else "-" for character in stem).strip("-") or "corpus"
