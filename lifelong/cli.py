"""The verbs of `lifelong`. Heavy libraries are imported inside a verb, so that `--help` answers at once.

Exit codes: 0 done; 2 the input is wrong; 3 a verification or a forgetting budget was broken; 1 a bug;
130 interrupted, resumable.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lifelong import ranks
from lifelong.errors import BrokenPromiseError, InputError, Interrupted, LifelongError

if TYPE_CHECKING:
    from lifelong.records import RunObserver

app = typer.Typer(
    name="lifelong",
    help="Continual pre-training of language models: learn domain after domain, grow, see what was forgotten.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
domain_app = typer.Typer(no_args_is_help=True, help="Corpora: add one, list, look inside, check.")
app.add_typer(domain_app, name="domain")

OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change a key of the recipe; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]
CardsOption = Annotated[
    list[str],
    typer.Option("--domain", metavar="CARD", help="Name or path of a domain card; may be repeated."),
]

_verbose = False


SEVERAL_PROCESSES = ("run", "extend")


@app.callback()
def options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Read the options that all verbs share."""
    global _verbose  # noqa: PLW0603 - read by `main` after typer has returned
    _verbose = verbose
    if version:
        from lifelong import __version__

        typer.echo(__version__)
        raise typer.Exit
    if ranks.launched() > 1:
        if context.invoked_subcommand not in SEVERAL_PROCESSES:
            raise InputError(
                f"{context.invoked_subcommand}: runs in one process, and {ranks.launched()} were launched; only "
                f"{' and '.join(SEVERAL_PROCESSES)} know how to share their work: give the command without a launcher"
            )
        quiet_libraries()
        ranks.connect()


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    overrides: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole stream; continues by itself where an interrupted run stopped."""
    from lifelong.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    quiet_libraries()
    from lifelong.pipeline import run_recipe

    with _display(as_json) as display:
        result = run_recipe(loaded, out or Path("runs") / loaded.name, display)
    _finish(Path(result.out), as_json)


@app.command()
def extend(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    domain: Annotated[str, typer.Option(metavar="CARD", help="Name or path of the new domain's card.")],
    tokens: Annotated[
        str | None, typer.Option(help="Token budget, for example 2M; default: that of the last stage.")
    ] = None,
    overrides: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn one more domain, from the run's own folder; the earlier corpora are not needed."""
    quiet_libraries()
    from lifelong.pipeline import extend_run

    with _display(as_json) as display:
        result = extend_run(run_folder, domain, tokens=tokens, overrides=overrides or (), observer=display)
    _finish(Path(result.out), as_json)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    overrides: OverrideOption = None,
    devices: Annotated[int, typer.Option(help="Devices that share a step.")] = 1,
    sharding: Annotated[
        str | None, typer.Option(help="none, ddp, fsdp2, zero2 or zero3; default: ddp on several devices.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: this machine's, cuda where --devices is above 1.")
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Peak FLOP/s of one device, for example 400e12.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Share of --flops that is reached; default 0.4.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time a few real steps of every shape here.")] = False,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Look at the beginning of local corpora.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Dry run: shapes, steps, FLOPs, memory, disk, time and warnings of every stage; loads no weights."""
    from lifelong.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    quiet_libraries()
    from lifelong.plan import plan_recipe, plan_tables, planned_devices, planned_speed

    on = planned_devices(devices, sharding, device)
    planned = plan_recipe(loaded, on, speed=planned_speed(loaded, flops, mfu, measure), text=text)
    if as_json:
        typer.echo(json.dumps(planned.to_json(), indent=1))
    else:
        for part in plan_tables(planned):
            _print(part)


@app.command()
def expand(
    source: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="New folder for the grown model.")],
    layers: Annotated[int | None, typer.Option()] = None,
    hidden_size: Annotated[int | None, typer.Option()] = None,
    intermediate_size: Annotated[int | None, typer.Option()] = None,
    heads: Annotated[int | None, typer.Option()] = None,
    kv_heads: Annotated[int | None, typer.Option()] = None,
    head_dim: Annotated[int | None, typer.Option()] = None,
    vocab_size: Annotated[int | None, typer.Option()] = None,
    positions: Annotated[int | None, typer.Option(help="Longest sequence.")] = None,
    experts: Annotated[int | None, typer.Option(help="A dense model becomes a mixture.")] = None,
    experts_per_token: Annotated[int | None, typer.Option()] = None,
    mode: Annotated[str, typer.Option(help="exact keeps the function; elle copies at random, as published.")] = "exact",
    strategy: Annotated[str, typer.Option(help="How new units begin: pad, clone or pairs; all exact.")] = "pad",
    placement: Annotated[
        str, typer.Option(help="New layers: interleaved, last, or the layers they follow: 0,0,3.")
    ] = "interleaved",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Go on where exactness is impossible; the gap is reported.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what would be done; loads no weights.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: JsonOption = False,
) -> None:
    """Grow a checkpoint; the result is verified and loads with plain from_pretrained."""
    named = {
        "layers": layers, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "heads": heads,
        "kv_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab_size, "positions": positions,
        "experts": experts, "experts_per_token": experts_per_token,
    }  # fmt: skip
    targets = {axis: size for axis, size in named.items() if size is not None}
    if not targets:
        raise InputError("expand: name at least one larger size, for example --layers 12 --hidden-size 768")
    if out.exists() and not explain:
        raise InputError(f"{str(out)!r} exists already; name a new folder")
    # large pages: fresh memory costs a third of the time otherwise; torch reads this when it is imported
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    quiet_libraries()
    from lifelong.expand import expand_checkpoint, explain_expansion

    chosen: dict[str, Any] = {
        "mode": mode, "strategy": strategy, "placement": _layers(placement), "approximate": approximate,
    }  # fmt: skip
    if explain:
        typer.echo(explain_expansion(source, targets, **chosen))
        return
    from lifelong.report.progress import progress_bar
    from lifelong.report.table import expansion_table

    with _terminable(), progress_bar(f"grow {Path(source).name}") as told:
        report = expand_checkpoint(source, out, targets=targets, seed=seed, progress=told, **chosen)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        _print(expansion_table(report))
    if not report.passed:
        raise BrokenPromiseError(
            f"the grown model is not exact: logits differ by {report.max_logit_difference_float64:.1e} in float64 "
            f"(allowed {report.tolerance:.0e}); nothing was written"
        )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: what is half-written is removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _layers(placement: str) -> str | list[int]:
    """`0,0,3` as a list of layers; a word stays one."""
    parts = placement.split(",")
    return [int(part) for part in parts] if all(part.strip().isdigit() for part in parts) else placement


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="Checkpoint folder, hub id, or run folder (its last stage)."),
    ],
    domain: Annotated[
        list[str] | None, typer.Option(metavar="CARD", help="Name or path of a domain card; may be repeated.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Held-out tokens per domain.")] = "100k",
    sequence_length: Annotated[int, typer.Option()] = 256,
    objective: Annotated[str, typer.Option(help="clm or mlm.")] = "clm",
    split: Annotated[str, typer.Option(help="valid or test.")] = "valid",
    task: Annotated[
        list[str] | None, typer.Option(metavar="CARD", help="Fine-tune a copy on this task; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Tasks: fine-tuned copies of each.")] = 5,
    epochs: Annotated[int, typer.Option(help="Tasks: at most so many.")] = 10,
    patience: Annotated[int, typer.Option(help="Tasks: epochs without a better dev score.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Tasks: small models want a larger one.")] = 2e-5,
    examples: Annotated[int | None, typer.Option(help="Tasks: at most so many of every split.")] = None,
    harness: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="A task of lm-evaluation-harness, if installed.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tasks: safetensors, domain to token embeddings.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Held-out loss per domain; --task: scores of fine-tuned copies; --harness: tasks of lm-evaluation-harness."""
    if sum(map(bool, (domain, task, harness))) != 1:
        raise InputError("evaluate: name one of domains (--domain CARD), tasks (--task CARD), or --harness TASK")
    quiet_libraries()
    if harness:
        from lifelong.adapters.lm_eval import evaluate_with_harness

        typer.echo(json.dumps(evaluate_with_harness(model, harness, limit=examples), indent=1))
        return
    if task:
        from lifelong.evaluate.downstream import FineTuning, evaluate_tasks
        from lifelong.evaluate.task import load_task
        from lifelong.report.downstream import tasks_table

        cards = [load_task(card) for card in task]
        settings = FineTuning(learning_rate, epochs, patience, seeds=seeds, examples=examples, length=sequence_length)
        scores = evaluate_tasks(model, cards, settings, objective=objective, prompts=prompts)
        if as_json:
            typer.echo(json.dumps([item.to_json() for item in scores], indent=1))
        else:
            _print(tasks_table(scores))
        return
    from lifelong.pipeline import evaluate_cards
    from lifelong.report.table import losses_table
    from lifelong.report.uncertainty import loss_interval

    losses = evaluate_cards(
        model, domain or [], tokens=tokens, sequence_length=sequence_length, objective=objective, split=split
    )
    if as_json:
        figures = [
            {"domain": loss.domain, "nats_per_token": loss.nats_per_token, "perplexity": loss.perplexity,
             "bits_per_byte": loss.bits_per_byte, "tokens": loss.tokens,
             "interval": [bounds.low, bounds.high] if (bounds := loss_interval(loss)) else None}
            for loss in losses
        ]  # fmt: skip
        typer.echo(json.dumps(figures, indent=1))
    else:
        _print(losses_table(losses))


