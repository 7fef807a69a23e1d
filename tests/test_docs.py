"""The pages of docs/ and the README: their code runs, and the names in them exist."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import yaml
from transformers import AutoModelForCausalLM

from alm_pipeline.config import (
    AlmConfig,
    Balance,
    Chunking,
    CorpusConfig,
    Divergence,
    FilesSource,
    LearnedPart,
    LearnedTurns,
    Method,
    OneSided,
    Term,
    Tracker,
)
from alm_pipeline.config.fields.settings import settings_of
from alm_pipeline.ensemble.config import EnsembleConfig
from alm_pipeline.hypernetwork.evaluation import EVALUATIONS as HYPERNET_EVALUATIONS
from alm_pipeline.hypernetwork.networks.settings import NetworkKind
from alm_pipeline.hypernetwork.settings import HypernetConfig, parse_hypernet_config
from alm_pipeline.hypernetwork.training import METRICS as HYPERNET_METRICS
from alm_pipeline.objective.chunking.pair_bias_stage import SCHEMA as PAIR_BIASES
from alm_pipeline.recipes.overrides import FIELDS, setting_annotations
from alm_pipeline.training.loop.evaluations import EVALUATIONS, SAMPLES
from alm_pipeline.training.student.save import METRICS, METRICS_BY_SOURCE, SPEED
from docs.generator import commands, datasets, examples, rooms, settings
from docs.generator.pages import PAGES as GENERATED_PAGES
from flows.terminal.configurations import parse_settings
from storage.schemas import OPTIONAL, SCHEMAS
from tests.test_layers import ROOMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(DOCS.rglob("*.md")))
}
"""The written pages, by their path in the checkout."""
HYPERNETWORKS = "docs/how-to/hypernetwork.md"
MIXTURES = "docs/how-to/mixtures.md"
pages = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def code_blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages; "" is a block without one."""
    fenced = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    return [block for language, block in fenced if language in languages]


def inline_code(page: str) -> list[str]:
    without_blocks = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", without_blocks)


def snippet(page: str, name: str) -> str:
    """The block of code after the comment `tested: name`."""
    (code,) = re.findall(rf"<!-- tested: {name} -->\n```python\n(.*?)```", text_of(page), re.DOTALL)
    return str(code)


