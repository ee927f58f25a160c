"""The commands of `lifelong`. Heavy libraries are imported inside a command, so that `--help` answers at once.

Exit codes: 0 done; 2 the input is wrong; 3 a verification or a forgetting budget was broken; 1 a bug;
130 interrupted, resumable.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from typing import Annotated, NoReturn

import typer

from lifelong import distributed
from lifelong.cli.caches import cache_app
from lifelong.cli.corpora import domain_app
from lifelong.cli.federate import federate_app
from lifelong.cli.inspect import check, list_names, report, schema, status
from lifelong.cli.models import evaluate, expand, merge
from lifelong.cli.push import push
from lifelong.cli.recipes import recipe_app
from lifelong.cli.run import extend, init, plan, run
from lifelong.cli.terminal import quiet_libraries, state
from lifelong.cli.verbs import HELP, Verbs, add
from lifelong.errors import InputError, Interrupted, LifelongError, printable

app = typer.Typer(
    name="lifelong",
    help="Continual pre-training of language models: train domain after domain, grow the model, measure forgetting.",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)
for verb, example in (
    (init, "init HuggingFaceTB/SmolLM2-135M --domain legal --out legal.yaml"),
    (run, "run quickstart --out runs/quickstart"),
    (status, "status runs/quickstart"),
    (extend, "extend runs/quickstart --domain contracts --tokens 1M"),
    (plan, "plan quickstart --devices 8 --sharding fsdp2"),
    (report, "report runs/replay runs/plain --out comparison"),
    (evaluate, "evaluate runs/quickstart --domain licences --stage initial"),
    (merge, "merge runs/quickstart --weight 0.5 --out merged"),
    (expand, "expand gpt2 gpt2-grown --layers 16"),
    (push, "push runs/quickstart --to my-name/quickstart --private"),
    (check, "check runs/quickstart"),
    (list_names, "list recipes"),
    (schema, "schema recipe"),
):
    add(app, verb, example, "list" if verb is list_names else None)
app.add_typer(recipe_app, name="recipe")
app.add_typer(domain_app, name="domain")
app.add_typer(cache_app, name="cache")
app.add_typer(federate_app, name="federate")

SEVERAL_PROCESSES = ("run", "extend")


def _print_version(value: bool) -> None:
    if value:
        from lifelong import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Read the options that all verbs share."""
    del version
    state.verbose = verbose
    if distributed.launched() > 1:
        if context.invoked_subcommand not in SEVERAL_PROCESSES:
            raise InputError(
                f"{context.invoked_subcommand}: runs in one process, and {distributed.launched()} were launched; only "
                f"{' and '.join(SEVERAL_PROCESSES)} know how to share their work: give the command without a launcher"
            )
        quiet_libraries()
        distributed.connect()


def _terminated(*_: object) -> None:
    """SIGTERM before a run listens to it: nothing was begun."""
    raise Interrupted("stopped by SIGTERM; run the same command again")


def main() -> None:
    """Entry point: one message and an exit code instead of a traceback, however many processes there are."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of ASCII shows what it can
        sys.stdout.reconfigure(errors="replace")
    with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
        signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=distributed.launched_rank() == 0)
        distributed.disconnect()
    except SystemExit as finished:
        if not finished.code:
            distributed.disconnect()
        raise
    except (LifelongError, Interrupted) as error:
        if state.verbose and distributed.launched() == 1:
            raise
        label = "interrupted" if isinstance(error, Interrupted) else "error"
        _end(f"{label}: {error}", error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", Interrupted.exit_code)
    except Exception as error:
        if distributed.launched_rank() and isinstance(code := getattr(error, "exit_code", None), int):
            sys.exit(code)  # wrong usage, which the first process tells
        if distributed.lost_peer(error):
            reason = str(error).strip().splitlines()[0][:200]
            _end(f"error: another process of this run is gone ({reason}); {CONTINUE}", distributed.LOST_PEER)
        from lifelong.cli.faults import fault_message

        message = fault_message(error)
        if state.verbose or message is None:
            if not distributed.agree_on_exit_code(1)[0]:
                sys.exit(1)
            raise
        _end(f"error: {message}", LifelongError.exit_code)


CONTINUE = "what is committed is whole, and the same command resumes from the last checkpoint"


def _end(message: str, exit_code: int) -> NoReturn:
    """Tell the reason and end; of several processes only the first that has one tells it."""
    if distributed.launched() > 1:  # the launcher ends the others as soon as one has ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told, exit_code = distributed.agree_on_exit_code(exit_code)
    if told:
        print(printable(message), file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
