"""The page of examples: `examples/README.md`, and the text of each example below it."""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples"


def page() -> str:
    """The table of `examples/README.md`, whose links lead to the examples further down."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| \[([\w.]+)\]\(\1\)", readme, re.MULTILINE)
    for name in names:
        readme = readme.replace(f"]({name})", f"](#{name.replace('.', '')})")
    readme = re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", readme)  # what is outside of the site
    return "\n".join([readme, *(f"## {name}\n\n{_content(FOLDER / name)}" for name in names)])


def _content(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return _notebook(json.loads(text)["cells"]) if file.suffix == ".ipynb" else _code(text)


def _notebook(cells: list[dict[str, Any]]) -> str:
    texts = (("".join(cell["source"]), cell["cell_type"]) for cell in cells)
    return "\n".join(_code(text) if kind == "code" else _below(text) for text, kind in texts)


def _code(text: str) -> str:
    return f"```python\n{text.strip()}\n```\n"


def _below(text: str) -> str:
    """Markdown of a notebook with its headings two levels lower, except that of the notebook, which has one."""
    text = re.sub(r"^# .*\n+", "", text)
    return re.sub(r"^##(?= )", "###", text, flags=re.MULTILINE) + "\n"
