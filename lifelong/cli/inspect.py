"""Commands that inspect: check a run, report on runs, list and describe names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lifelong.cli.run import _finish
from lifelong.cli.terminal import JsonOption, say, show
from lifelong.errors import InputError

SHORTEST_HASH = 12  # 48 bits: nobody makes a ledger of his own that begins so


def check(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    expect: Annotated[
        str | None, typer.Option(metavar="HASH", help="What the last line has to be: all of it, or its beginning.")
    ] = None,
) -> None:
    """Verify every committed file against its hash, the ledger's chain, and that it ends as was published."""
    from lifelong.ledger.folder import RunFolder
    from lifelong.ledger.ledger import check_run, read_records, record_hash
    from lifelong.report import altered_matrix

    findings = [*check_run(run_folder), *filter(None, [altered_matrix(RunFolder(run_folder).report.path)])]
    if findings:
        raise InputError(
            f"{run_folder}: {len(findings)} finding{'s' * (len(findings) > 1)}\n  " + "\n  ".join(findings)
        )
    records = read_records(run_folder)
    files = sum(len(record.files) for record in records)
    head = record_hash(records[-1])
    if expect is not None and not (len(expect) >= SHORTEST_HASH and head.startswith(expect.lower())):
        raise InputError(
            f"{run_folder}: its last line is {head}, not --expect {expect}"
            + f" (give at least {SHORTEST_HASH} digits)" * (len(expect) < SHORTEST_HASH)
            + ": every file is as this ledger says, but it is another ledger"
        )
    say(f"{run_folder}: {len(records) - 1} stages, {files} files, all as committed; last line {head}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/report, or nowhere.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report on one run, or compare several; checks what the recipe expects."""
    from lifelong.ledger.history import read_history

    if len(runs) == 1:
        from lifelong.ledger.folder import RunFolder
        from lifelong.ledger.storage import storage_faults
        from lifelong.report import altered_matrix, write_report

        out = out or RunFolder(runs[0]).report.path
        if finding := altered_matrix(out):
            say(f"note: {finding}", err=True)
        history = read_history(runs[0])
        with storage_faults(out, f"report {str(out)!r}", "then run the same command again"):
            write_report(history, out)
        _finish(runs[0], as_json, out, history)
        return
    from lifelong.report.compare import compare_runs
    from lifelong.report.compare_page import comparison_table, comparison_verdict, write_comparison

    comparison = compare_runs([read_history(path) for path in runs])
    if out is not None:
        write_comparison(comparison, out)
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        show(comparison_table(comparison))
        say(comparison_verdict(comparison))


LISTS = {
    "domains": "corpora", "families": "architectures that can grow", "methods": "continual-learning methods",
    "metrics": "metrics of a run", "recipes": "experiments", "tasks": "labelled tasks",
}  # fmt: skip


def list_names(
    what: Annotated[str, typer.Argument(help=" | ".join(LISTS))],
) -> None:
    """List the available domains, families, methods, metrics, recipes or tasks."""
    from lifelong.errors import UnknownNameError
    from lifelong.plugins import plugin_names

    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS)
    if what == "domains":
        from lifelong.stream.cards.domain import known_domains

        names = known_domains()
    elif what == "tasks":
        from lifelong.evaluate.task import known_tasks

        names = known_tasks()
    elif what == "recipes":
        from lifelong.recipe.files import known_recipes

        names = known_recipes()
    else:
        names = plugin_names({"families": "lifelong.expand.families"}.get(what, f"lifelong.{what}"))
    say("\n".join(names))


def schema(what: Annotated[str, typer.Argument(help="recipe | domain")]) -> None:
    """Print a JSON schema for editors."""
    from lifelong.errors import UnknownNameError

    if what == "recipe":
        from lifelong.recipe.recipe import Recipe

        typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
    elif what == "domain":
        from lifelong.stream.cards.domain import domain_schema

        typer.echo(json.dumps(domain_schema(), indent=1))
    else:
        raise UnknownNameError("schema", what, ["recipe", "domain"])
