"""A settings file that is damaged, or has a field of another type: the file and the field are named."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alm_pipeline.config import AlmConfig, load_config, parse_config
from alm_pipeline.ensemble.config import read_config
from alm_pipeline.naming.recipe_choices import recipe_choices
from alm_pipeline.recipes.overrides import Overrides, configure, override
from alm_pipeline.recipes.recipes import recipe
from flows.terminal.configurations import parse_settings
from storage.errors import UserError
from tests.alm_pipeline.recipes.complete import complete_recipes
from tests.documents import replaced
from tests.sampling import sampled_pairs

CONTENTS = {
    "empty": b"",
    "blank": b"\n\n",
    "null": b"null",
    "a text": b"just a text",
    "a number": b"7",
    "a list": b"- 1\n- 2\n",
    "binary": bytes(range(256)),
    "another encoding": "größe: 1".encode("utf-16"),
    "latin-1": "größe: 1".encode("latin-1"),
    "an open bracket": b"corpus: {name: x",
    "an open quote": b"corpus: 'x",
    "a tab": b"corpus:\n\tname: x",
    "an unknown tag": b"corpus: !python/object:os.system {}",
    "a date that is none": b"corpus: 2024-13-45",
    "an unknown alias": b"corpus: *other",
    "itself": b"corpus: &all\n  source: *all\n",
    "a key of another type": b"? [1, 2]\n: 3\n",
    "number keys": b"1: 2\n",
    "nested": b"[" * 700,
    "a null byte": b"corpus: \x00",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    "an unknown field": b"corups: {}\n",
}
READERS: dict[str, Callable[[Path], Any]] = {"run.yaml": load_config, "run.json": load_config, "e.yaml": read_config}


@pytest.mark.bad_input
@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_file_is_named(content: bytes, file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        READERS[file](tmp_path / file)
    assert str(caught.value).startswith(f"{tmp_path / file}: ")
    assert "Traceback" not in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("place", ["nothing", "a folder", "a link to itself"])
def test_what_is_no_file_is_named(place: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    match place:
        case "a folder":
            path.mkdir()
        case "a link to itself":
            path.symlink_to(path.name)
        case _:
            pass
    with pytest.raises(UserError, match=r"can't be read as YAML or JSON: \[Errno"):
        READERS[file](path)


@pytest.mark.bad_input
def test_the_line_of_a_problem_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("teacher: x\nstudent:\n  model: 'y\n")
    with pytest.raises(UserError, match=r"mine\.yaml: can't be read as YAML or JSON: line 4: found unexpected end"):
        load_config(file)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


OTHERS: tuple[Any, ...] = (None, "x", "", -1, 0, 1.5, 10**30, True, [], ["x"], {}, {"x": 1}, [[1]])


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["transfer", "maths"])
def test_a_field_of_another_type_is_named(name: str) -> None:
    """Some values are taken; what is refused names the file, and the part of the configuration that was changed."""
    document = recipe(name).model_dump(mode="json")
    refused: list[tuple[str, str]] = []
    for path, value in sampled_pairs(paths(document), OTHERS):
        try:
            parse_config(replaced(document, path, value), "mine.yaml")
        except UserError as error:
            refused.append((str(path[0]), str(error)))
    assert len(refused) > 100
    assert [pair for pair in refused if not pair[1].startswith("mine.yaml: ") or pair[0] not in pair[1]] == []


@pytest.mark.bad_input
@pytest.mark.parametrize("value", ["2024-13-45", "{", "*x", "!x y", "\t", "'", "1e999", "{1: [2, {3: 4}]}"])
@pytest.mark.parametrize("field", ["train.steps", "train", "corpus.source", "teacher.name", "nothing"])
def test_a_setting_of_the_command_that_does_not_fit_is_named(field: str, value: str) -> None:
    overrides = Overrides(settings=parse_settings([f"{field}={value}"]))
    with pytest.raises(UserError, match=field.partition(".")[0]):
        override(recipe("maths"), overrides)
    with pytest.raises(UserError, match=field.partition(".")[0]):
        configure("maths", overrides)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["distill", "maths"])
def test_a_section_of_another_type_is_named(name: str) -> None:
    """Some values are taken, of a recipe with all that it needs; nothing ends in another error."""
    given = {"corpus": "texts.jsonl", "teacher": "TEACHER", "student": "STUDENT"}
    refused: list[tuple[str, str]] = []
    for (section, *_), value in sampled_pairs(paths(dict.fromkeys(AlmConfig.model_fields)), OTHERS):
        overrides = Overrides.model_validate({**given, "settings": {section: value}})
        try:
            recipe_choices(name, configure(name, overrides), overrides)
        except UserError as error:
            refused.append((str(section), str(error)))
    assert len(refused) > 20
    assert [pair for pair in refused if pair[0] not in pair[1]] == []


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    for config in complete_recipes().values():
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert load_config(tmp_path / "mine.yaml") == config