def run(code: str, folder: Path) -> str:
    """What the code prints, run in a folder."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# code that runs


@pytest.mark.parametrize("name", ["plain", "trainer"])
def test_the_training_loop_runs_and_learns(name: str, config: AlmConfig, tmp_path: Path) -> None:
    train = config.train.model_copy(update={"batch_tokens": 1024})
    objective = config.objective.model_copy(update={"temperature": 5.0})
    tiny = config.model_copy(update={"train": train, "objective": objective})
    code = snippet("docs/how-to/training-loop.md", name)
    (tmp_path / "config.json").write_text(tiny.model_dump_json())
    assert code.count('recipe("transfer")') == 1
    code = code.replace('recipe("transfer")', 'load_config(pathlib.Path("config.json"))').replace("2e-4", "5e-3")
    printed = run("import pathlib\nfrom alm_pipeline.config import load_config\n" + code, tmp_path)
    if name == "plain":
        assert len([line for line in code.splitlines() if line]) < 45
        losses = [float(line) for line in printed.split()]
        assert len(losses) == 20
        assert sum(losses[-3:]) < sum(losses[:3])
    else:
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")


def test_the_ensemble_generates_and_scores(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    code = snippet("docs/how-to/ensembles.md", "ensemble")
    code = code.replace("demo:smollm2-135m-instruct", llama_folder).replace("demo:gemma-3-270m", gemma_folder)
    generated, bits = run(code, tmp_path).rsplit("\n", 2)[:2]
    assert "Natalia sold 48 clips" in generated
    assert float(bits) > 0


def test_templates_mean_what_the_page_says() -> None:
    """Each as it is pasted into a shell, and the one for a file."""
    text = text_of("docs/how-to/own-run.md")
    (block,) = re.findall(r"<!-- tested: templates -->\n```\n(.*?)```", text, re.DOTALL)
    typed = [line.removeprefix("corpus.text=") for line in block.splitlines()]
    written = ["question", "{question} {answer}", "Q: {question}", "Q: {question}\nA: {answer}"]
    (pasted,) = re.findall(r"--set ('corpus\.text=.*?')", text)
    assert shlex.split(pasted) == [f"corpus.text={typed[-1]}"]
    assert [parse_settings([f"corpus.text={value}"])["corpus.text"] for value in typed] == written
    (in_file,) = re.findall(r"<!-- tested: template in a file -->\n```yaml\n(.*?)```", text, re.DOTALL)
    assert yaml.safe_load(in_file)["corpus"]["text"] == written[-1]
    (parameter,) = re.findall(r"-p '(settings=.*?)'", text.replace("\n", " "))
    assert yaml.safe_load(parameter.removeprefix("settings=")) == {"corpus.text": written[-1]}


def test_templates_of_all_pages_and_descriptions_are_taken() -> None:
    """What `--set corpus.text=…` and `--text …` are followed by, on every page and in the help of every command."""
    templates = [
        word.partition("=")[2] if word.startswith("corpus.text=") else word
        for page in PAGES
        for _, _, *words in command_lines(page)
        for before, word in zip(["", *words], words, strict=False)
        if word.startswith("corpus.text=") or before == "--text"
    ]
    description = CorpusConfig.model_fields["text"].description or ""
    templates += re.findall(r"`([^`]*\{[^`]*)`", description)
    assert len(templates) > 3
    for template in templates:
        text = parse_settings([f"corpus.text={template}"])["corpus.text"]
        assert CorpusConfig(name="x", source=FilesSource(urls=("x",)), text=text).text == text
        assert "\\" not in text
        assert text.count('"') in (0, 2 * text.count('""'))


@pages
def test_python_code_is_valid_and_imports_what_exists(page: str) -> None:
    for block in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and is_ours(node.module):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")


# names that exist


def is_ours(dotted: str) -> bool:
    return dotted.split(".")[0] in ("alm_pipeline", "storage", "flows", "benchmarks")


def resolve(dotted: str) -> None:
    """Find what a dotted path names in the sources, since some modules need an extra to be imported."""
    path, names = ROOT, dotted.split(".")
    while names and (path / names[0]).is_dir():
        path = path / names.pop(0)
    file = path / f"{names.pop(0)}.py" if names and (path / f"{names[0]}.py").is_file() else path / "__init__.py"
    scope: ast.AST = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    for name in names:
        defined = definitions(scope)
        assert name in defined, f"{dotted}: {file.relative_to(ROOT)} has no {name}"
        scope = defined[name]


def definitions(scope: ast.AST) -> dict[str, ast.AST]:
    """The names that a module or class defines or imports."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(scope):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                found.setdefault(node.name, node)
            case ast.ImportFrom():
                found |= {alias.asname or alias.name: node for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                found.setdefault(node.id, node)
    return found


@pages
def test_dotted_names_resolve(page: str) -> None:
    text = re.sub(r"\]\([^)]*\)", "", text_of(page))  # without links' targets
    names = set(re.findall(r"(?<![\w./-])(?:alm_pipeline|storage|flows|benchmarks)(?:\.\w+)+", text))
    for name in sorted(names):
        resolve(name)


@pages
def test_links_lead_somewhere(page: str) -> None:
    folder = PAGES[page].parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else PAGES[page]
        if file.is_relative_to(DOCS) and file.relative_to(DOCS).as_posix() in GENERATED_PAGES:
            # GitHub shows the README, and has no generated page
            assert page != "README.md", target
            continue
        assert file.exists(), f"{page}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, f"{page}: {target}"


def slug(title: str) -> str:
    """A title's anchor, as Python-Markdown makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


@pages
def test_files_of_the_checkout_exist(page: str) -> None:
    pattern = r"(?:tests|docs|benchmarks|examples|automations|alm_pipeline|storage|flows)/[\w./-]*[\w/]"
    names = {name for code in inline_code(page) for name in re.findall(rf"^({pattern})$", code)}
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of every `alm …` in code blocks and inline code."""
    for block in code_blocks(page, "", "bash", "sh", "console"):
        lines = block.replace("\\\n", " ").splitlines()
        for number, line in enumerate(lines):
            if found := re.match(r"\s*(?:\$ )?(?:\w+=\S+ )?(?:\.venv/bin/)?(alm [a-z].*)$", line):
                yield words([found[1], *lines[number + 1 :]])
    for code in inline_code(page):
        if re.match(r"alm [a-z]", code):
            yield words([code])


def words(lines: Sequence[str]) -> list[str]:
    """The words of a command that begins on the first line, and ends where its quotes are closed."""
    for end in range(1, len(lines) + 1):
        try:
            return shlex.split(re.sub(r"#.*|…|\s>.*|\$(?=')", " ", "\n".join(lines[:end])))
        except ValueError:
            continue
    raise ValueError(f"{lines[0]}: has no end")


@pages
def test_commands_and_options_exist(page: str) -> None:
    known = commands.commands()
    for _, name, *words in command_lines(page):
        assert name in known, f"{page}: alm {name}"
        options = {option for item in known[name].params for option in (*item.opts, *item.secondary_opts)}
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in {*options, "--help"}]
        assert unknown == [], f"{page}: alm {name}"


def setting_values(page: str) -> dict[str, str]:
    """What each setting takes, in words; on the page of hypernetworks, theirs are settings, too."""
    configs = (AlmConfig, HypernetConfig) if page == HYPERNETWORKS else (AlmConfig,)
    return {setting.path: settings.values(setting) for config in configs for setting in settings_of(config)}


def is_setting(path: str, page: str) -> bool:
    """Whether a dotted path is a setting, in the mapping that a setting takes, or of a source by name."""
    values, parts = setting_values(page), path.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    is_of_source = page == MIXTURES and bool(setting_annotations(path))
    return path in values or is_of_source or any(values.get(prefix, "").startswith("mapping") for prefix in above)


