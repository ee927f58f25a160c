"""Shared by all commands: options, terminal output, and quieter libraries."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lifelong import distributed
from lifelong.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    from lifelong.records import RunObserver

OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change a key of the recipe; may be repeated."),
]
SizeOption = Annotated[
    str | None,
    typer.Option(help="Size of a recipe that exists in several: ewc --size small is small/ewc."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
CardsOption = Annotated[
    list[str],
    typer.Option("--domain", metavar="CARD", help="Name or path of a domain card; may be repeated."),
]


@dataclass
class State:
    """Global options, given before the command."""

    verbose: bool = False


state = State()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import libraries without the garbage collector.

    It would go through all that thousands of modules make, again and again: a sixth of the time. What they made stays,
    so that it need not look at it later either.
    """
    first, was_on = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if was_on:
            gc.enable()


def quiet_libraries() -> None:
    """Load the libraries, and leave the terminal to our own messages; says so first, because it takes seconds."""
    import logging
    import warnings

    if "torch" not in sys.modules and distributed.launched_rank() == 0 and sys.stderr.isatty():
        typer.echo("loading torch and transformers ...", err=True)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # a variable and no call: importing datasets, with pandas and pyarrow behind it, is left to those who read text
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # threads that spin while they wait cost a factor of ten on a machine whose cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not state.verbose:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
        warnings.filterwarnings("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)
    with importing():
        import transformers

    if "datasets" in sys.modules:  # it reads the variable when it is imported
        sys.modules["datasets"].disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def display(as_json: bool) -> Iterator[RunObserver | None]:
    """The live display of a run, in the first process only; says first which packages are newer than tested."""
    from lifelong.pipeline.environment import untested_note
    from lifelong.report.progress import RichObserver

    if as_json or not distributed.is_main_process():
        yield None
        return
    with contextlib.closing(RichObserver()) as observer:
        if note := untested_note():
            observer.say(f"note: {note}")
        yield observer


def show(renderable: Any) -> None:
    """Print a table or a text as rich renders it."""
    from rich.console import Console

    Console().print(_Printable(renderable))


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a line that may hold names of strangers."""
    typer.echo(printable(text), err=err, nl=nl)


class _Printable:
    """A renderable without the control characters of its texts; those of rich itself stay."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
