"""The page of commands: arguments, options and help of `alm`, from the typer app."""

import inspect
import re
from typing import Any

import typer

from docs.generator.markdown import anchor, code, escape, table
from flows.cli.app import app

_INTRODUCTION = """# Commands

Every command of `alm`, with the texts of `alm COMMAND --help`. A mistake that you can fix ends a command with status 1
and a line that begins with `error:`.

This page is generated from the command line itself.
"""
_REMARKS = re.compile(r"\s*((?:\s*\[[^\]]*\])+)$")
"""what typer puts after an option's help: its default and its bounds"""


def commands() -> dict[str, Any]:
    """The commands of `alm` by name. The objects are click's, of the copy that typer carries."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def page() -> str:
    """The page, in Markdown."""
    parts = [_command(name, command) for name, command in commands().items()]
    return "\n".join([_INTRODUCTION, *parts])


def _command(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option"]
    usage = " ".join(["alm", name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    blocks = [f"## alm {name} {{ #{name} }}", f"```text\n{usage}\n```", inspect.cleandoc(command.help or "")]
    for title, items in (("argument", arguments), ("option", options)):
        if items:
            blocks.append(table((title, "meaning", "default"), [_row(name, item, context) for item in items]))
    return "\n\n".join(blocks) + "\n"


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _row(command: str, parameter: Any, context: Any) -> tuple[str, str, str]:
    names, text = parameter.get_help_record(context)
    if parameter.param_type_name == "option":
        cell = anchor(command + parameter.opts[0]) + code(names.replace(" range>", ">"))
    else:
        cell = code(_argument(parameter))
    remarks = _REMARKS.search(text)
    return cell, escape(_REMARKS.sub("", text)), escape(_remark(remarks.group(1) if remarks else ""))


def _remark(brackets: str) -> str:
    return ", ".join(re.findall(r"\[([^\]]*)\]", brackets)).removeprefix("default: ").replace("x>=", "at least ")
