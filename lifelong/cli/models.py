"""Checkpoints: grow, evaluate, merge."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lifelong.cli.terminal import JsonOption, importing, quiet_libraries, say, show
from lifelong.errors import InexactGrowthError, InputError


def expand(
    source: Annotated[str, typer.Argument(help="Checkpoint folder, hub id, or run folder: its newest model.")],
    out: Annotated[Path, typer.Argument(help="New folder for the grown model.")],
    layers: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Width.")] = None,
    intermediate_size: Annotated[int | None, typer.Option(help="Width of the feed-forward part.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key-value heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Channels of a head.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Rows of the embedding.")] = None,
    positions: Annotated[int | None, typer.Option(help="Longest sequence.")] = None,
    experts: Annotated[int | None, typer.Option(help="Turn a dense model into a mixture of experts.")] = None,
    experts_per_token: Annotated[int | None, typer.Option(help="Experts that a token is sent to.")] = None,
    mode: Annotated[str, typer.Option(help="exact keeps the function; elle copies at random, as published.")] = "exact",
    strategy: Annotated[str, typer.Option(help="Initialisation of new units: pad, clone or pairs; all exact.")] = "pad",
    placement: Annotated[
        str, typer.Option(help="New layers: interleaved, last, or the layers they follow: 0,0,3.")
    ] = "interleaved",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Continue where exactness is impossible; the gap is reported.")
    ] = False,
    verify: Annotated[
        str | None,
        typer.Option(
            help="full; quick: a few tokens in float64; none: positions and windows only. "
            "Default: full for small models, quick for others."
        ),
    ] = None,
    add_tokens_from: Annotated[
        tuple[str, int] | None,
        typer.Option(metavar="CARD N", help="Add N tokens that the text of a domain card needs, to the tokenizer too."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the plan only; loads no weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Grow a checkpoint; the result is verified and loads with plain from_pretrained."""
    named = {
        "layers": layers, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "heads": heads,
        "kv_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab_size, "positions": positions,
        "experts": experts, "experts_per_token": experts_per_token,
    }  # fmt: skip
    targets = {axis: size for axis, size in named.items() if size is not None}
    if explain and add_tokens_from is not None:
        raise InputError("expand --explain: loads no text; leave --add-tokens-from out, or name --vocab-size")
    if not targets and add_tokens_from is None:
        raise InputError("expand: name at least one larger size, for example --layers 12 --hidden-size 768")
    if out.exists() and not explain:
        raise InputError(f"{str(out)!r} already exists; choose a new folder")
    # large pages: fresh memory costs a third of the time otherwise; torch reads this when it is imported
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with importing():
        quiet_libraries()
        from lifelong.expand import expand_checkpoint, explain_expansion

    chosen: dict[str, Any] = {
        "mode": mode, "strategy": strategy, "placement": _layers(placement), "approximate": approximate,
    }  # fmt: skip
    if explain:
        say(explain_expansion(source, targets, **chosen))
        return
    from lifelong.report.progress import progress_bar
    from lifelong.report.table import expansion_table

    with _terminable(), progress_bar(f"grow {Path(source).name}") as told:
        options = {"targets": targets, "seed": seed, "verify": _level(verify), "progress": told, **chosen}
        if add_tokens_from is None:
            report = expand_checkpoint(source, out, **options)
        else:
            from lifelong.lineage.add_tokens import expand_with_tokens

            report = expand_with_tokens(source, out, *add_tokens_from, **options)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        show(expansion_table(report))
    if not report.passed:
        raise InexactGrowthError(
            f"the grown model is not exact: logits differ by {report.max_logit_difference_float64:.1e} in float64 "
            f"(allowed {report.tolerance:.0e}); nothing was written"
        )


