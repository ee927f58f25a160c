"""The lifelong loop: `for stage in stream: expand, train, evaluate, commit`.

A run folder is all a run needs: the same call continues one that was interrupted, and `extend_run` appends
a stage to a finished one without the earlier corpora.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.errors import InputError
from lifelong.files import remove_tree
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.integrity import replaced_moments
from lifelong.ledger.ledger import Ledger
from lifelong.ledger.storage import storage_faults
from lifelong.lm.checkpoint import load_model
from lifelong.pipeline.begin import begin, last_model, require_heldouts
from lifelong.pipeline.binding import bind_recipe, extended_recipe, put_in_force
from lifelong.pipeline.commit import commit_stage
from lifelong.pipeline.journal import Journal
from lifelong.pipeline.phases import PHASES
from lifelong.pipeline.signals import stop_on_signals
from lifelong.pipeline.stage import Stage
from lifelong.recipe.check import check_launch, check_recipe
from lifelong.recipe.files import load_recipe, read_recipe_file
from lifelong.recipe.outside import require_allowed
from lifelong.recipe.recipe import Recipe
from lifelong.records import RunObserver, RunResult, StageRecord
from lifelong.report.write import summarise
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.shards import close
from lifelong.train.phase import StopRequest


def run_recipe(recipe: Recipe | str | Path, out: str | Path, observer: RunObserver | None = None) -> RunResult:
    """Run a whole stream, or continue it where an earlier call stopped.

    Args:
        recipe: a `Recipe`, or the name or path of one.
        out: the run folder; created where needed.
        observer: told what happens; silent by default.

    Returns:
        The matrix, the metrics and the cost over all committed stages.

    Raises:
        InputError: recipe, cards or corpora are wrong, or the folder belongs to another recipe.
        VerificationError: a growth or a forgetting budget failed its check.
        Interrupted: a signal asked to stop; everything is saved.
    """
    with stop_on_signals() as stop:
        distributed.connect()
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        check_launch(recipe)
        if not RunFolder(out).exists:
            check_recipe(recipe)  # before the folder is made; a run that goes on may have lost its first corpora
        with open_together(Path(out)) as ledger, nothing_left_of_a_refusal(ledger.folder):
            observer = observer or RunObserver()
            if dropped := distributed.run_on_main_process(lambda: bind_recipe(ledger, recipe)):
                observer.noted(dropped)
            if not distributed.is_main_process():
                ledger.refresh()
            return run_stages(ledger, recipe, observer, stop)


@contextlib.contextmanager
def nothing_left_of_a_refusal(folder: RunFolder) -> Iterator[None]:
    """Remove a run folder where input turns out to be wrong before anything is committed; its lock is held.

    Some mistakes show only when the text is read: a corpus too small for its vocabulary, a tokenizer that cannot be
    had. The mended recipe should find the folder as free as the first one did. What was there before stays.
    """
    before = {folder.lock, *folder.path.iterdir()}
    try:
        yield
    except InputError:
        if distributed.is_main_process() and before == {folder.lock} and not folder.exists:
            for path in folder.path.iterdir():
                path.unlink() if path.is_file() else remove_tree(path)
            folder.path.rmdir()
        raise


@contextlib.contextmanager
def open_together(out: Path) -> Iterator[Ledger]:
    """The run folder in every process of the run: the first one holds and writes it, the others only read.

    Raises:
        InputError: see `Ledger.open`; or a process does not see the folder of the first one.
    """
    with contextlib.ExitStack() as held:
        opened: list[Ledger] = []
        token = distributed.run_on_main_process(lambda: _opened(out, held, opened))
        if not opened:
            held.enter_context(storage_faults(out, f"run folder {str(out)!r}", "then run the same command again"))
            lock = RunFolder(out).lock
            if not lock.is_file() or lock.read_text() != token:
                raise InputError(
                    f"run folder {str(out)!r}: process {distributed.rank()} on {os.uname().nodename} does not see what "
                    "the first process writes; --out must be on a file system that all machines share"
                )
            opened.append(Ledger.follow(out))
        yield opened[0]


def _opened(out: Path, held: contextlib.ExitStack, opened: list[Ledger]) -> str:
    opened.append(held.enter_context(Ledger.open(out)))
    return opened[0].folder.lock.read_text()


def run_stages(ledger: Ledger, recipe: Recipe, observer: RunObserver, stop: StopRequest) -> RunResult:
    """Every stage that is not committed yet, then the report."""
    if distributed.is_main_process():
        observer = Journal(ledger.out, observer, [Path(card).stem for card in recipe.watch or ()], recipe.train)
    done = len(ledger.stages)
    domains = [load_domain(section.domain) for section in recipe.stages[done:]]
    names = [record.domain for record in ledger.stages] + [domain.name for domain in domains]
    observer.run_started(recipe.name, names, [section.tokens for section in recipe.stages])
    for record in ledger.stages:
        observer.stage_skipped(record)
    distributed.run_on_main_process(lambda: prune_replaced(ledger))
    context, model = begin(ledger, recipe, domains, observer, stop)
    for index, domain in enumerate(domains, start=done):
        if model is None:
            model = last_model(ledger, recipe)
        record, model = run_stage(Stage(context, index, recipe.stages[index], domain), model)
        distributed.run_on_main_process(lambda: prune_replaced(ledger))
        observer.stage_committed(record)
    result = distributed.run_on_main_process(lambda: _finished(ledger))
    observer.run_finished(result)
    return result


def run_stage(stage: Stage, model: PreTrainedModel) -> tuple[StageRecord, PreTrainedModel]:
    """Every phase that applies, then the commit; returns the record and the model that the next stage begins from."""
    try:
        for phase in PHASES:
            if phase.applies(stage):
                model = phase.run(stage, model)
        record = distributed.run_on_main_process(lambda: commit_stage(stage, model))
    finally:
        close(stage.corpus)
    ledger = stage.context.ledger
    if not distributed.is_main_process():
        ledger.refresh()
    trunk = ledger.folder.stage(record.name).trunk
    if trunk.is_dir():
        model = load_model(trunk, stage.recipe.objective, dtype=stage.recipe.model.dtype)
    return record, model


def _finished(ledger: Ledger) -> RunResult:
    result = summarise(ledger.out)
    ledger.clear_work_dir()
    return result


def extend_run(
    out: str | Path,
    domain: str | Path,
    *,
    tokens: str | int | None = None,
    overrides: Sequence[str] = (),
    allow_paths: bool = False,
    observer: RunObserver | None = None,
) -> RunResult:
    """Append one stage to a finished run; its earlier corpora and cards are not needed.

    Args:
        out: the run folder.
        domain: name or path of the new domain's card.
        tokens: budget of the new stage; that of the last one where not given.
        overrides: `a.b=value` changes of the recipe for the new stage.
        allow_paths: obey what the folder's recipe names outside of it, though it was not written on this machine.
        observer: told what happens.

    Raises:
        InputError: no finished run, the card or an override is wrong, or the recipe of somebody else reaches outside.
        CorruptionError: the folder is not one that a run would have written.
    """
    distributed.connect()
    out = RunFolder(out).require().path
    with stop_on_signals() as stop, open_together(out) as ledger:

        def extend() -> None:
            require_heldouts(ledger)
            require_allowed(read_recipe_file(out), len(ledger.stages), str(out), allow=allow_paths)
            put_in_force(ledger, extended_recipe(ledger, str(domain), tokens, overrides))

        distributed.run_on_main_process(extend)
        recipe = read_recipe_file(out)
        check_launch(recipe)
        return run_stages(ledger, recipe, observer or RunObserver(), stop)


def prune_replaced(ledger: Ledger) -> None:
    """Remove what newer committed stages have replaced."""
    prune_memory_snapshots(ledger)
    prune_moments(ledger)


def prune_memory_snapshots(ledger: Ledger) -> None:
    """Remove generations of the memory that the newest committed one has replaced."""
    while (newest := ledger.memory_snapshot(len(ledger.stages))) and (
        older := ledger.memory_snapshot(int(newest.name))
    ):
        remove_tree(older)


def prune_moments(ledger: Ledger) -> None:
    """Remove carried moments that a later committed stage has replaced."""
    for name in replaced_moments(ledger.records):
        (ledger.folder.path / name).unlink(missing_ok=True)


# --- stopping -----------------------------------------------------------------------------------------------
