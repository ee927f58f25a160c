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
    read_json,
    weights_fingerprint,
    whole_folder,
    write_json,
    write_text,
)
from lifelong.errors import InputError, Interrupted
from lifelong.evaluate.samples import sample_texts
from lifelong.expand import expand_model, model_shape, new_config, plan_expansion
from lifelong.ledger import INITIAL, Ledger, read_history, write_losses
from lifelong.metrics import compute_all
from lifelong.recipe import Recipe, load_recipe, parse_recipe
from lifelong.records import ComputeLedger, Cost, RunObserver, RunResult, StageRecord
from lifelong.report import write_report
from lifelong.stage import RunContext, StageRun, loss_row
from lifelong.stream.domain import Domain, load_domain
from lifelong.stream.heldout import write_heldout
from lifelong.stream.tokenize import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from lifelong.train.arguments import check_train_section
from lifelong.train.compute import num_parameters
from lifelong.train.method import make_methods
from lifelong.train.stage_trainer import StopRequest

PACKAGES = ("lifelong", "torch", "transformers", "datasets", "tokenizers", "accelerate", "safetensors")


def run_recipe(
    recipe: Recipe | str | Path, out: str | Path, observer: RunObserver | None = None
) -> RunResult:
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
    observer = observer or RunObserver()
    check_recipe(recipe)
    domains = [load_domain(stage.domain) for stage in recipe.stages]
    with Ledger.open(Path(out)) as ledger, stop_on_signals() as stop:
        claim(ledger.out, recipe)
        observer.run_started(recipe.name, [d.name for d in domains], [s.tokens for s in recipe.stages])
        context, model = begin(ledger, recipe, domains, observer, stop)
        for index, (section, domain) in enumerate(zip(recipe.stages, domains, strict=True)):
            if index < len(ledger.stages):
                observer.stage_skipped(ledger.stages[index])
                continue
            if model is None:
                model = last_model(ledger, recipe)
            record, model = StageRun(context, index, section, domain).run(model)
            observer.stage_committed(record)
        ledger.forget_work()
        result = summarise(ledger.out)
    observer.run_finished(result)
    return result


def summarise(out: Path) -> RunResult:
    """Write the report of what is committed and hand back its figures."""
    history = read_history(out)
    write_report(history, out / "report")
    cost = sum((ComputeLedger.from_json(record.cost).total for record in history.stages), Cost())
    return RunResult(str(out), history.matrix, compute_all(history.matrix), cost)


def check_recipe(recipe: Recipe) -> None:
    """What only the libraries and the cards can judge; every error at once, before anything is written.

    Raises:
        InputError: one message with a line for every error.
    """
    lines = check_train_section(recipe.train)
    for index, stage in enumerate(recipe.stages):
        lines += check_train_section(stage.train, f"stages[{index}].train")
    with collecting(lines):
        make_methods([(method.name, method.settings()) for method in recipe.methods])
    with collecting(lines):
        check_growth(recipe)
    for stage in dict.fromkeys(stage.domain for stage in recipe.stages):
        with collecting(lines):
            load_domain(stage)
    if lines:
        raise InputError(
            f"recipe {recipe.name}: {len(lines)} error{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines)
        )


@contextlib.contextmanager
def collecting(lines: list[str]) -> Iterator[None]:
    """Turn an InputError into a line of a longer message."""
    try:
        yield
    except InputError as error:
        lines.append(str(error))


def check_growth(recipe: Recipe) -> None:
    """Plan every growth on configurations alone.

    Raises:
        InputError: a target that cannot be reached from the stage before.
    """
    if not any(stage.expand for stage in recipe.stages):
        return
    if recipe.model.checkpoint is not None:
        config = load_config(recipe.model.checkpoint, recipe.model.revision)
    else:
        config = fresh_config(recipe, vocab_size=recipe.tokenizer_size or 512)
    for index, stage in enumerate(recipe.stages):
        if stage.expand is not None:
            try:
                config = plan_expansion(
                    config,
                    mode=stage.expand.mode,
                    **stage.expand.sizes(),
                ).target_config
            except Exception as error:
                raise InputError(f"stages[{index}].expand: {error}") from None


def claim(out: Path, recipe: Recipe) -> None:
    """Bind a run folder to its recipe.

    Raises:
        InputError: the folder belongs to another recipe; names the keys that differ.
    """
    path = out / "recipe.yaml"
    if path.exists():
        existing = parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))
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
            found
            for key in keys
            for found in differing_keys(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
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
    """Tokenizer, held-out documents and row -1; the initial model too where it had to be made."""
    columns = list({domain.name: domain for domain in domains}.values())
    tokenizer = prepare_tokenizer(ledger, recipe, columns, observer)
    for domain in columns:
        folder = ledger.out / "heldout" / domain.name
        if not folder.exists():
            with whole_folder(folder) as partial:
                write_heldout(domain, recipe.evaluate.split, tokenizer, recipe.evaluate.tokens, partial)
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
    auto = (
        transformers.AutoModelForCausalLM if recipe.objective == "clm" else transformers.AutoModelForMaskedLM
    )
    try:
        return auto.from_config(config)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"model.family: {recipe.model.family!r} has no head for objective {recipe.objective!r}: {' '.join(str(error).split())[:200]}"
        ) from None


def fresh_config(recipe: Recipe, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    """Configuration of a model that starts from random weights."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
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
            f"sequence_length: {recipe.sequence_length} is longer than the {positions} positions of {recipe.model.checkpoint!r}"
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
