"""The flow on a mixture: every source's stages, and one source's scores alone, as a machine of a pool makes them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.schemas.objects import Artifact
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig, SourceConfig
from alm_pipeline.pipeline import Pipeline
from flows.alm import alm
from flows.cli.app import app
from flows.model_flows import audit
from storage.errors import UserError

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def mixture(config: AlmConfig, llama_folder: str) -> AlmConfig:
    content = config.texts.model_dump()
    fifth = {"name": "fifth", "sample": 0.5, "weight": 3, "teacher": llama_folder}
    sources = (SourceConfig.model_validate(content), SourceConfig.model_validate({**content, **fifth}))
    return config.model_copy(update={"corpus": sources})


def test_the_whole_flow_of_a_mixture(
    config: AlmConfig, llama_folder: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    chosen = mixture(config, llama_folder)
    Pipeline(chosen, str(tmp_path))._prepare()
    first = alm(config=chosen, storage=str(tmp_path), only="score", source="fifth")
    assert set(first["seconds"]) == {"score"}
    assert [bool(part.scores.manifest()) for part in Pipeline(chosen, str(tmp_path)).parts] == [False, True]
    result = alm(config=chosen, storage=str(tmp_path))
    assert set(result["seconds"]) >= {"shard", "tokenize teacher", "tokenize student", "align", "score", "train"}
    assert [source["name"] for source in result["sources"]] == ["tiny", "fifth"]
    assert result["places"]["fifth: scores"].startswith(f"{tmp_path}/teacher_scores/fifth-tiny-llama")
    (table,) = shown("alm-summary")
    assert "source fifth" in table.data
    (plan,) = shown("alm-plan")
    assert '"tokenize teacher"' in plan.data
    (page,) = shown("alm-report")
    assert "Aligned chunks of an example" in page.data
    check_audit(result["places"]["student"], tmp_path, shown)


def check_audit(student: str, folder: Path, shown: Callable[[str], list[Artifact]]) -> None:
    """The student is audited source by source, by the flow and by the command."""
    document = audit(student, examples=2, tokens=12, budget=5, largest=1)
    assert [report["examples"] for report in document["sources"].values()] == [1, 1]
    page, table = shown("alm-audit")
    assert {row["source"] for row in json.loads(str(table.data))} == {"tiny", "fifth"}
    assert str(page.data).count("data:image/png;base64,") == 2
    options = ["--examples", "2", "--tokens", "12", "--budget", "5", "--picture", str(folder / "audit.png")]
    printed = CliRunner().invoke(app, ["audit", student, *options])
    assert printed.exit_code == 0, printed.output
    assert "fifth: student, all chunks: distance" in " ".join(printed.stdout.split())
    assert sorted(file.name for file in folder.glob("*.png")) == ["audit-fifth.png", "audit-tiny.png"]


def test_a_source_is_named_for_its_shards_alone(config: AlmConfig, llama_folder: str, tmp_path: Path) -> None:
    chosen = mixture(config, llama_folder)
    for parameters, problem in (
        ({"source": "fifth"}, "source: needs `only: score`"),
        ({"only": "score", "source": "prose"}, r"source: prose is not a source of the corpus \(tiny, fifth\)"),
        ({"only": "score", "shards": [0]}, "shards: needs `source`, one of tiny, fifth"),
    ):
        with pytest.raises(UserError, match=problem):
            alm(config=chosen, storage=str(tmp_path), **parameters)  # type: ignore[arg-type]
