"""The configuration that a command's argument and options mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import UserError

if TYPE_CHECKING:
    from alm_pipeline.config import AlmConfig
    from alm_pipeline.recipes.overrides import Overrides

_FILES = (".yaml", ".yml", ".json")


def is_file(name: str) -> bool:
    """Return whether the argument RECIPE names a file, and not a recipe."""
    return Path(name).suffix in _FILES


def chosen_configuration(name: str, options: Mapping[str, Any]) -> "tuple[AlmConfig, Overrides]":
    """Return the configuration of a recipe or a file with the values of a command's override options.

    `options` are those that `override_options` makes. Raises UserError naming what is wrong or missing.
    """
    from alm_pipeline.config import load_config
    from alm_pipeline.recipes.overrides import configure, override

    overrides = chosen_overrides(options)
    config = override(load_config(Path(name)), overrides) if is_file(name) else configure(name, overrides)
    return config, overrides


def chosen_overrides(options: Mapping[str, Any]) -> "Overrides":
    """Return the values of a command's override options. Raises UserError naming each wrong one."""
    from alm_pipeline.recipes.overrides import parse_overrides

    return parse_overrides({**options, "settings": parse_settings(options.get("settings"))})


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Return the values of `--set FIELD=VALUE` by field. A value is YAML, of the kind that its field takes."""
    from alm_pipeline.config.fields.values import parse_value
    from alm_pipeline.recipes.overrides import setting_annotations

    values = {}
    for setting in settings or []:
        field, separator, value = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting}: '=' is missing: write FIELD=VALUE, as in --set train.seed=1")
        if field in values:
            raise UserError(f"--set {field}: is there twice: leave one of them out")
        values[field] = parse_value(value, setting_annotations(field))
    return values
