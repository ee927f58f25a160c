"""Runs: begin or continue one, extend it, plan it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lifelong import distributed
from lifelong.cli.terminal import (
    CardsOption,
    JsonOption,
    OverrideOption,
    SizeOption,
    display,
    quiet_libraries,
    say,
    show,
)
from lifelong.errors import InputError, VerificationError

if TYPE_CHECKING:
    from lifelong.records import RunHistory


def run(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    size: SizeOption = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder; default runs/NAME.")] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Run seeds 0 to N - 1 into RUN/seed-0 ..., then compare.")
    ] = None,
    overrides: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole stream; resumes an interrupted run by itself."""
    from lifelong.recipe.files import load_recipe

    name = f"{size}/{recipe}" if size else recipe
    chosen = [[]] if seeds is None else [[f"seed={seed}"] for seed in range(seeds)]
    recipes = [load_recipe(name, [*(overrides or ()), *seed]) for seed in chosen]
    folder = out or Path("runs") / recipes[0].name
    if not as_json and distributed.launched_rank() == 0:
        tokens = sum(stage.tokens for stage in recipes[0].stages)
        say(f"{recipes[0].name}: {len(recipes[0].stages)} stages, {tokens:,} tokens, into {folder}")
    quiet_libraries()
    from lifelong.pipeline.loop import run_recipe

    if seeds is None:
        with display(as_json) as observer:
            result = run_recipe(recipes[0], folder, observer)
        finish(Path(result.out), as_json)
        return
    for loaded in recipes:
        with display(as_json) as observer:
            run_recipe(loaded, folder / f"seed-{loaded.seed}", observer)
    if distributed.is_main_process():
        from lifelong.cli.inspect import report

        folders = [folder / f"seed-{loaded.seed}" for loaded in recipes]
        report(folders, folder / "comparison", as_json=as_json)
        _require_promises(folders)


def extend(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    domain: Annotated[str, typer.Option(metavar="CARD", help="Name or path of the new domain's card.")],
    tokens: Annotated[
        str | None, typer.Option(help="Token budget, for example 2M; default: that of the last stage.")
    ] = None,
    overrides: OverrideOption = None,
    allow_paths: Annotated[
        bool, typer.Option("--allow-paths", help="Obey what the recipe of somebody else's run names outside of it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on one more domain, from the run folder alone; earlier corpora are not needed."""
    if not as_json and distributed.launched_rank() == 0:
        say(f"{run_folder}: one more stage on {domain}")
    quiet_libraries()
    from lifelong.pipeline.loop import extend_run

    with display(as_json) as observer:
        result = extend_run(
            run_folder, domain, tokens=tokens, overrides=overrides or (), allow_paths=allow_paths, observer=observer
        )
    finish(Path(result.out), as_json)


def plan(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    size: SizeOption = None,
    overrides: OverrideOption = None,
    devices: Annotated[int, typer.Option(help="Number of devices (data parallel).")] = 1,
    sharding: Annotated[
        str | None, typer.Option(help="none, ddp, fsdp2, zero2 or zero3; default: ddp on several devices.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: this machine's, cuda where --devices is above 1.")
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Peak FLOP/s of one device, for example 400e12.")] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Model FLOPs utilisation (share of --flops reached); default 0.4.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few real steps of every shape on this machine.")
    ] = False,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Sample the beginning of local corpora.")] = True,
    probe: Annotated[
        bool, typer.Option("--probe", help="Run short pieces of a stage, and say what its budget would cost.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Dry run: shapes, steps, FLOPs, memory, disk, time and warnings of every stage; loads no weights."""
    from lifelong.recipe.files import load_recipe

    loaded = load_recipe(f"{size}/{recipe}" if size else recipe, overrides or ())
    quiet_libraries()
    from lifelong.plan import plan_recipe, plan_tables, planned_devices, planned_speed

    on = planned_devices(devices, sharding, device)
    planned = plan_recipe(loaded, on, speed=planned_speed(loaded, flops, mfu, measure), text=text)
    if not as_json:
        for part in plan_tables(planned):
            show(part)
    dose = None
    if probe:
        from lifelong.plan.dose import dose_parts, probe_dose

        dose = probe_dose(loaded)
        for part in () if as_json else dose_parts(dose):
            show(part)
    if as_json:
        typer.echo(json.dumps({**planned.to_json(), **({"dose": dose.to_json()} if dose else {})}, indent=1))


def init(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder or hub id to start from.")],
    domain: CardsOption,
    watch: Annotated[
        list[str] | None,
        typer.Option(metavar="CARD", help="Text to watch; may be repeated. Default: general text that is here."),
    ] = None,
    old: Annotated[
        list[str] | None,
        typer.Option(metavar="CARD", help="Text like the base's own, to be trained on too; may be repeated."),
    ] = None,
    base_tokens: Annotated[
        str | None, typer.Option(help="Tokens that the base was trained on, for example 2T: decides the learning rate.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here; default: print it.")] = None,
) -> None:
    """Write a commented recipe for a checkpoint, with settings that fit this machine's memory by plan's figures."""
    from lifelong.schema import parse_count

    count = parse_count(base_tokens)
    if base_tokens is not None and not isinstance(count, int):
        raise InputError(f"init --base-tokens: a number like 2T, not {base_tokens!r}")
    if out is not None and out.exists():
        raise InputError(f"{str(out)!r} already exists; choose a new file")
    quiet_libraries()
    from lifelong.plan.draft import DraftInputs, draft_recipe

    known = count if isinstance(count, int) else None
    text = draft_recipe(DraftInputs(checkpoint, domain, watch or (), old or (), known))
    if out is None:
        typer.echo(text, nl=False)
        return
    from lifelong.files import write_text

    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    typer.echo(f"recipe: {out}")


def finish(out: Path, as_json: bool, report_folder: Path | None = None, history: RunHistory | None = None) -> None:
    """Show the matrix and the metrics of a run, and whether it met its recipe's expectations."""
    if not distributed.is_main_process():
        return
    from lifelong.ledger.folder import ReportFolder, RunFolder
    from lifelong.ledger.history import read_history
    from lifelong.report import matrix_json
    from lifelong.report.table import run_tables
    from lifelong.report.verdict import broken_promises

    history = history or read_history(out)
    if as_json:
        typer.echo(json.dumps(matrix_json(history), indent=1))
    else:
        for table in run_tables(history):
            show(table)
        report = ReportFolder(report_folder) if report_folder else RunFolder(out).report
        say(f"report: {report.page}")
    if broken := broken_promises(history):
        raise VerificationError("; ".join(broken))


def _require_promises(folders: Sequence[Path]) -> None:
    """What runs of several seeds were expected to reach, after all of them are there to be looked at."""
    from lifelong.ledger.history import read_history
    from lifelong.report.verdict import broken_promises

    if broken := [f"{folder.name}: {line}" for folder in folders for line in broken_promises(read_history(folder))]:
        raise VerificationError("; ".join(broken))
