"""The code of docs/ runs as it is printed there, on tiny models."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from alm_pipeline.config import AlmConfig

DOCS = Path(__file__).parent.parent / "docs" / "objective.md"


def loop(name: str, config: AlmConfig, folder: Path) -> str:
    """The snippet, with a configuration out of a file for the recipe."""
    (found,) = re.findall(rf"<!-- tested: {name} -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (folder / "config.json").write_text(config.model_dump_json())
    assert found.count('recipe("transfer")') == 1
    chosen = 'load_config(pathlib.Path("config.json"))'
    return "import pathlib\nfrom alm_pipeline.config import load_config\n" + found.replace('recipe("transfer")', chosen)


@pytest.mark.parametrize("name", ["plain", "trainer"])
def test_the_loop_runs_and_learns(name: str, config: AlmConfig, tmp_path: Path) -> None:
    train = config.train.model_copy(update={"batch_tokens": 1024})
    objective = config.objective.model_copy(update={"temperature": 5.0})
    code = loop(name, config.model_copy(update={"train": train, "objective": objective}), tmp_path)
    code = code.replace("2e-4", "5e-3")
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    if name == "plain":
        assert len([line for line in code.splitlines() if line]) < 45
        losses = [float(line) for line in shown.stdout.split()]
        assert len(losses) == 20
        assert sum(losses[-3:]) < sum(losses[:3])
    else:
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")


def test_the_ensemble_of_the_docs_generates_and_scores(llama_folder: str, gemma_folder: str) -> None:
    text = (DOCS.parent / "ensembles.md").read_text()
    (code,) = re.findall(r"<!-- tested: ensemble -->\n```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("demo:smollm2-135m-instruct", llama_folder).replace("demo:gemma-3-270m", gemma_folder)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    written, bits = shown.stdout.rsplit("\n", 2)[:2]
    assert "Natalia sold 48 clips" in written
    assert float(bits) > 0
