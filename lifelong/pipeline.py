"""The lifelong loop: `for stage in stream: expand, train, evaluate, commit`.

A run folder is all a run needs: the same call continues one that was interrupted, and `extend_run` appends
a stage to a finished one without the earlier corpora.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong.checkpoint import (
    load_config,
    load_model,
    remove_tree,
    weights_fingerprint,
    whole_folder,
    write_json,
    write_text,
)
from lifelong.errors import InputError, Interrupted, LifelongError
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.evaluate.samples import sample_texts
from lifelong.expand import model_shape, new_config, plan_expansion
from lifelong.ledger import INITIAL, Ledger, read_history, read_losses, read_records, write_losses
from lifelong.metrics import compute_all
from lifelong.recipe import Recipe, apply_override, load_recipe, parse_count, parse_recipe
from lifelong.records import ComputeLedger, Cost, DomainLoss, RunObserver, RunResult, StageRecord
from lifelong.report import write_report
from lifelong.stage import RunContext, StageRun, loss_row
from lifelong.stream.collator import Collator
from lifelong.stream.domain import Domain, load_domain
from lifelong.stream.heldout import write_heldout
from lifelong.stream.tokenize import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from lifelong.train.arguments import check_train_section
from lifelong.train.compute import num_parameters
from lifelong.train.method import make_methods
from lifelong.train.stage_trainer import StopRequest

PACKAGES = ("lifelong", "torch", "transformers", "datasets", "tokenizers", "accelerate", "safetensors")


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
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if not (Path(out) / "ledger.jsonl").exists():
        check_recipe(recipe)  # before the folder is made; a run that goes on may have lost its first corpora
    with Ledger.open(Path(out)) as ledger, stop_on_signals() as stop:
        claim(ledger.out, recipe)
        return run_stages(ledger, recipe, observer or RunObserver(), stop)


def run_stages(ledger: Ledger, recipe: Recipe, observer: RunObserver, stop: StopRequest) -> RunResult:
    """Every stage that is not committed yet, then the report."""
    done = len(ledger.stages)
    domains = [load_domain(section.domain) for section in recipe.stages[done:]]
    names = [record.domain for record in ledger.stages] + [domain.name for domain in domains]
    observer.run_started(recipe.name, names, [section.tokens for section in recipe.stages])
    for record in ledger.stages:
        observer.stage_skipped(record)
    context, model = begin(ledger, recipe, domains, observer, stop)
    for index, domain in enumerate(domains, start=done):
        if model is None:
            model = last_model(ledger, recipe)
        record, model = StageRun(context, index, recipe.stages[index], domain).run(model)
        forget_generations(ledger.out, index)
        observer.stage_committed(record)
    ledger.forget_work()
    result = summarise(ledger.out)
    observer.run_finished(result)
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
    if not (out / "ledger.jsonl").is_file():
        raise InputError(f"{str(out)!r} is no run folder: it has no ledger.jsonl")
    with Ledger.open(out) as ledger, stop_on_signals() as stop:
        recipe = extended_recipe(ledger, domain, tokens, overrides)
        write_text(out / "recipe.yaml", recipe.to_yaml())
        return run_stages(ledger, recipe, observer or RunObserver(), stop)


def extended_recipe(ledger: Ledger, domain: str, tokens: str | int | None, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with one more stage; the one it has where an earlier call to extend was interrupted."""
    plain = read_recipe_file(ledger.out).to_plain()
    done = len(ledger.stages)
    card = load_domain(domain)
    if len(plain["stages"]) > done:
        pending = load_domain(plain["stages"][done]["domain"])
        if len(plain["stages"]) > done + 1 or pending.name != card.name:
            raise InputError(
                f"{str(ledger.out)!r} is not finished: stage {done} ({pending.name}) is not committed; "
                "let its own command finish first"
            )
        return read_recipe_file(ledger.out)
    named = str(Path(domain).resolve()) if Path(domain).is_file() else domain
    plain["stages"].append({"domain": named, "tokens": tokens or plain["stages"][-1]["tokens"]})
    for override in overrides:
        apply_override(plain, override)
    recipe = parse_recipe(plain, where=f"{ledger.out / 'recipe.yaml'} with a stage for {card.name}")
    check_recipe(recipe, start=done, config=load_config(ledger.stage_folder(ledger.stages[-1]) / "model"))
    return recipe


