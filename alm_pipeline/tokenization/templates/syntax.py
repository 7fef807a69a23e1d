"""What is known of a template without rendering it: whether it is valid, and which names it reads."""

from functools import lru_cache

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from storage.errors import UserError


class _Generation(Extension):
    """transformers' tag around what an assistant generates."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment that reads templates as transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    for function in ("raise_exception", "strftime_now"):
        environment.globals[function] = None
    return environment


def check_syntax(source: str, name: str) -> None:
    """Raise UserError, with the line, if a source is not a valid template; `name` is what it is called there."""
    try:
        _environment().compile(source)
    except TemplateSyntaxError as error:
        raise UserError(
            f"{name}: is not valid Jinja (line {error.lineno}: {error.message}): fix the template"
        ) from error
    except (ValueError, RecursionError, SyntaxError) as error:
        raise UserError(f"{name}: is not a template that Jinja can compile ({error}): fix the template") from error


@lru_cache(maxsize=64)
def names_read(source: str) -> frozenset[str]:
    """Return the names that a valid template reads from what it is rendered with."""
    return frozenset(meta.find_undeclared_variables(_environment().parse(source)))
