"""Grow a model in memory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from lifelong.errors import ExpansionError
from lifelong.expand.attached import move_optimizer
from lifelong.expand.depth import Placement
from lifelong.expand.lazy import empty_model, model_class_of, stored_tensors, tied_names
from lifelong.expand.mapping import ExpansionMap, TableNames, build_map
from lifelong.expand.plan import ExpansionPlan, plan_expansion
from lifelong.expand.positions import check_position_functions
from lifelong.expand.shape import estimated_parameters
from lifelong.expand.verify import ModelUnderTest, from_weights, verify
from lifelong.expand.width import Strategy
from lifelong.lm.checkpoint import cast_weights
from lifelong.records import ExpansionReport


def expansion_map(plan: ExpansionPlan, model_class: Any) -> ExpansionMap:
    """The map of a plan for a model class; loads no weights.

    Raises:
        ExpansionError: the model is not a standard member of its family.
    """
    return map_between(plan, *empty_models(plan, model_class))


def empty_models(plan: ExpansionPlan, model_class: Any) -> tuple[Any, Any]:
    """The models before and after, without weights."""
    return (
        empty_model(model_class, plan.source_config),
        empty_model(grown_class(plan, model_class), plan.target_config),
    )


def map_between(plan: ExpansionPlan, small: Any, large: Any) -> ExpansionMap:
    """The map of a plan from one model to another, which need no weights.

    Raises:
        ExpansionError: the model is not a standard member of its family.
    """
    mapping = build_map(plan, small, large)
    check_position_functions(plan, small, large)
    return mapping


def grown_class(plan: ExpansionPlan, model_class: Any) -> Any:
    """The class of the grown model: the same, or that of the mixture of experts.

    Raises:
        ExpansionError: a head that the mixture would lose.
    """
    if plan.target_family is plan.family:
        return model_class
    if model_class is not model_class_of(plan.source_config, plan.family.objective):
        raise ExpansionError(
            f"experts: a {model_class.__name__} cannot become a mixture of experts: its head would be lost"
        )
    return model_class_of(plan.target_config, plan.target_family.objective)


def grow(
    model: Any, plan: ExpansionPlan, *, seed: int | None = None, optimizer: torch.optim.Optimizer | None = None
) -> tuple[Any, ExpansionMap, ExpansionReport]:
    """Grow `model`, which stays as it is, and verify the result.

    Args:
        model: a stock transformers model.
        plan: of its configuration.
        seed: of new entries, over the plan's.
        optimizer: of the model; it is handed over to the grown model, in place.

    Returns:
        A stock model of the plan's shape, the map of its weights, and what was measured on both.

    Raises:
        ExpansionError: the model is not a standard member of its family, or holds values that are not finite.
    """
    started = time.monotonic()
    _check_memory(plan)
    plan = plan if seed is None else replace(plan, seed=seed)
    weights = {name: value.cpu() for name, value in stored_tensors(model).items()}
    TableNames.of(model, plan.family)  # of this very model, whatever its class would have
    small, large = empty_models(plan, type(model))
    mapping = map_between(plan, small, large)
    grown = _with_weights(model, plan, mapping, weights)
    report = verify(
        plan,
        mapping,
        ModelUnderTest(small, from_weights(weights)),
        ModelUnderTest(large, from_weights(stored_tensors(grown))),
    )
    grown = grown.to(next(model.parameters()).device).train(model.training)
    if optimizer is not None:
        move_optimizer(optimizer, model, grown, mapping)
    return grown, mapping, replace(report, seconds=time.monotonic() - started)


def _check_memory(plan: ExpansionPlan) -> None:
    import psutil

    size = 4 * estimated_parameters(plan.target_family, plan.target, tied=plan.tied)
    free = psutil.virtual_memory().available
    if size > free:
        raise ExpansionError(
            f"the grown model takes about {size / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free"
        )


def _with_weights(model: Any, plan: ExpansionPlan, mapping: ExpansionMap, weights: dict[str, torch.Tensor]) -> Any:
    """A stock model of the grown shape."""
    from transformers.initialization import no_init_weights

    dtype = next(model.parameters()).dtype
    with no_init_weights():
        grown = cast_weights(grown_class(plan, type(model))(plan.target_config), dtype)
    grown.tie_weights()
    values = mapping.apply_weights(weights)
    missing = grown.load_state_dict(values, strict=False)
    unknown = [*missing.unexpected_keys, *(name for name in missing.missing_keys if name not in tied_names(grown))]
    if unknown:
        raise ExpansionError(f"the grown model and the map disagree about {', '.join(unknown[:5])}")
    grown.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        grown.generation_config = model.generation_config
    return grown


def expand_model(  # noqa: PLR0913  # one name a size, as the command line has them
    model: Any,
    *,
    layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab_size: int | None = None,
    experts: int | None = None,
    experts_per_token: int | None = None,
    positions: int | None = None,
    mode: str = "exact",
    strategy: Strategy = "pad",
    approximate: bool = False,
    placement: Placement = "interleaved",
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[Any, ExpansionReport]:
    """Grow a model and verify the result; `model` itself is left as it is.

    Args:
        model: a stock transformers model of a supported family.
        layers: layers after growth; as for all sizes, what is not named stays.
        hidden_size: width of the residual stream.
        intermediate_size: neurons of a feed-forward layer.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: channels of a head.
        vocab_size: rows of the embedding.
        experts: experts of a layer; a dense model becomes a mixture.
        experts_per_token: experts a token passes.
        positions: longest sequence.
        mode: `exact`, or `elle` for the random copies of the ELLE paper.
        strategy: how new units begin: `pad`, `clone` or `pairs`; all exact.
        approximate: continue where exactness is impossible; the report says how far the function moved.
        placement: of new layers: `interleaved`, `last`, or for every one the layer it follows.
        seed: of new entries.
        optimizer: of the model; its state (Adam's moments) moves to the grown model, in place.

    Returns:
        A stock model, and what was measured on both.

    Raises:
        ExpansionError: the target cannot be reached.
        UnknownNameError: no family covers the architecture.
    """
    plan = plan_expansion(
        model.config, mode=mode, strategy=strategy, approximate=approximate, placement=placement, seed=seed,
        layers=layers, hidden_size=hidden_size, intermediate_size=intermediate_size, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, vocab_size=vocab_size, experts=experts, experts_per_token=experts_per_token,
        positions=positions,
    )  # fmt: skip
    grown, _, report = grow(model, plan, optimizer=optimizer)
    return grown, report
