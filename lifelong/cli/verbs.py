"""How verbs look: help that is not cut, metavars of one kind, one example each, and the options that all share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lifelong.cli.terminal import state

HELP = {"help_option_names": ["-h", "--help"]}
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]


def _no_type(*_: Any, **__: Any) -> str:
    return ""


class Verb(TyperCommand):
    """A command whose values are all named in capitals."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if parameter.metavar is None and not getattr(parameter, "is_flag", False):
                parameter.metavar = (parameter.name or "").upper()
            # newer releases of typer write the type of an argument after its name
            if parameter.param_type_name == "argument" and hasattr(parameter, "display_type_rich"):
                parameter.display_type_rich = _no_type


class Verbs(TyperGroup):
    """A group whose list of commands gives every summary whole, in the order in which they are added."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of use, not of the alphabet."""
        del ctx
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """First paragraphs, wrapped and not cut."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, " ".join((command.help or "").split("\n\n")[0].split())))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def add(app: typer.Typer, function: Callable[..., None], example: str, name: str | None = None) -> None:
    """Add a verb with an example, and with the options that may stand before it and after it."""
    app.command(name=name, cls=Verb, epilog=f"Example: lifelong {example}", context_settings=HELP)(_shared(function))


def _shared(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def verb(*, verbose: bool = False, **given: Any) -> None:
        state.verbose = state.verbose or verbose
        function(**given)

    own = list(inspect.signature(function, eval_str=True).parameters.values())
    shared = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    verb.__signature__ = inspect.Signature([*parameters, shared])  # type: ignore[attr-defined]
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in (*parameters, shared)}
    return verb
