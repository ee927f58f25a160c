"""The verbs of `lifelong`. Heavy libraries are imported inside a verb, so that `--help` answers at once.

Exit codes: 0 done; 2 the input is wrong; 3 a verification or a forgetting budget was broken; 1 a bug;
130 interrupted, resumable.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lifelong.errors import BrokenPromiseError, InputError, Interrupted, LifelongError

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


@app.callback()
def options(
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
    from lifelong.report.progress import RichObserver

    with contextlib.closing(RichObserver()) as display:
        result = run_recipe(loaded, out or Path("runs") / loaded.name, None if as_json else display)
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
    from lifelong.report.progress import RichObserver

    with contextlib.closing(RichObserver()) as display:
        result = extend_run(
            run_folder, domain, tokens=tokens, overrides=overrides or (), observer=None if as_json else display
        )
    _finish(Path(result.out), as_json)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="Name or path of a recipe.")],
    overrides: OverrideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Dry run: shapes, parameters, tokens, steps, FLOPs and warnings of every stage; loads no weights."""
    from lifelong.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    quiet_libraries()
    from lifelong.plan import plan_recipe, plan_table, rates_table

    stages = plan_recipe(loaded)
    if as_json:
        typer.echo(json.dumps(stages.to_json(), indent=1))
    else:
        _print(plan_table(stages))
        _print(rates_table(stages))


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
    import signal

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
    domain: CardsOption,
    tokens: Annotated[str, typer.Option(help="Held-out tokens per domain.")] = "100k",
    sequence_length: Annotated[int, typer.Option()] = 256,
    objective: Annotated[str, typer.Option(help="clm or mlm.")] = "clm",
    split: Annotated[str, typer.Option(help="valid or test.")] = "valid",
    as_json: JsonOption = False,
) -> None:
    """Held-out loss per domain."""
    quiet_libraries()
    from lifelong.pipeline import evaluate_cards
    from lifelong.report.table import losses_table

    losses = evaluate_cards(
        model, domain, tokens=tokens, sequence_length=sequence_length, objective=objective, split=split
    )
    if as_json:
        figures = [
            {"domain": loss.domain, "nats_per_token": loss.nats_per_token, "perplexity": loss.perplexity,
             "bits_per_byte": loss.bits_per_byte, "tokens": loss.tokens}
            for loss in losses
        ]  # fmt: skip
        typer.echo(json.dumps(figures, indent=1))
    else:
        _print(losses_table(losses))


@app.command()
def check(run_folder: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Every committed file against its hash; the ledger's chain."""
    from lifelong.ledger import check_run, read_records

    findings = check_run(run_folder)
    if findings:
        raise InputError(
            f"{run_folder}: {len(findings)} finding{'s' * (len(findings) > 1)}\n  " + "\n  ".join(findings)
        )
    records = read_records(run_folder)
    files = sum(len(record.files) for record in records)
    typer.echo(f"{run_folder}: {len(records) - 1} stages, {files} files, all as committed")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/report, or nowhere.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One run, or a comparison of several; checks what the recipe expects."""
    from lifelong.history import read_history

    if len(runs) == 1:
        from lifelong.report import write_report

        write_report(read_history(runs[0]), out or runs[0] / "report")
        _finish(runs[0], as_json, out or runs[0] / "report")
        return
    from lifelong.report.compare import compare_runs
    from lifelong.report.compare_page import comparison_table, write_comparison

    comparison = compare_runs([read_history(path) for path in runs])
    if out is not None:
        write_comparison(comparison, out)
    if as_json:
        typer.echo(json.dumps(comparison.to_json(), indent=1))
    else:
        _print(comparison_table(comparison))


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
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the corpus.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="DIR_OR_ID", help="Count tokens with this one.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the card goes.")] = Path("domains"),
    as_json: JsonOption = False,
) -> None:
    """Write a card after reading the corpus, and show what it holds."""
    from lifelong.stream.summary import add_domain

    quiet_libraries()
    settings = {"config": config, "revision": revision, "text_field": text_field, "licence": licence}
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

    from lifelong.stream.summary import list_domains

    table = Table()
    for heading in ("domain", "licence", "source"):
        table.add_column(heading, overflow="fold")
    for entry in list_domains():
        fault = entry.get("fault")
        described = f"broken: {fault}" if fault else str(entry.get("source") or entry.get("card") or "")
        table.add_row(str(entry["name"]), str(entry.get("licence") or "not stated"), described)
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


def _tokenizer(source: str | None) -> Any:
    if source is None:
        return None
    from lifelong.stream.tokenize import load_tokenizer

    return load_tokenizer(source)


def _show_summary(summary: Any, as_json: bool) -> None:
    """A domain as a table for 80 columns, its samples and its warnings."""
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=summary.name, show_header=False)
    for split, count in summary.documents.items():
        table.add_row(split, f"{count:,} documents, {summary.bytes[split]:,} bytes")
    table.add_row("licence", summary.licence or "not stated")
    if summary.tokens is not None:
        table.add_row(
            "tokens", f"{summary.tokens:,}; {summary.fertility:.2f} a word, {summary.bytes_per_token:.2f} bytes each"
        )
    table.add_row("exact repeats", f"{summary.exact_duplicates:,} of {summary.compared:,} documents compared")
    table.add_row("near repeats", f"{summary.near_duplicates:,} of {summary.compared:,} documents compared")
    for overlap in summary.overlaps:
        table.add_row("overlap", f"{overlap.share:.1%} with {overlap.domain} ({overlap.split})")
    _print(table)
    for sample in summary.samples:
        _print(Text("  " + " ".join(str(sample).split())[:160], style="dim"))
    for warning in summary.warnings:
        typer.echo(f"! {warning}")


LISTS = {
    "domains": "corpora", "families": "architectures that can grow", "methods": "continual-learning methods",
    "metrics": "metrics of a run", "recipes": "experiments",
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
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # threads that spin while they wait cost a factor of ten on a machine whose cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not _verbose:
        warnings.filterwarnings("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _finish(out: Path, as_json: bool, report_folder: Path | None = None) -> None:
    """Show the matrix and the metrics of a run, and whether it met its recipe's expectations."""
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
    """Entry point: one message and an exit code instead of a traceback."""
    with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
        signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=True)
    except (LifelongError, Interrupted) as error:
        if _verbose:
            raise
        label = "interrupted" if isinstance(error, Interrupted) else "error"
        print(f"{label}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except OSError as error:
        from lifelong.storage import storage_message

        message = storage_message(error, Path(getattr(error, "filename", None) or "."))
        if _verbose or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(LifelongError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