@app.command()
def cache(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The teacher: checkpoint folder, hub id, or run folder (last stage).")
    ],
    domain: CardsOption,
    out: Annotated[Path, typer.Option(metavar="CACHE", help="Folder of the cache.")],
    tau: Annotated[float | None, typer.Option(help="Keep p >= tau, sample the rest unbiased; default 0.05.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the K most probable tokens instead.")] = None,
    renormalise: Annotated[bool, typer.Option("--renormalise", help="Scale the K to sum to one.")] = False,
    draws: Annotated[int | None, typer.Option(help="Draw so many tokens at random instead.")] = None,
    temperature: Annotated[float, typer.Option(help="As in the recipe that will use it.")] = 2.0,
    sequence_length: Annotated[int, typer.Option(help="As in the recipe.")] = 256,
    objective: Annotated[str, typer.Option(help="clm or mlm.")] = "clm",
    tokens: Annotated[str | None, typer.Option(help="Of each domain at most so many, for example 2M.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Default: the model's own.")] = None,
    mask_seed: Annotated[int, typer.Option(help="mlm: seed of the masks.")] = 0,
    mask_patterns: Annotated[int, typer.Option(help="mlm: masks of each block.")] = 1,
    device: Annotated[str | None, typer.Option(help="Default: cuda where there is one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a teacher says about corpora as sparse targets; continues where an earlier call stopped."""
    from lifelong.recipe import parse_count

    count = parse_count(tokens)
    if tokens is not None and not isinstance(count, int):
        raise InputError(f"cache --tokens: a number like 2M, not {tokens!r}")
    quiet_libraries()
    from lifelong.caching import CacheRequest, default_device, make_scheme, write_cache
    from lifelong.report.progress import cache_progress

    request = CacheRequest(
        model, domain, make_scheme(tau=tau, top_k=top_k, draws=draws, renormalise=renormalise), temperature, objective,
        sequence_length, count if isinstance(count, int) else None, tokenizer, mask_seed, mask_patterns,
        device=device or default_device(),
    )  # fmt: skip
    with cache_progress(quiet=as_json) as progress:
        written = write_cache(request, out, progress)
    if as_json:
        typer.echo(json.dumps(written.to_json(), indent=1))
    else:
        typer.echo(
            f"{out}: {written.blocks:,} blocks, {written.tokens:,} predicted tokens, {written.num_bytes:,} bytes "
            f"({written.bytes_per_token:.1f} a token)"
        )


@app.command()
def check(run_folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Every committed file against its hash; the ledger's chain."""
    from lifelong.ledger import check_run, read_records
    from lifelong.report import altered_matrix

    findings = [*check_run(run_folder), *filter(None, [altered_matrix(run_folder / "report")])]
    if findings:
        raise InputError(
            f"{run_folder}: {len(findings)} finding{'s' * (len(findings) > 1)}\n  " + "\n  ".join(findings)
        )
    records = read_records(run_folder)
    files = sum(len(record.files) for record in records)
    typer.echo(f"{run_folder}: {len(records) - 1} stages, {files} files, all as committed")


@app.command()
def merge(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN")],
    weight: Annotated[
        float | None, typer.Option(metavar="A", help="Write this model: 0 before the stage, 1 trained.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the model.")] = None,
    stage: Annotated[str | None, typer.Option(help="Name or number of the stage; default the last.")] = None,
    weights: Annotated[str, typer.Option(help="Without --weight: evaluate these.")] = "0,0.25,0.5,0.75,1",
    as_json: JsonOption = False,
) -> None:
    """Between the model before a stage, at the new size, and the trained one: evaluate some weights, or write one."""
    if (weight is None) != (out is None):
        raise InputError("merge: --weight A --out DIR go together; without both, the front is evaluated")
    quiet_libraries()
    from lifelong.pipeline import read_recipe_file
    from lifelong.report.table import front_table

    if not (run_folder / "ledger.jsonl").is_file():
        raise InputError(f"{str(run_folder)!r} is no run folder: it has no ledger.jsonl")
    recipe = read_recipe_file(run_folder).to_plain()
    if weight is not None and out is not None:
        from lifelong.expand.interpolate import merge_stage

        record = merge_stage(run_folder, recipe, weight, out, stage)
        typer.echo(f"{out}: {weight:g} of the way through stage {record.name}; loads with from_pretrained")
        return
    from lifelong.evaluate.front import interpolation_front, parse_weights
    from lifelong.history import read_history

    front = interpolation_front(run_folder, recipe, parse_weights(weights), stage)
    if as_json:
        typer.echo(json.dumps(front.to_json(), indent=1))
    else:
        _print(front_table(front, read_history(run_folder).matrix))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/report, or nowhere.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One run, or a comparison of several; checks what the recipe expects."""
    from lifelong.history import read_history

    if len(runs) == 1:
        from lifelong.report import altered_matrix, write_report

        if finding := altered_matrix(out or runs[0] / "report"):
            print(f"note: {finding}", file=sys.stderr)  # noqa: T201
        write_report(read_history(runs[0]), out or runs[0] / "report")
        _finish(runs[0], as_json, out or runs[0] / "report")
        return
    from lifelong.report.compare import compare_runs
    from lifelong.report.compare_page import comparison_table, comparison_verdict, write_comparison

    comparison = compare_runs([read_history(path) for path in runs])
    if out is not None:
        write_comparison(comparison, out)
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        _print(comparison_table(comparison))
        typer.echo(comparison_verdict(comparison))


@domain_app.command("add")
def domain_add(
    name: Annotated[str, typer.Argument(help="Name of the domain.")],
    files: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Training files; may be repeated.")] = None,
    valid: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Held-out files; else cut by hash.")] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Test files.")] = None,
    hub: Annotated[str | None, typer.Option(metavar="ID", help="Data set on the Hugging Face hub.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the hub data set.")] = None,
    python_text: Annotated[str | None, typer.Option(metavar="KIND", help="Text installed with Python.")] = None,
    split: Annotated[str | None, typer.Option(help="Training split of the hub data set.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read the hub data set as it arrives.")] = False,
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share cut for each split not given.")] = None,
    dedup: Annotated[str | None, typer.Option(help="Drop repeated documents: none, exact or near.")] = None,
    on_bad_document: Annotated[str | None, typer.Option(help="error or skip.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the corpus.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Count tokens with this one.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the card goes.")] = Path("domains"),
    as_json: JsonOption = False,
) -> None:
    """Write a card after reading the corpus, and show what it holds."""
    from lifelong.stream.summary import add_domain

    quiet_libraries()
    settings = {
        "config": config, "revision": revision, "split": split, "streaming": streaming or None,
        "text_field": text_field, "held_out": held_out, "dedup": dedup,
        "on_bad_document": on_bad_document, "licence": licence,
    }  # fmt: skip
    card, summary = add_domain(
        name,
        files=files or (),
        valid=valid or (),
        test=test or (),
        hub=hub,
        python_text=python_text,
        out=out,
        tokenizer=_tokenizer(tokenizer),
        **{key: value for key, value in settings.items() if value is not None},
    )
    _show_summary(summary, as_json)
    if not as_json:
        typer.echo(f"card: {card}")


@domain_app.command("list")
def domain_list() -> None:
    """Every known card."""
    from rich.table import Table
    from rich.text import Text

    from lifelong.stream.summary import list_domains

    table = Table()
    for heading in ("domain", "licence", "source"):
        table.add_column(heading, overflow="fold")
    for entry in list_domains():
        fault = entry.get("fault")
        described = f"broken: {fault}" if fault else str(entry.get("source") or entry.get("card") or "")
        table.add_row(str(entry["name"]), Text(str(entry.get("licence") or "not stated")), Text(described))
    _print(table)


@domain_app.command("show")
def domain_show(
    card: Annotated[str, typer.Argument(metavar="CARD")],
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Count tokens with this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Documents, bytes, samples, repeats and overlap with other domains."""
    from lifelong.stream.domain import load_domain
    from lifelong.stream.summary import describe_domain

    quiet_libraries()
    _show_summary(describe_domain(load_domain(card), _tokenizer(tokenizer)), as_json)


@domain_app.command("check")
def domain_check(cards: Annotated[list[str], typer.Argument(metavar="CARD...")]) -> None:
    """Read every document of the named domains once; what looks unwise is listed."""
    from lifelong.stream.domain import load_domain
    from lifelong.stream.summary import describe_domain

    quiet_libraries()
    for card in cards:
        summary = describe_domain(load_domain(card))
        typer.echo(f"{summary.name}: {sum(summary.documents.values()):,} documents read")
        for warning in summary.warnings:
            typer.echo(f"  ! {warning}")
        if not summary.warnings:
            typer.echo("  nothing unwise found")


def _tokenizer(source: str | None) -> Any:
    if source is None:
        return None
    from lifelong.stream.tokenize import load_tokenizer

    return load_tokenizer(source)


def _show_summary(summary: Any, as_json: bool) -> None:
    """A domain as a table for 80 columns, and its warnings."""
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=1))
        return
    from lifelong.report.domain_table import summary_table

    _print(summary_table(summary))
    for warning in summary.warnings:
        typer.echo(f"! {warning}")


LISTS = {
    "domains": "corpora", "families": "architectures that can grow", "methods": "continual-learning methods",
    "metrics": "metrics of a run", "recipes": "experiments", "tasks": "labelled tasks",
}  # fmt: skip


@app.command(name="list")
def list_names(
    what: Annotated[str, typer.Argument(help=" | ".join(LISTS))],
) -> None:
    """What there is."""
    from lifelong.errors import UnknownNameError
    from lifelong.plugins import plugin_names

    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS)
    if what == "domains":
        from lifelong.stream.domain import known_domains

        names = known_domains()
    elif what == "tasks":
        from lifelong.evaluate.task import known_tasks

        names = known_tasks()
    elif what == "recipes":
        from lifelong.recipe import known_recipes

        names = known_recipes()
    else:
        names = plugin_names({"families": "lifelong.expand.families"}.get(what, f"lifelong.{what}"))
    typer.echo("\n".join(names))


