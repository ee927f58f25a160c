"""Forgetting against gain on the line from the old model to the trained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import InputError
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.evaluate.settings import autocast_dtype
from lifelong.files import write_sealed
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.history import read_losses
from lifelong.ledger.ledger import record_hash
from lifelong.lineage.merge import check_weight, stage_ends
from lifelong.lm.checkpoint import to_accelerator
from lifelong.lm.objective import objective_of, pad_id
from lifelong.records import Front, FrontPoint
from lifelong.stream.heldout import Heldout
from lifelong.stream.tokenizers.load import load_tokenizer

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def interpolation_front(
    run: Path, recipe: Mapping[str, Any], weights: Sequence[float] = WEIGHTS, stage: str | None = None
) -> Front:
    """Held-out loss of every domain, watched or learned, at some weights; written to `RUN/front/STAGE.json`.

    Args:
        run: the run folder.
        recipe: its recipe in plain values.
        weights: from 0, the previous stage's model at the new size, to 1, the trained one.
        stage: name or number of a stage; the last one where not given.

    Raises:
        InputError: a weight, the run or the stage is wrong.
    """
    for weight in weights:
        check_weight(weight)
    ends, folder = stage_ends(run, recipe, stage), RunFolder(run)
    heldouts = [Heldout.open(path) for path in sorted(folder.heldouts.iterdir())]
    watched = folder.stage(ends.record.name).watched
    measured = {*ends.record.row, *(loss.domain for loss in (read_losses(watched) if watched.is_file() else ()))}
    heldouts = [heldout for heldout in heldouts if heldout.domain in measured]
    tokenizer = load_tokenizer(folder.model(ends.record.name))
    objective = objective_of(str(recipe.get("objective", "clm")))
    autocast = autocast_dtype(recipe.get("evaluate", {}).get("precision"), recipe.get("train", {}))
    if not recipe.get("train", {}).get("use_cpu"):
        to_accelerator(ends.model)
    points = []
    for weight in sorted(set(weights)):
        model = ends.at(weight)
        losses = [
            evaluate_domain(
                model, heldout, objective=objective.name, sequence_length=int(recipe["sequence_length"]),
                pad_id=pad_id(tokenizer), mask_id=objective.mask_id(tokenizer), autocast=autocast,
            )
            for heldout in heldouts
        ]  # fmt: skip
        points.append(FrontPoint(weight, {loss.domain: loss.nats_per_token for loss in losses}))
    front = Front(ends.record.name, ends.record.domain, record_hash(ends.record), tuple(points))
    write_sealed(folder.front(front.stage), front.to_json())
    return front


def parse_weights(text: str) -> list[float]:
    """`0,0.5,1` as numbers.

    Raises:
        InputError: one of them is not a number from 0 to 1.
    """
    try:
        return [check_weight(float(part)) for part in text.split(",")]
    except ValueError:
        raise InputError(f"merge --weights: write numbers from 0 to 1 with commas between them, not {text!r}") from None