def read_recipe_file(out: Path) -> Recipe:
    """The recipe that a run folder belongs to."""
    path = out / "recipe.yaml"
    return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))


def forget_generations(out: Path, newest: int) -> None:
    """Remove generations of the memory that the committed one has replaced."""
    for folder in (out / "memory").glob("*"):
        if folder.name != f"{newest:02d}":
            remove_tree(folder)


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
            heldout = write_heldout(domain, split, tokenizer, count, Path(folder) / domain.name)
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
        make_methods([(method.name, method.settings()) for method in recipe.methods])
    with collecting(lines):
        if recipe.model.checkpoint is not None and start == 0:
            config = load_config(recipe.model.checkpoint, recipe.model.revision)
        check_growth(recipe, start, config)
    for card in dict.fromkeys(stage.domain for stage in recipe.stages[start:]):
        with collecting(lines):
            load_domain(card)
    if lines:
        raise InputError(f"recipe {recipe.name}: {len(lines)} error{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines))


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
                    mode=stage.expand.mode,
                    **stage.expand.sizes(),
                ).target_config
            except LifelongError as error:
                raise InputError(f"stages[{index}].expand: {error}") from None


def claim(out: Path, recipe: Recipe) -> None:
    """Bind a run folder to its recipe.

    Raises:
        InputError: the folder belongs to another recipe; names the keys that differ.
    """
    path = out / "recipe.yaml"
    if path.exists():
        existing = read_recipe_file(out)
        if existing.fingerprint != recipe.fingerprint:
            raise InputError(
                f"run folder {str(out)!r} belongs to another recipe; different: "
                f"{', '.join(differing_keys(existing.to_plain(), recipe.to_plain()))}. "
                "Choose another --out, or undo the change"
            )
        return
    write_json(out / "environment.json", environment())
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
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's figures."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


# --- the beginning of a run ---------------------------------------------------------------------------------


def begin(
    ledger: Ledger, recipe: Recipe, domains: Sequence[Domain], observer: RunObserver, stop: StopRequest
) -> tuple[RunContext, PreTrainedModel | None]:
    """Tokenizer, held-out documents and row -1; the initial model too where it had to be made.

    `domains` are those of the stages to come; the earlier ones are known to the ledger.
    """
    by_name = {domain.name: domain for domain in domains}
    columns = list(dict.fromkeys([*known_columns(ledger), *by_name]))
    tokenizer = prepare_tokenizer(ledger, recipe, list(by_name.values()), observer)
    for name in columns:
        folder = ledger.out / "heldout" / name
        if not folder.exists():
            write_heldout(by_name[name], recipe.evaluate.split, tokenizer, recipe.evaluate.tokens, folder)
    context = RunContext(recipe, ledger, columns, tokenizer, package_versions(), observer, stop)
    if ledger.records:
        return context, None
    model = initial_model(recipe, tokenizer)
    observer.phase_started("evaluate", 0)
    losses = context.evaluate(model)
    observer.evaluated(-1, losses)
    work = ledger.work_folder(INITIAL)
    write_losses(work / "losses.json", losses)
    samples = sample_texts(
        model,
        tokenizer,
        context.heldouts,
        stage=-1,
        objective=recipe.objective,
        num_samples=recipe.evaluate.samples,
    )
    write_json(work / "samples.json", [asdict(sample) for sample in samples])
    ledger.commit(work, initial_record(recipe, model, tokenizer, losses), [ledger.out / "heldout"])
    return context, model


def known_columns(ledger: Ledger) -> list[str]:
    """Domains that have been evaluated, in the order in which the stream met them."""
    rows = [read_losses(ledger.stage_folder(record) / "losses.json") for record in ledger.records]
    return list(dict.fromkeys(loss.domain for row in rows for loss in row))


