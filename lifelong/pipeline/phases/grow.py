"""Growth at the start of a stage; verified before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import torch
from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.errors import InexactGrowthError
from lifelong.expand import ExpansionMap, grow, model_shape, plan_expansion
from lifelong.expand.settings import ExpandSection
from lifelong.files import atomic_directory, read_json, write_json
from lifelong.ledger.folder import StageFolder
from lifelong.lm.checkpoint import load_model, save_model
from lifelong.lm.flops import num_parameters
from lifelong.methods._grown_entries import new_entry_counts
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.stage import Stage
from lifelong.records import Cost

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""By how many nats rounding may move the held-out loss."""
VERIFY_TOKENS = 2_000


class Grow(Phase):
    """The model at the size that the stage trains; one without `expand:` stays as it is."""

    name = "grow"

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Grow, and say what the stage trains."""
        if stage.section.expand is not None:
            distributed.run_on_main_process(lambda: _write_grown(stage, model))
            model = load_model(stage.work.grown.model, stage.recipe.objective, dtype=stage.recipe.model.dtype)
        stage.context.observer.stage_started(stage.index, model_shape(model.config), num_parameters(model))
        return model

    def keep(self, stage: Stage, folder: StageFolder) -> None:
        """The growth's report and map."""
        if stage.section.expand is not None:
            written = read_json(stage.work.grown.expansion)
            write_json(folder.expansion, {key: value for key, value in written.items() if key != "seconds"})

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Time only: a growth multiplies no tokens."""
        del model
        if stage.section.expand is not None:
            yield self.name, Cost(seconds=read_json(stage.work.grown.expansion)["seconds"])


def _write_grown(stage: Stage, model: PreTrainedModel) -> None:
    assert stage.section.expand is not None, "asked for only where the stage grows"
    folder = stage.work.grown
    if not folder.path.exists():
        stage.context.observer.phase_started(Grow.name, 0)
        with atomic_directory(folder.path) as partial:
            _grow_into(stage, model, stage.section.expand, StageFolder(partial))


def _trained_note(expand: ExpandSection, mapping: ExpansionMap) -> Iterator[str]:
    """What of the grown model the stage trains, where old and new entries differ."""
    if (rates := expand.entry_rates) is not None:
        new, every = new_entry_counts(mapping)
        old = "are held bit for bit" if rates.old == 0 else f"learn at {rates.old:g} times the rate"
        yield (
            f"trained: {new:,} of {every:,} entries ({new / every:.1%}) are new and learn at {rates.new:g} times the "
            f"rate; the others {old}"
        )


def _grow_into(stage: Stage, model: PreTrainedModel, expand: ExpandSection, folder: StageFolder) -> None:
    """Grow, compare with the small model in float64 and on held-out text, and write the grown one.

    Raises:
        InexactGrowthError: the function moved by more than rounding.
    """
    context, started = stage.context, monotonic()
    plan = plan_expansion(model.config, **expand.options(), **expand.sizes())
    grown, mapping, report = grow(model, plan, seed=stage.seed)
    seen = [context.heldouts[column] for column in stage.seen_columns()]
    before, after = (
        [context.evaluate_one(which, heldout, VERIFY_TOKENS).nats_per_token for heldout in seen]
        for which in (model, grown)
    )
    drift = max((abs(a - b) for a, b in zip(after, before, strict=True)), default=0.0)
    notes = (*report.notes, *_trained_note(expand, mapping))
    report = replace(report, loss_difference=drift, seconds=monotonic() - started, notes=notes)
    if plan.is_exact and (not report.passed or drift > LOSS_TOLERANCE[grown.dtype]):
        raise InexactGrowthError(
            f"stage {stage.name}: the grown model does not compute the same function: logits differ by "
            f"{report.max_logit_difference_float64:.1e} in float64 (allowed {report.tolerance:.0e}), held-out loss "
            f"by {drift:.1e} nats; nothing was committed"
        )
    save_model(grown, context.tokenizer, folder.model)
    write_json(folder.expansion, {**report.to_json(), "map": mapping.to_json()})
    context.observer.expanded(report)