@pages
def test_settings_exist(page: str) -> None:
    sections = "|".join(AlmConfig.model_fields)
    codes = [*inline_code(page), *(" ".join(words) for words in command_lines(page))]
    names = {
        name
        for code in codes
        for name in re.findall(rf"(?<![\w./-])((?:{sections})(?:\.[a-z_]+)+)(?![\w/(]|\.[a-z])", code)
        if not is_module(name)
    }
    assert [name for name in sorted(names) if not is_setting(name, page)] == []


def is_module(name: str) -> bool:
    """A file's name, such as `train.jsonl`, is no setting."""
    return name.rpartition(".")[2] in {"py", "json", "jsonl", "yaml", "parquet", "png", "txt"}


@pages
def test_yaml_configurations_have_fields_that_exist(page: str) -> None:
    for block in code_blocks(page, "yaml"):
        content = yaml.safe_load(block)
        if set(content) <= set(AlmConfig.model_fields):
            assert [path for path in leaves(content) if not is_setting(path, page)] == []
        elif "members" in content:
            assert set(content) <= set(EnsembleConfig.model_fields)
        elif page == HYPERNETWORKS:
            parse_hypernet_config(content)


def leaves(content: Any, path: str = "") -> Iterator[str]:
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path


# pages that list what there is


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 200


def test_every_setting_has_a_description_and_is_on_its_page() -> None:
    page = settings.page()
    for setting in (*settings_of(AlmConfig), *settings_of(HypernetConfig)):
        is_described = setting.field.description or settings.values(setting).startswith("section")
        assert is_described or setting.path.endswith(".kind"), setting.path
        assert f"`{setting.path}`" in page


def test_every_override_is_on_the_page_of_settings() -> None:
    page = settings.page()
    for name, field in FIELDS.items():
        assert f"| `{name}` | `{field}` |" in page


@pytest.mark.parametrize(
    ("page", "choices"),
    [
        *(("docs/reference/objective.md", choices) for choices in (Chunking, Divergence, Balance, Term, LearnedPart)),
        ("docs/how-to/alignments.md", OneSided),
        ("docs/reference/objective.md", LearnedTurns),
        ("docs/how-to/training.md", Tracker),
        ("docs/how-to/transfer.md", Method),
        (HYPERNETWORKS, NetworkKind),
    ],
)
def test_every_choice_is_on_the_page_that_explains_it(page: str, choices: Any) -> None:
    assert [choice for choice in get_args(choices) if f"`{choice}`" not in text_of(page)] == []


def test_every_column_is_on_its_page() -> None:
    page = datasets.page()
    for kind, schema in SCHEMAS.items():
        for field in [*schema, *OPTIONAL.get(kind, ())]:
            assert f"| `{field.name}` |" in page


def test_every_command_is_on_its_page() -> None:
    page = commands.page()
    for name, command in commands.commands().items():
        assert f"## alm {name} " in page
        assert all(option in page for item in command.params for option in item.opts if option.startswith("--"))


def test_every_example_is_on_its_page() -> None:
    page = examples.page()
    for file in examples.FOLDER.glob("*.py"):
        assert f"](#{slug(file.name)})" in page
        assert f"## {file.name}\n\n```python\n{file.read_text(encoding='utf-8')}" in page
    for file in examples.FOLDER.glob("*.ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
        assert f"](#{slug(file.name)})" in page
        assert all(cell.split("\n\n")[-1] in page for cell in cells)
    assert "](../" not in page


def test_every_room_has_a_purpose() -> None:
    assert rooms.room_names() == list(ROOMS)
    assert set(ROOMS) - set(rooms.PURPOSES) == set()


@pytest.mark.parametrize("schema", [METRICS, METRICS_BY_SOURCE, EVALUATIONS, SAMPLES, SPEED, PAIR_BIASES])
def test_the_tables_of_a_student_have_all_their_columns(schema: pa.Schema) -> None:
    page = text_of("docs/reference/student-folder.md")
    rows = re.findall(r"^\| (`[^|]*`) \| (\w+) \|", page, re.MULTILINE)
    types = {name: type_ for names, type_ in rows for name in re.findall(r"`(\w+)`", names)}
    floats = {"double": "float64", "float": "float32"}
    expected = {field.name: floats.get(str(field.type), str(field.type)) for field in schema}
    assert {name: types.get(name) for name in expected} == expected


@pytest.mark.parametrize("schema", [HYPERNET_METRICS, HYPERNET_EVALUATIONS])
def test_the_tables_of_a_hypernetwork_have_all_their_columns(schema: pa.Schema) -> None:
    page = text_of(HYPERNETWORKS)
    assert [name for name in schema.names if f"`{name}`" not in page] == []


def test_every_deployment_is_explained() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    flows = [re.split(r"[.:]", item["entrypoint"])[-1] for item in deployments]
    names = [f"{flow.replace('_', '-')}/{item['name']}" for flow, item in zip(flows, deployments, strict=True)]
    page = text_of("docs/how-to/prefect.md")
    assert [name for name in names if f"| `{name}` |" not in page] == []
