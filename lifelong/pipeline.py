"""The lifelong loop: `for stage in stream: expand, train, evaluate, commit`.

A run folder is all a run needs: the same call continues one that was interrupted, and `extend_run` appends
a stage to a finished one without the earlier corpora.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from lifelong import ranks
from lifelong.checkpoint import (
    load_config,
    load_model,
    remove_tree,
    write_sealed,
    write_text,
)
from lifelong.errors import InputError, Interrupted, LifelongError
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.expand import plan_expansion
from lifelong.history import read_history
from lifelong.initial import begin, fresh_config, last_model, require_heldouts
from lifelong.ledger import INITIAL, Ledger, is_run_folder, read_records
from lifelong.merging import check_merge, same_merge
from lifelong.metrics import compute_all
from lifelong.recipe import Recipe, apply_override, load_recipe, parse_count, parse_recipe
from lifelong.records import ComputeLedger, Cost, DomainLoss, RunObserver, RunResult
from lifelong.replay import check_steering
from lifelong.report import write_report
from lifelong.selection import check_selection
from lifelong.stage import StageRun
from lifelong.stage_methods import check_methods, is_sharded
from lifelong.storage import storage_faults
from lifelong.stream.collator import Collator
from lifelong.stream.domain import load_domain
from lifelong.stream.domain_tokenizers import load_merged
from lifelong.stream.heldout import write_heldout
from lifelong.stream.injection import read_facts
from lifelong.stream.tokenize import load_tokenizer
from lifelong.teaching import check_teachers
from lifelong.train.arguments import check_processes, check_train_section
from lifelong.train.stage_trainer import StopRequest
from lifelong.versions import newer_than_tested, package_versions


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
        BrokenPromiseError: a growth or a forgetting budget failed its check.
        Interrupted: a signal asked to stop; everything is saved.
    """
    with stop_on_signals() as stop:
        ranks.connect()
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        check_launch(recipe)
        if not is_run_folder(Path(out)):
            check_recipe(recipe)  # before the folder is made; a run that goes on may have lost its first corpora
        with open_together(Path(out)) as ledger:
            ranks.on_first(lambda: claim(ledger, recipe))
            return run_stages(ledger, recipe, observer or RunObserver(), stop)


@contextlib.contextmanager
def open_together(out: Path) -> Iterator[Ledger]:
    """The run folder in every process of the run: the first one holds and writes it, the others only read.

    Raises:
        InputError: see `Ledger.open`; or a process does not see the folder of the first one.
    """
    with contextlib.ExitStack() as held:
        opened: list[Ledger] = []
        token = ranks.on_first(lambda: _opened(out, held, opened))
        if not opened:
            held.enter_context(storage_faults(out, f"run folder {str(out)!r}", "then run the same command again"))
            if not (out / ".lock").is_file() or (out / ".lock").read_text() != token:
                raise InputError(
                    f"run folder {str(out)!r}: process {ranks.rank()} on {os.uname().nodename} does not see what the "
                    "first process writes; --out has to lie on a file system that all machines share"
                )
            opened.append(Ledger.follow(out))
        yield opened[0]


def _opened(out: Path, held: contextlib.ExitStack, opened: list[Ledger]) -> str:
    opened.append(held.enter_context(Ledger.open(out)))
    return (out / ".lock").read_text()


def run_stages(ledger: Ledger, recipe: Recipe, observer: RunObserver, stop: StopRequest) -> RunResult:
    """Every stage that is not committed yet, then the report."""
    done = len(ledger.stages)
    domains = [load_domain(section.domain) for section in recipe.stages[done:]]
    names = [record.domain for record in ledger.stages] + [domain.name for domain in domains]
    observer.run_started(recipe.name, names, [section.tokens for section in recipe.stages])
    for record in ledger.stages:
        observer.stage_skipped(record)
    ranks.on_first(lambda: forget_generations(ledger))
    context, model = begin(ledger, recipe, domains, observer, stop)
    for index, domain in enumerate(domains, start=done):
        if model is None:
            model = last_model(ledger, recipe)
        record, model = StageRun(context, index, recipe.stages[index], domain).run(model)
        ranks.on_first(lambda: forget_generations(ledger))
        observer.stage_committed(record)
    result = ranks.on_first(lambda: _finished(ledger))
    observer.run_finished(result)
    return result


