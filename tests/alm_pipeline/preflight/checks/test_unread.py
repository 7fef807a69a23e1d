"""Settings that another one makes pointless are refused, or named by a warning: none is ignored without a word."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from alm_pipeline.config import AlmConfig
from alm_pipeline.config.fields.settings import settings_of
from alm_pipeline.hypernetwork.settings import HypernetConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.checks.unread import UNREAD
from alm_pipeline.recipes.recipes import RECIPES, recipe, required_by

Settings = Mapping[str, Any]
WARNED: dict[str, Settings] = {
    "objective.gamma": {"objective.gamma": 0.3, "objective.chunking": "space"},
    "objective.temperature": {"objective.temperature": 5, "objective.divergence": "abs"},
    "rounds.objective.gamma": {"rounds": {"objective": {"gamma": 0.3, "chunking": "unconstrained"}}},
    "rounds.objective.temperature": {"rounds": {"objective": {"temperature": 5, "divergence": "binary_kl_limit"}}},
    "rounds.objective.learn": {"rounds": {"objective": {"learn": ["answer"]}}},
    "rounds.objective.learned_turns": {"rounds": {"objective": {"learned_turns": "last"}}},
    "student.initialization": {"student.initialization": "focus"},
    "student.level": {"student.level": "none"},
    "student.special_tokens": {"student.special_tokens": "source"},
    "student.omp_terms": {"student.omp_terms": 3},
    "evaluation.min_improvement": {"evaluation.min_improvement": 0.1},
    "evaluation.sample_tokens": {"evaluation.sample_tokens": 5, "evaluation.samples": 0},
    "score.compile": {"score.compile": True, "score.engine": "vllm"},
    "score.served": {"score.served": {"in_flight": 3}},
    **{
        f"score.served.{name}": {
            "score.engine": "http",
            "score.served": {"urls": ["http://127.0.0.1:9"], "wait": 0, name: value},
        }
        for name, value in {
            "tensor_parallel": 2,
            "pipeline_parallel": 2,
            "batched_tokens": 64,
            "arguments": ["--x"],
            "command": ["other"],
            "start_timeout": 9.0,
        }.items()
    },
    "log.project": {"log.project": "mine"},
    "log.run_name": {"log.run_name": "mine"},
    "corpus.deduplicate.similarity": {"corpus.deduplicate": {"similarity": 0.7, "near": False}},
    "corpus.deduplicate.words": {"corpus.deduplicate": {"words": 7, "near": False}},
    "corpus.deduplicate.across": {"corpus.deduplicate": {"across": False}},
}
REFUSED: dict[str, Settings] = {
    "student.hypernetwork": {"student.hypernetwork": "network"},
    "student.donor": {"student.donor": "other"},
    "student.ngram_embeddings": {"student.ngram_embeddings": True},
    "score.served.head_device": {"score.engine": "http", "score.served": {"head_device": "cpu"}},
    "score.served.urls": {"score.served": {"urls": ["http://127.0.0.1:9"]}},
    "score.served.quantization": {"score.served": {"quantization": "fp8"}},
    "train.decay_steps": {"train.decay_steps": 2},
    "rounds.sampling.vllm_arguments": {"rounds": {"sampling": {"vllm_arguments": ["--x"]}}},
    "rounds.sampling.top_p": {"rounds": {"sampling": {"top_p": 0.5, "temperature": 0}}},
    "rounds.sampling.top_k": {"rounds": {"sampling": {"top_k": 5, "temperature": 0}}},
}
READ = {"score.context": "texts may need several windows, or not", "corpus.text": "unused only with messages"}
"""Settings whose description says that they are for some runs alone, where it can't be known before"""


def _changed(config: AlmConfig, settings: Settings) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    for field, value in settings.items():
        *parents, name = field.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[name] = value if not isinstance(section.get(name), dict) else {**section[name], **value}
    return content


@pytest.mark.parametrize("field", WARNED)
def test_a_setting_that_nothing_reads_is_named_by_a_warning(
    config: AlmConfig, field: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chosen = AlmConfig.model_validate(_changed(config, WARNED[field]))
    pipeline = Pipeline(chosen, str(tmp_path_factory.mktemp("store")))
    found = [each for each in pipeline.preflight(["prepare"]) if "is not used" in each.problem]
    assert [each.field for each in found] == [field]
    assert found[0].severity == "warning"


@pytest.mark.bad_input
@pytest.mark.parametrize("field", REFUSED)
def test_a_setting_that_nothing_reads_is_refused(config: AlmConfig, field: str) -> None:
    with pytest.raises(ValidationError, match=field.rpartition(".")[2]):
        AlmConfig.model_validate(_changed(config, REFUSED[field]))


FOR_SOME = re.compile(r"^With (?!several)|ignores? it|[Uu]nused")


def test_every_setting_for_some_runs_alone_is_here() -> None:
    described = {each.path for each in settings_of(AlmConfig) if FOR_SOME.search(each.field.description or "")}
    assert described <= {*WARNED, *REFUSED, *READ}
    assert {*UNREAD} <= {*WARNED}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "settings",
    [
        {"network": {"rank": 3, "kind": "transformer"}},
        {"network": {"layers": 2}},
        {"network": {"width": 64}},
        {"network": {"pieces": 4}},
        {"network": {"kind": "transformer"}, "train": {"channel_factor": 2}},
    ],
)
def test_settings_of_another_network_are_refused(config: AlmConfig, settings: Settings) -> None:
    content = {"corpus": config.texts.model_dump(mode="json"), "model": config.student.model, **settings}
    with pytest.raises(ValidationError, match="is not used, as the network"):
        HypernetConfig.model_validate(content)


def test_no_recipe_sets_what_it_does_not_read(config: AlmConfig) -> None:
    given = {"corpus": config.texts, "teacher": config.teacher, "student": config.student.model}
    for name in RECIPES:
        chosen = recipe(name, **{parameter: given[parameter] for parameter in required_by(name)})
        unread = {field for field, reason in UNREAD.items() if reason(chosen)}
        assert [field for field in unread if field in _set(chosen)] == []


def _set(config: AlmConfig) -> set[str]:
    """The settings that are not their defaults, outside of lists and mappings."""
    found = set()
    for setting in settings_of(AlmConfig):
        section: Any = config
        for parent in setting.section.split(".") if setting.section else ():
            section = getattr(section, parent, None)
        if isinstance(section, setting.owner) and getattr(section, setting.name) != setting.field.default:
            found.add(setting.path)
    return found