def _level(name: str | None) -> Any:
    if name not in (None, "full", "quick", "none"):
        raise InputError(f"expand --verify: full, quick or none, not {name!r}")
    return name


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


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="Checkpoint folder, hub id, or run folder.")],
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="CARD", help="Name or path of a domain card; may be repeated. A run: default all of its."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Of a run: name or number of a stage, or `initial`; default the last.")
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Text without a card, e.g. x.jsonl; may be repeated.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of --files that holds the text.")] = "text",
    tokens: Annotated[str | None, typer.Option(help="Held-out tokens per domain; default the run's, or 100k.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Default: the run's, or 256.")] = None,
    objective: Annotated[str | None, typer.Option(help="clm or mlm; default: the run's, or clm.")] = None,
    split: Annotated[str | None, typer.Option(help="valid or test; default: the run's, or valid.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="CARD", help="Fine-tune a copy on this task; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Tasks: seeds, i.e. fine-tuned copies per task.")] = 5,
    epochs: Annotated[int, typer.Option(help="Tasks: maximum fine-tuning epochs.")] = 10,
    patience: Annotated[int, typer.Option(help="Tasks: early-stopping patience in epochs (dev score).")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Tasks: learning rate; small models need a larger one.")] = 2e-5,
    examples: Annotated[int | None, typer.Option(help="Tasks: maximum examples per split.")] = None,
    harness: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="A task of lm-evaluation-harness, if installed.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tasks: safetensors, domain to token embeddings.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Held-out loss per domain; --task: scores of fine-tuned copies; --harness: tasks of lm-evaluation-harness.

    A run is read with its own length, tokens, objective and split, so that the figures are those of its matrix.
    Results of --task and --harness are kept in the run folder; `lifelong report RUN` shows them.
    """
    if sum(map(bool, (domain or files, task, harness))) > 1:
        raise InputError("evaluate: name one of domains (--domain, --files), tasks (--task CARD), or --harness TASK")
    quiet_libraries()
    if harness:
        from lifelong.evaluate.harness import evaluate_with_harness

        typer.echo(json.dumps(evaluate_with_harness(model, harness, limit=examples, stage=stage), indent=1))
        return
    if task:
        from lifelong.evaluate.downstream import FineTuning, evaluate_tasks
        from lifelong.evaluate.task import load_task
        from lifelong.report.downstream import tasks_table

        cards = [load_task(card) for card in task]
        settings = FineTuning(
            learning_rate, epochs, patience, seeds=seeds, examples=examples, length=sequence_length or 256
        )
        scores = evaluate_tasks(model, cards, settings, objective=objective, prompts=prompts, stage=stage)
        if as_json:
            typer.echo(json.dumps([item.to_json() for item in scores], indent=1))
        else:
            show(tasks_table(scores))
        return
    from lifelong.evaluate.cards import evaluate_cards
    from lifelong.evaluate.source import find_source
    from lifelong.report.table import losses_table
    from lifelong.report.uncertainty import loss_interval

    losses = evaluate_cards(
        model, domain or (), files=files or (), text_field=text_field, stage=stage, tokens=tokens,
        sequence_length=sequence_length, objective=objective, split=split,
    )  # fmt: skip
    if as_json:
        figures = [
            {"domain": loss.domain, "nats_per_token": loss.nats_per_token, "perplexity": loss.perplexity,
             "bits_per_byte": loss.bits_per_byte, "tokens": loss.tokens,
             "interval": [bounds.low, bounds.high] if (bounds := loss_interval(loss)) else None}
            for loss in losses
        ]  # fmt: skip
        typer.echo(json.dumps(figures, indent=1))
    else:
        show(losses_table(losses, find_source(model, stage).label))


def merge(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    weight: Annotated[
        float | None, typer.Option(metavar="A", help="Write this model: 0 the previous stage's, 1 the trained one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the model.")] = None,
    stage: Annotated[str | None, typer.Option(help="Name or number of the stage; default the last.")] = None,
    weights: Annotated[str, typer.Option(help="Without --weight: evaluate these.")] = "0,0.25,0.5,0.75,1",
    residual: Annotated[
        str | None, typer.Option(metavar="INSTRUCT", help="Add what tuning on instructions added to the base.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Choose weights over what every stage has learned on held-out text.")
    ] = False,
    evaluations: Annotated[
        int | None, typer.Option(help="Of --search: models to measure; default 8 + 4 a stage.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Of --residual: what INSTRUCT started from; default the run's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Interpolate between the previous stage's model (grown to the new size) and the trained one.

    With --search: weights over the deltas of all stages; --out writes the chosen model.
    With --residual INSTRUCT --base BASE: the run's newest model with INSTRUCT - BASE, carried to its size.
    """
    if search:
        _merge_search(run_folder, out, evaluations, others=(weight, stage, residual, base), as_json=as_json)
        return
    if evaluations is not None:
        raise InputError("merge --evaluations: belongs to --search")
    if residual is not None:
        _merge_residual(run_folder, residual, base, out, weight=weight, stage=stage, as_json=as_json)
        return
    if base is not None:
        raise InputError("merge --base: belongs to --residual INSTRUCT")
    if (weight is None) != (out is None):
        raise InputError("merge: --weight A --out DIR go together; without both, the front is evaluated")
    quiet_libraries()
    from lifelong.ledger.folder import RunFolder
    from lifelong.recipe.files import read_recipe_file
    from lifelong.report.table import front_table

    RunFolder(run_folder).require()
    recipe = read_recipe_file(run_folder).to_plain()
    if weight is not None and out is not None:
        from lifelong.lineage.merge import merge_stage

        record = merge_stage(run_folder, recipe, weight, out, stage)
        say(f"{out}: {weight:g} of the way through stage {record.name}; loads with from_pretrained")
        return
    from lifelong.ledger.history import read_history
    from lifelong.lineage.front import interpolation_front, parse_weights

    front = interpolation_front(run_folder, recipe, parse_weights(weights), stage)
    if as_json:
        typer.echo(json.dumps(front.to_json(), indent=1))
    else:
        show(front_table(front, read_history(run_folder).matrix))


def _merge_search(
    run_folder: Path, out: Path | None, evaluations: int | None, *, others: tuple[Any, ...], as_json: bool
) -> None:
    if any(other is not None for other in others):
        raise InputError(
            "merge --search: weighs all stages, and takes --out and --evaluations alone; --weight, --stage, --residual "
            "and --base are for other merges"
        )
    quiet_libraries()
    from lifelong.ledger.folder import RunFolder
    from lifelong.lineage.search import search_merge
    from lifelong.recipe.files import read_recipe_file
    from lifelong.report.search import draw_search, search_table

    folder = RunFolder(run_folder).require()
    search = search_merge(run_folder, read_recipe_file(run_folder).to_plain(), out, evaluations)
    draw_search(search, folder.search / "front.png")
    if as_json:
        typer.echo(json.dumps(search.to_json(), indent=1))
        return
    show(search_table(search))
    say(f"{folder.search}: search.json and front.png")
    if out is not None:
        say(f"{out}: the chosen model; loads with from_pretrained")


def _merge_residual(
    run_folder: Path, residual: str, base: str | None, out: Path | None, *, weight: Any, stage: Any, as_json: bool
) -> None:
    if out is None or weight is not None or stage is not None:
        raise InputError(
            "merge --residual: takes --out DIR, and --base where it is not the run's; --weight and --stage are for "
            "interpolation"
        )
    quiet_libraries()
    from lifelong.ledger.folder import RunFolder
    from lifelong.lineage.residual import merge_residual
    from lifelong.recipe.files import read_recipe_file
    from lifelong.report.chat import chat_table
    from lifelong.report.table import plain_table, text_table

    RunFolder(run_folder).require()
    found = merge_residual(run_folder, read_recipe_file(run_folder).to_plain(), residual, base, out)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    show(text_table(found.text))
    if found.chat:
        show(plain_table("chat", *chat_table(list(found.chat.items()))))
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{out}: {found.stage} with the residual of {residual}; loads with from_pretrained")