def _finished(ledger: Ledger) -> RunResult:
    result = summarise(ledger.out)
    ledger.forget_work()
    return result


def extend_run(
    out: str | Path,
    domain: str,
    *,
    tokens: str | int | None = None,
    overrides: Sequence[str] = (),
    observer: RunObserver | None = None,
) -> RunResult:
    """Append one stage to a finished run; its earlier corpora and cards are not needed.

    Args:
        out: the run folder.
        domain: name or path of the new domain's card.
        tokens: budget of the new stage; that of the last one where not given.
        overrides: `a.b=value` changes of the recipe for the new stage.
        observer: told what happens.

    Raises:
        InputError: no finished run, or the card or an override is wrong.
    """
    out = Path(out)
    ranks.connect()
    if not is_run_folder(out):
        raise InputError(f"{str(out)!r} is no run folder: it has no ledger.jsonl")
    with stop_on_signals() as stop, open_together(out) as ledger:

        def extend() -> None:
            require_heldouts(ledger)
            ledger.replace_recipe(extended_recipe(ledger, domain, tokens, overrides).to_yaml())

        ranks.on_first(extend)
        recipe = read_recipe_file(out)
        check_launch(recipe)
        return run_stages(ledger, recipe, observer or RunObserver(), stop)


def extended_recipe(ledger: Ledger, domain: str, tokens: str | int | None, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with one more stage; as it is where an earlier call to extend was interrupted."""
    plain = read_recipe_file(ledger.out).to_plain()
    done = len(ledger.stages)
    card = load_domain(domain)
    if len(plain["stages"]) == done and ledger.is_extending and ledger.stages[-1].domain == card.name:
        return read_recipe_file(ledger.out)  # killed after the commit and before the report: nothing more to learn
    if len(plain["stages"]) > done:
        pending = load_domain(plain["stages"][done]["domain"])
        if len(plain["stages"]) > done + 1 or pending.name != card.name:
            raise InputError(
                f"{str(ledger.out)!r} is not finished: stage {done} ({pending.name}) is not committed; "
                "let its own command finish first"
            )
        existing = read_recipe_file(ledger.out)
        if tokens is not None:
            plain["stages"][done]["tokens"] = tokens
        for override in overrides:
            apply_override(plain, override)
        recipe = parse_recipe(plain, where=f"{ledger.out / 'recipe.yaml'} with these changes")
        mend(ledger, existing, recipe)
        return recipe
    named = str(Path(domain).resolve()) if Path(domain).is_file() else domain
    plain["stages"].append({"domain": named, "tokens": tokens or plain["stages"][-1]["tokens"]})
    for override in overrides:
        apply_override(plain, override)
    recipe = parse_recipe(plain, where=f"{ledger.out / 'recipe.yaml'} with a stage for {card.name}")
    same_merge(recipe, load_merged(ledger.out / INITIAL / "tokenizer"))
    check_recipe(recipe, start=done, config=last_config(ledger))
    return recipe


def read_recipe_file(out: Path) -> Recipe:
    """The recipe that a run folder belongs to."""
    path = out / "recipe.yaml"
    return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))


def forget_generations(ledger: Ledger) -> None:
    """Remove generations of the memory that the newest committed one has replaced."""
    while (newest := ledger.generation(len(ledger.stages))) and (older := ledger.generation(int(newest.name))):
        remove_tree(older)


def evaluate_cards(
    model: str, cards: Sequence[str], *, tokens: str | int, sequence_length: int, objective: str, split: str
) -> list[DomainLoss]:
    """Held-out loss of a checkpoint, or of the last stage of a run, on domain cards.

    Raises:
        InputError: a card, a size or the checkpoint is wrong.
    """
    from tempfile import TemporaryDirectory

    count = parse_count(tokens)
    if (
        objective not in ("clm", "mlm")
        or split not in ("valid", "test")
        or not isinstance(count, int)
        or sequence_length < 8
    ):
        raise InputError(
            f"evaluate: --objective is clm or mlm ({objective!r}), --split valid or test ({split!r}), --tokens a "
            f"number like 100k ({tokens!r}), --sequence-length at least 8 ({sequence_length})"
        )
    source = model
    if (Path(model) / "ledger.jsonl").is_file():
        records = read_records(Path(model))
        source = str(Path(model) / "stages" / records[-1].name / "model")
    domains = [load_domain(card) for card in cards]
    loaded, tokenizer = load_model(source, objective), load_tokenizer(source)
    collator = Collator.for_tokenizer(tokenizer, objective, sequence_length)  # type: ignore[arg-type]
    losses = []
    with TemporaryDirectory() as folder:
        for domain in domains:
            own = load_tokenizer(source, domain.name)
            heldout = write_heldout(domain, split, own, count, Path(folder) / domain.name)
            losses.append(
                evaluate_domain(
                    loaded,
                    heldout,
                    objective=objective,
                    sequence_length=sequence_length,
                    pad_id=collator.pad_id,
                    mask_id=collator.mask_id,
                )
            )
    return losses


def summarise(out: Path) -> RunResult:
    """Write the report of what is committed and hand back its figures."""
    history = read_history(out)
    write_report(history, out / "report")
    cost = sum((ComputeLedger.from_json(record.cost).total for record in history.stages), Cost())
    return RunResult(str(out), history.matrix, compute_all(history.matrix), cost)


def check_recipe(recipe: Recipe, start: int = 0, config: Any = None) -> None:
    """What only the libraries and the cards can judge; every error at once, before anything is written.

    Args:
        recipe: to check.
        start: first stage that is still to come; cards of earlier ones may be gone.
        config: of the model before that stage, where it is not the recipe's first.

    Raises:
        InputError: one message with a line for every error.
    """
    lines = check_train_section(recipe.train)
    for index, stage in enumerate(recipe.stages):
        lines += check_train_section(stage.train, f"stages[{index}].train")
    with collecting(lines):
        check_methods(recipe)
    with collecting(lines):
        if recipe.model.checkpoint is not None and start == 0:
            config = load_config(recipe.model.checkpoint, recipe.model.revision)
        check_growth(recipe, start, config)
    lines += check_selection(recipe, start)
    names = []
    for card in dict.fromkeys(name for stage in recipe.stages[start:] for name in (stage.domain, *stage.together_with)):
        with collecting(lines):
            names.append(load_domain(card).name)
    with collecting(lines):
        check_steering(recipe, names if start == 0 and not lines else ())
    check_teachers(recipe, lines.append)
    if start == 0:
        check_merge(recipe, lines.append)
    with collecting(lines):
        if recipe.facts is not None and recipe.facts.file is not None and start <= recipe.facts.stage:
            read_facts(Path(recipe.facts.file))
    if lines:
        raise InputError(f"recipe {recipe.name}: {len(lines)} error{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines))


def check_launch(recipe: Recipe) -> None:
    """What the processes of this launch cannot do together; nothing is refused to a single process.

    Raises:
        InputError: one message with a line for every error.
    """
    lines: list[str] = []
    for stage in recipe.stages:
        with collecting(lines):
            check_processes({**recipe.train, **stage.train})
    if is_sharded(recipe.train):
        with collecting(lines):
            check_methods(recipe)
        if recipe.lr is not None and recipe.lr.policy == "infinite":
            lines.append(
                "lr.policy: infinite keeps whole weights in the middle of a stage, but this launch shards them (FSDP); "
                "choose another policy, for example wsd, or launch without FSDP"
            )
    if lines:
        raise InputError(f"recipe {recipe.name}: " + "\n  ".join(dict.fromkeys(lines)))


@contextlib.contextmanager
def collecting(lines: list[str]) -> Iterator[None]:
    """Turn an InputError into a line of a longer message."""
    try:
        yield
    except InputError as error:
        lines.append(str(error))


def check_growth(recipe: Recipe, start: int = 0, config: Any = None) -> None:
    """Plan every growth on configurations alone.

    Raises:
        InputError: a target that cannot be reached from the stage before.
    """
    if not any(stage.expand for stage in recipe.stages[start:]):
        return
    if config is None:
        config = fresh_config(recipe, vocab_size=recipe.tokenizer_size or 512)
    for index, stage in enumerate(recipe.stages[start:], start):
        if stage.expand is not None:
            try:
                config = plan_expansion(
                    config,
                    **stage.expand.options(),
                    **stage.expand.sizes(),
                ).target_config
            except LifelongError as error:
                raise InputError(f"stages[{index}].expand: {error}") from None


def may_be_mended(ledger: Ledger, different: Sequence[str]) -> bool:
    """Whether these keys may change: the next stage broke its budget, and they say how it is to be trained."""
    done = len(ledger.stages)
    if not done or not list(ledger.out.glob(f"rejected/{done:02d}-*")):
        return False
    sections = {"replay", "budget", "inherit", "recover", "methods", "train", "lr"}

    def concerns_the_future(key: str) -> bool:
        stage = re.match(r"stages\[(\d+)\]\.(tokens|train|select)", key)
        return int(stage[1]) >= done if stage else re.split(r"[.\[]", key)[0] in sections

    return all(concerns_the_future(key) for key in different)


def mend(ledger: Ledger, existing: Recipe, recipe: Recipe) -> None:
    """Take another recipe for the stages to come, if it is another one and it may be.

    Raises:
        InputError: it says something else about what is committed; names the keys that differ.
    """
    if existing.fingerprint == recipe.fingerprint:
        return
    different = differing_keys(existing.to_plain(), recipe.to_plain())
    if not may_be_mended(ledger, different):
        raise InputError(
            f"run folder {str(ledger.out)!r} belongs to another recipe; different: {', '.join(different)}. "
            "Choose another --out, or undo the change"
        )
    check_recipe(recipe, start=len(ledger.stages), config=last_config(ledger))
    ledger.forget_work()
    ledger.replace_recipe(recipe.to_yaml())


def last_config(ledger: Ledger) -> Any:
    """Configuration of the model of the last committed stage."""
    return load_config(ledger.stage_folder(ledger.stages[-1]) / "model")


def claim(ledger: Ledger, recipe: Recipe) -> None:
    """Bind a run folder to its recipe; after a broken budget, the recipe of the stages to come may be mended.

    Raises:
        InputError: the folder belongs to another recipe; names the keys that differ.
    """
    out = ledger.out
    path = out / "recipe.yaml"
    if path.exists():
        mend(ledger, read_recipe_file(out), recipe)
        return
    write_sealed(out / "environment.json", environment())
    write_text(path, recipe.to_yaml())


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted paths at which two plain structures differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys([*one, *other])
        return [
            found for key in keys for found in differing_keys(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found
            for i, pair in enumerate(zip(one, other, strict=True))
            for found in differing_keys(*pair, f"{path}[{i}]")
        ]
    return [] if one == other else [path]


def environment() -> dict[str, Any]:
    """Where a run took place."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": package_versions(),
        "newer_than_tested": newer_than_tested(),
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


SAME_SIGNAL_SECONDS = 5.0

# --- stopping -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM: training saves first, every other phase stops at once; a second signal always stops."""
    stop = StopRequest()
    asked_at = 0.0

    def handle(number: int, _frame: object) -> None:
        nonlocal asked_at
        first, stop.requested = not stop.requested, True
        asked_at = time.monotonic() if first else asked_at
        # a launcher hands on to its processes what the terminal or the queue has sent to them already
        again = ranks.launched() > 1 and time.monotonic() - asked_at < SAME_SIGNAL_SECONDS
        if stop.deferred and (first or again):
            return
        raise Interrupted(f"stopped by {signal.Signals(number).name}; run the same command to continue")

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
