"""Names of runs and students for people: chosen by `name`, or made of the settings in which they differ.

The folder's name with its fingerprint stays what identifies a student.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping

from alm_pipeline.config import AlmConfig
from alm_pipeline.naming.differences import Settings, differences, texts_apart, value_text
from alm_pipeline.recipes.recipes import RECIPES

_OF_TITLE = ("corpus", "teacher", "student.model")
"""what a run's title names already"""


def run_name(config: AlmConfig) -> str:
    """Return the chosen name of a run, or what it changes in the recipe that is nearest to it; else that recipe."""
    return recorded_name(config.model_dump(mode="json"))


def recorded_name(recorded: Settings) -> str:
    """Return the name of a run by the configuration that a manifest records, as `run_name`; empty if it has none."""
    return str(recorded.get("name") or changes(recorded))


def run_title(config: AlmConfig) -> str:
    """Return the models and the corpus of a run, with its name."""
    return f"{config.name}: {config.title}" if config.name else f"{config.title}: {run_name(config)}"


def student_title(config: AlmConfig) -> str:
    """Return a student's name with its models, in short, for a picture or a card."""
    student, teacher = value_text(config.student.model), value_text(config.teacher)
    return f"{student} from {teacher} on {config.corpus_name}: {run_name(config)}"


def changes(recorded: Settings) -> str:
    """Return what a configuration changes in the recipe that is nearest to it, or the recipe's name if nothing.

    Corpus and models do not count. Empty if the configuration can't be read.
    """
    try:
        config = AlmConfig.model_validate(recorded)
    except ValueError:  # of another version
        return ""
    rows = {name: _changed(config, make) for name, make in RECIPES.items()}
    nearest = min(rows, key=lambda name: len(rows[name]))
    return texts_apart([rows[nearest]])[0] or nearest


def _changed(config: AlmConfig, make: Callable[..., AlmConfig]) -> dict[str, object]:
    given = {"corpus": config.corpus, "teacher": config.teacher, "student": config.student.model}
    recipe = make(**{name: given[name] for name in inspect.signature(make).parameters})
    row = differences([config.model_dump(mode="json"), recipe.model_dump(mode="json")])[0]
    return {field: value for field, value in row.items() if not _is_of_title(field)}


def _is_of_title(field: str) -> bool:
    return any(field == part or field.startswith(f"{part}.") for part in _OF_TITLE)


def names_apart(recorded: Mapping[str, Settings]) -> dict[str, str]:
    """Return a name for each student that none of the others has. Arguments and results are by folder name.

    `recorded` are the configurations in the students' manifests. A name that was chosen is kept; where several chose
    the same, and where none did, it is made of the differences. A student without a configuration has its folder's
    name.
    """
    known = {folder: config for folder, config in recorded.items() if config}
    chosen = {folder: str(config["name"]) for folder, config in known.items() if config.get("name")}
    made = _by_differences({folder: config for folder, config in known.items() if folder not in chosen})
    groups: dict[str, dict[str, Settings]] = {}
    for folder, name in chosen.items():
        groups.setdefault(name, {})[folder] = known[folder]
    for name, group in groups.items():
        made |= _qualified(name, group)
    names = {folder: made.get(folder) or folder for folder in recorded}
    counts = Counter(names.values())
    # what the configurations do not record, such as another model in the same folder, is in the fingerprint alone
    return {
        folder: name if counts[name] == 1 or name == folder else f"{name}, {folder.rsplit('-', 1)[-1][:8]}"
        for folder, name in names.items()
    }


def _by_differences(known: Mapping[str, Settings]) -> dict[str, str]:
    if len(known) < 2:
        return {folder: changes(config) for folder, config in known.items()}
    texts = texts_apart(differences(list(known.values())))
    return {folder: text or changes(config) for (folder, config), text in zip(known.items(), texts, strict=True)}


def _qualified(name: str, group: Mapping[str, Settings]) -> dict[str, str]:
    if len(group) < 2:
        return dict.fromkeys(group, name)
    texts = texts_apart(differences(list(group.values())))
    return {folder: f"{name} ({text})" if text else name for folder, text in zip(group, texts, strict=True)}