def initial_record(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, losses: Any
) -> StageRecord:
    """The first line of a ledger: the model before the stream."""
    return StageRecord(
        index=-1,
        name=INITIAL,
        domain="",
        parent="",
        recipe_hash=recipe.fingerprint,
        tokens=0,
        shape=model_shape(model.config),
        parameters=num_parameters(model),
        cost={},
        row=loss_row(losses),
        fingerprints={"tokenizer": tokenizer_fingerprint(tokenizer), "model": weights_fingerprint(model)},
        seeds={"model": recipe.seed},
        versions=package_versions(),
        files={},
        committed_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def prepare_tokenizer(
    ledger: Ledger, recipe: Recipe, domains: Sequence[Domain], observer: RunObserver
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: from its folder, or trained on the stream, or the checkpoint's own."""
    folder = ledger.work_folder(INITIAL) / "tokenizer"
    if ledger.records:
        folder = ledger.out / INITIAL / "tokenizer"
    if not folder.exists():
        observer.phase_started("prepare", 0)
        with whole_folder(folder) as partial:
            make_tokenizer(recipe, domains).save_pretrained(partial)
    return load_tokenizer(folder)


def make_tokenizer(recipe: Recipe, domains: Sequence[Domain]) -> PreTrainedTokenizerBase:
    """A tokenizer as the recipe says."""
    section = recipe.tokenizer
    if section is not None and section.train is not None:
        return train_tokenizer(
            domains,
            kind=section.train.kind,
            vocab_size=section.train.vocab_size,
            max_bytes=section.train.max_bytes,
            seed=recipe.seed,
        )
    source = section.checkpoint if section is not None else recipe.model.checkpoint
    return load_tokenizer(str(source))


def initial_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model before the first stage.

    Raises:
        InputError: its vocabulary is smaller than the tokenizer's, or its positions end before a sequence does.
    """
    if recipe.model.checkpoint is not None:
        model = load_model(recipe.model.checkpoint, recipe.objective, recipe.model.revision)
        check_fits(recipe, model, tokenizer)
        return model
    transformers.set_seed(recipe.seed)
    config = fresh_config(recipe, len(tokenizer), tokenizer)
    auto = transformers.AutoModelForCausalLM if recipe.objective == "clm" else transformers.AutoModelForMaskedLM
    try:
        return auto.from_config(config)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"model.family: {recipe.model.family!r} has no head for objective {recipe.objective!r}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def fresh_config(recipe: Recipe, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    """Configuration of a model that starts from random weights."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    assert recipe.model.family is not None, "a recipe names a checkpoint or a family"
    return new_config(
        recipe.model.family,
        vocab_size=recipe.model.vocab_size or vocab_size,
        max_positions=recipe.sequence_length,
        **ids,
        **{axis: size for axis, size in recipe.model.sizes().items() if axis != "vocab_size"},
        **recipe.model.config,
    )


def check_fits(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer or a sequence length that the model has no room for."""
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"tokenizer: has {len(tokenizer)} tokens, the model {recipe.model.checkpoint!r} room for "
            f"{model.config.vocab_size}; use the model's own tokenizer, or grow it first: "
            f"lifelong expand {recipe.model.checkpoint} OUT --vocab-size {len(tokenizer)}"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and recipe.sequence_length > positions:
        raise InputError(
            f"sequence_length: {recipe.sequence_length} is longer than the {positions} positions of "
            f"{recipe.model.checkpoint!r}"
        )
    if recipe.objective == "mlm" and tokenizer.mask_token_id is None:
        raise InputError("objective: mlm needs a tokenizer with a mask token, this one has none")


def last_model(ledger: Ledger, recipe: Recipe) -> PreTrainedModel:
    """The model of the last committed stage."""
    if not ledger.stages:
        return initial_model(recipe, load_tokenizer(ledger.out / INITIAL / "tokenizer"))
    return load_model(ledger.stage_folder(ledger.stages[-1]) / "model", recipe.objective)


# --- stopping -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM: training saves first, every other phase stops at once; a second signal always stops."""
    stop = StopRequest()

    def handle(number: int, _frame: object) -> None:
        if stop.deferred and not stop.requested:
            stop.requested = True
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
