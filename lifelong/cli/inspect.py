"""Commands that inspect: check a run, report on runs, list and describe names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lifelong.cli.run import finish
from lifelong.cli.terminal import JsonOption, say, show
from lifelong.errors import InputError

SHORTEST_HASH = 12  # 48 bits: nobody makes a ledger of his own that begins so


def check(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
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
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="One run, or several to compare.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; default RUN/report, of several runs nowhere.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print tables for a paper (booktabs) instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Report on one run, or compare several; checks what the recipe expects."""
    from lifelong.ledger.history import read_history
    from lifelong.ledger.storage import storage_faults

    if len(runs) == 1:
        from lifelong.ledger.folder import RunFolder
        from lifelong.report import altered_matrix, write_report
        from lifelong.report.write import latex as latex_of

        out = out or RunFolder(runs[0]).report.path
        if finding := altered_matrix(out):
            say(f"note: {finding}", err=True)
        history = read_history(runs[0])
        with storage_faults(out, f"report {str(out)!r}", "then run the same command again"):
            write_report(history, out)
        if latex:
            say(latex_of(history), nl=False)
            return
        finish(runs[0], as_json, out, history)
        return
    from lifelong.report.compare import compare_runs
    from lifelong.report.compare_page import (
        comparison_latex,
        comparison_table,
        comparison_verdict,
        write_comparison,
    )

    comparison = compare_runs([read_history(path) for path in runs])
    if out is not None:
        with storage_faults(out, f"report {str(out)!r}", "then run the same command again"):
            page = write_comparison(comparison, out)
    if latex:
        say(comparison_latex(comparison), nl=False)
    elif as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        show(comparison_table(comparison))
        say(comparison_verdict(comparison))
        say(
            f"comparison: {page}"
            if out is not None
            else "nothing was written; --out DIR writes the page and its tables"
        )


def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run, finished or not.")],
    as_json: JsonOption = False,
) -> None:
    """Show what is committed, what runs now and how far it is, and whether its process lives."""
    from lifelong.report.status import run_status, status_lines

    found = run_status(run_folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        say("\n".join(status_lines(found)))


LISTS = {
    "domains": "corpora", "families": "architectures that can grow", "methods": "continual-learning methods",
    "metrics": "metrics of a run", "recipes": "experiments", "tasks": "labelled tasks",
}  # fmt: skip


def list_names(
    what: Annotated[str, typer.Argument(help=", ".join(f"{name} ({text})" for name, text in LISTS.items()))],
    as_json: JsonOption = False,
) -> None:
    """List the available domains, families, methods, metrics, recipes or tasks, with a line of what each is."""
    from lifelong.cli.listing import listed
    from lifelong.errors import UnknownNameError

    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS)
    entries = listed(what)
    if as_json:
        typer.echo(json.dumps([{"name": name, "description": text} for name, text in entries], indent=1))
        return
    room = max((len(name) for name, _ in entries), default=0)
    say("\n".join(f"{name:<{room}}  {text}".rstrip() for name, text in entries))


def schema(what: Annotated[str, typer.Argument(help="recipe | domain")]) -> None:
    """Print a JSON schema for editors."""
    from lifelong.errors import UnknownNameError

    if what == "recipe":
        from lifelong.recipe.schema import recipe_schema

        typer.echo(json.dumps(recipe_schema(), indent=1))
    elif what == "domain":
        from lifelong.stream.cards.domain import domain_schema

        typer.echo(json.dumps(domain_schema(), indent=1))
    else:
        raise UnknownNameError("schema", what, ["recipe", "domain"])
