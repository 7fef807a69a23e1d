"""What is wrong with a configuration, a line for each field, with the fix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from alm_pipeline.config.fields.settings import first_sentence, settings_of
from alm_pipeline.config.fields.spelling import nearest, nearest_settings, unknown_setting, wrong_choice
from alm_pipeline.config.fields.values import choices, plain_types


@dataclass(frozen=True)
class _Wrong:
    """One wrong field: its path as it is written, the model that has it, and pydantic's error."""

    path: tuple[str, ...]
    owner: type[BaseModel] | None
    annotation: Any
    is_key: bool
    """whether the last part is the key of a mapping that is wrong; the annotation is then that of the keys"""
    error: ErrorDetails

    @property
    def dotted(self) -> str:
        return ".".join(self.path) or "the whole"

    @property
    def meaning(self) -> str:
        """What the field means, as its description begins."""
        name = self.path[-2 if self.is_key else -1] if len(self.path) > self.is_key else ""
        field = self.owner.model_fields.get(name) if self.owner else None
        return first_sentence(field.description or "") if field else ""


def wrong_fields(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a line for each wrong field of a configuration: its path, what is wrong, and the nearest right one."""
    wrongs = [_place(model, item) for item in error.errors()]
    unknown = [wrong for wrong in wrongs if wrong.error["type"] == "extra_forbidden"]
    meant = {s.path for wrong in unknown for s in nearest_settings(model, wrong.path, wrong.error["input"])}
    lines = (
        line
        for wrong in wrongs
        if not (_is_of_other_branch(wrong, wrongs) or (wrong.error["type"] == "missing" and wrong.dotted in meant))
        for line in _lines(wrong, model)
    )
    return "\n".join(f"  {line}" for line in dict.fromkeys(lines))


def _place(model: type[BaseModel], error: ErrorDetails) -> _Wrong:
    """Find a field by pydantic's location, which names the branches of unions, too."""
    annotation: Any = model
    owner: type[BaseModel] | None = None
    keys: Any = None
    path: list[str] = []
    for part in error["loc"]:
        annotation = _without_null(annotation)
        if part == "[key]":
            annotation = keys
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            owner = annotation
            path.append(str(part))
            field = annotation.model_fields.get(str(part))
            annotation = Annotated[field.annotation, field] if field else None
        elif (origin := get_origin(annotation)) in (dict, tuple, list):
            path.append(str(part))
            keys, annotation = get_args(annotation)[0], get_args(annotation)[1 if origin is dict else 0]
        elif annotation is None:
            path.append(str(part))
        else:  # a union, whose branches pydantic names
            annotation = next(filter(lambda branch: _is_named(branch, str(part)), _branches(annotation)), annotation)
    return _Wrong(tuple(path), owner, annotation, "[key]" in error["loc"][-1:], error)


def _without_null(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    branches = [branch for branch in _branches(annotation) if branch is not type(None)]
    return _without_null(branches[0]) if len(branches) == 1 and branches[0] is not annotation else annotation


def _branches(annotation: Any) -> Sequence[Any]:
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    kinds = get_args(annotation)
    is_union = get_origin(annotation) not in (None, dict, tuple, list) and len(plain_types(annotation)) > 1
    return [inner for kind in kinds for inner in _branches(kind)] if is_union else [annotation]


def _is_named(branch: Any, tag: str) -> bool:
    """Return whether pydantic calls a branch of a union by this name."""
    while get_origin(branch) is Annotated:
        branch = get_args(branch)[0]
    if isinstance(branch, type) and issubclass(branch, BaseModel):
        kind = branch.model_fields.get("kind")
        return tag in (branch.__name__, kind.default if kind else None)
    return get_origin(branch) in (tuple, list, dict) and tag.startswith(get_origin(branch).__name__)


def _is_of_other_branch(wrong: _Wrong, wrongs: Sequence[_Wrong]) -> bool:
    """Return whether an error is about a kind of value that was not meant: a text, where a section is wrong inside."""
    if not wrong.error["type"].endswith("_type"):
        return False
    match wrong.error["input"]:
        case dict():
            depth = len(wrong.path)
            return any(len(other.path) > depth and other.path[:depth] == wrong.path for other in wrongs)
        case str():  # a name, where the field also takes lists
            return any(other.path == wrong.path and other.error["type"] == "literal_error" for other in wrongs)
    return False


def _lines(wrong: _Wrong, model: type[BaseModel]) -> Iterator[str]:
    error, path = wrong.error, wrong.dotted
    match error["type"]:
        case "extra_forbidden":
            yield unknown_setting(model, wrong.path, error["input"])
        case "literal_error" if wrong.is_key:
            yield wrong_choice(".".join(wrong.path[:-1]), wrong.path[-1], wrong.annotation, wrong.meaning)
        case "literal_error":
            yield wrong_choice(path, error["input"], wrong.annotation, wrong.meaning)
        case "union_tag_invalid" | "union_tag_not_found":
            yield from _wrong_kind(wrong, model)
        case "missing":
            yield f"{path}: is missing{_in_brackets(wrong.meaning)}"
        case kind if kind.endswith("_type") and error["input"] is None:
            yield f"{path}: is missing{_in_brackets(wrong.meaning)}"
        case "string_type" if isinstance(error["input"], dict | int | float):
            yield f"{path}: {error['msg']}; a text that YAML reads as something else is put into quotes: {path}: '…'"
        case _:
            yield f"{path}: {error['msg'].removeprefix('Value error, ')}"


def _wrong_kind(wrong: _Wrong, model: type[BaseModel]) -> Iterator[str]:
    """Tell what `kind` may be; a misspelt `kind` is named as any other field."""
    content = wrong.error["input"]
    kinds = choices(wrong.annotation)
    if isinstance(content, dict) and "kind" in content:
        yield wrong_choice(f"{wrong.dotted}.kind", content["kind"], wrong.annotation)
        return
    fields = {setting.name for setting in settings_of(model) if setting.section == wrong.dotted}
    names = [name for name in map(str, content) if name not in fields] if isinstance(content, dict) else []
    misspelt = [name for name in names if nearest(name, fields)[:1] == ["kind"]]
    for name in misspelt:
        yield unknown_setting(model, [*wrong.path, name])
    if not misspelt:
        yield f"{wrong.dotted}.kind: is missing (one of {', '.join(kinds)})"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