@app.command()
def schema(what: Annotated[str, typer.Argument(help="recipe | domain")]) -> None:
    """JSON schema for editors."""
    from lifelong.errors import UnknownNameError

    if what == "recipe":
        from lifelong.recipe import Recipe

        typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
    elif what == "domain":
        from lifelong.stream.domain import domain_schema

        typer.echo(json.dumps(domain_schema(), indent=1))
    else:
        raise UnknownNameError("schema", what, ["recipe", "domain"])


def quiet_libraries() -> None:
    """Leave the terminal to our own messages."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # threads that spin while they wait cost a factor of ten on a machine whose cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not _verbose:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
        warnings.filterwarnings("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def _display(as_json: bool) -> Iterator[RunObserver | None]:
    """The live display of a run, in the first process only; says first which packages are newer than tested."""
    from lifelong.report.progress import RichObserver
    from lifelong.versions import untested_note

    if as_json or not ranks.is_first():
        yield None
        return
    with contextlib.closing(RichObserver()) as display:
        if note := untested_note():
            display.say(f"note: {note}")
        yield display


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _finish(out: Path, as_json: bool, report_folder: Path | None = None) -> None:
    """Show the matrix and the metrics of a run, and whether it met its recipe's expectations."""
    if not ranks.is_first():
        return
    from lifelong.history import read_history
    from lifelong.report import matrix_json
    from lifelong.report.table import run_tables

    history = read_history(out)
    if as_json:
        typer.echo(json.dumps(matrix_json(history), indent=1))
        return
    for table in run_tables(history):
        _print(table)
    typer.echo(f"report: {(report_folder or out / 'report') / 'index.html'}")


