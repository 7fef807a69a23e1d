"""Settings that name a place: their types, and configurations whose places are found from any folder.

A relative path means another file, or none, to a process in another working folder: a worker of a cluster, or a machine
of a GPU pool.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel

from storage.urls import absolute_url, protocol_of

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Place:
    """What a text names: always a place (`url`), or one where something of that name is on this machine.

    Otherwise a `folder` is a name on a Hub, and a `template` that of one that a tokenizer has.
    """

    kind: Literal["url", "folder", "template"]
    names: tuple[str, ...] = ()
    """which are never a place, whatever is on this machine"""

    def absolute(self, name: str) -> str:
        """Return the name as it is found from any folder. URLs, and what is not on this machine, stay as they are."""
        if name in self.names or protocol_of(name) != "file" or not self._is_path(name):
            return name
        return absolute_url(name)

    def _is_path(self, name: str) -> bool:
        match self.kind:
            case "url":
                return True
            case "folder":
                return Path(name).is_dir()
            case "template":  # a name without an ending is sought among those of the tokenizer first
                return bool(Path(name).suffix or "/" in name) and Path(name).is_file()


PlaceUrl = Annotated[str, Place("url")]
"""A path, a pattern of paths, or an fsspec URL."""
FolderOrName = Annotated[str, Place("folder")]
"""A local folder, or the name of a model, a tokenizer or a dataset elsewhere."""
FileOrName = Annotated[str, Place("template")]
"""A file with a chat template, or the name of one."""


def place_in(annotation: Any, metadata: Sequence[Any] = ()) -> Place | None:
    """Return the place that texts of a field name; None if they name none."""
    return next(_places(annotation, metadata), None)


def _places(annotation: Any, metadata: Sequence[Any]) -> Iterator[Place]:
    yield from (item for item in metadata if isinstance(item, Place))
    for part in get_args(annotation):
        if isinstance(part, Place):
            yield part
        else:
            yield from _places(part, ())


def with_absolute_places(config: Model) -> Model:
    """Return a configuration in which every path is absolute."""
    places = {
        name: place_in(field.annotation, field.metadata)
        for name, field in type(config).model_fields.items()
        if name in config.model_fields_set
    }
    return config.model_copy(update={name: absolute(getattr(config, name), place) for name, place in places.items()})


def absolute(value: Any, place: Place | None) -> Any:
    """Return the value of a field with absolute paths."""
    match value:
        case BaseModel():
            return with_absolute_places(value)
        case tuple():
            return tuple(absolute(item, place) for item in value)
        case dict():
            return {key: absolute(item, place) for key, item in value.items()}
        case str() if place:
            return place.absolute(value)
        case _:
            return value