def _terminated(*_: object) -> None:
    """SIGTERM before a run listens to it: nothing was begun."""
    raise Interrupted("stopped by SIGTERM; run the same command again")


def main() -> None:
    """Entry point: one message and an exit code instead of a traceback, however many processes there are."""
    with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
        signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=ranks.launched_rank() == 0)
        ranks.disconnect()
    except SystemExit as finished:
        if not finished.code:
            ranks.disconnect()
        raise
    except (LifelongError, Interrupted) as error:
        if _verbose and ranks.launched() == 1:
            raise
        label = "interrupted" if isinstance(error, Interrupted) else "error"
        _end(f"{label}: {error}", error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", Interrupted.exit_code)
    except Exception as error:
        if ranks.launched_rank() and isinstance(code := getattr(error, "exit_code", None), int):
            sys.exit(code)  # wrong usage, which the first process tells
        if ranks.lost_peer(error):
            reason = str(error).strip().splitlines()[0][:200]
            _end(f"error: another process of this run is gone ({reason}); {CONTINUE}", ranks.LOST_PEER)
        message = _storage_message(error)
        if _verbose or message is None:
            if not ranks.announce(1)[0]:
                sys.exit(1)
            raise
        _end(f"error: {message}", LifelongError.exit_code)


CONTINUE = "what is committed is whole, and the same command goes on from the last checkpoint"


def _storage_message(error: Exception) -> str | None:
    if not isinstance(error, OSError):
        return None
    from lifelong.storage import storage_message

    return storage_message(error, Path(getattr(error, "filename", None) or "."))


def _end(message: str, exit_code: int) -> NoReturn:
    """Tell the reason and end; of several processes only the first that has one tells it."""
    if ranks.launched() > 1:  # the launcher ends the others as soon as one has ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told, exit_code = ranks.announce(exit_code)
    if told:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
