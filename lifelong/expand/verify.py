"""Verification of a growth: the old and the grown model on the same tokens.

Shapes: B sequences, T tokens, V tokens of the old vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lifelong.expand.float64 import true_float64
from lifelong.expand.lazy import (
    BLOCK_BYTES,
    Blocks,
    Fetch,
    Rows,
    filled_model,
    in_blocks,
    is_held,
    model_class_of,
)
from lifelong.expand.mapping import ExpansionMap
from lifelong.expand.plan import ExpansionPlan
from lifelong.expand.positions import check_position_functions
from lifelong.lm.compat import cache_argument
from lifelong.lm.objective import objective_of
from lifelong.records import ExpansionReport

TOLERANCE = 1e-10
VERIFY_SEED = 1234
Run = Callable[[Any, Tensor], Tensor]
Level = Literal["full", "quick", "none"]
NUM_SEQUENCES, NUM_TOKENS, NUM_CACHED, FEW_TOKENS, QUICK_TOKENS = 2, 24, 4, 8, 4


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to compare: the model without weights, and functions that give its parameters, whole or by rows."""

    empty: Any
    fetch: Fetch
    rows: Rows | None = None

    @property
    def blocks(self) -> Blocks | None:
        """Parameters by blocks of rows, where rows can be had."""
        return None if self.rows is None else in_blocks(self.rows, self.empty)

    def logits(
        self, ids_BT: Tensor, dtype: torch.dtype, runs: Mapping[str, Run], blocks: Blocks | None = None
    ) -> dict[str, Tensor]:
        """Logits of every run in `dtype`; float64 is float64 throughout."""
        model = filled_model(type(self.empty), self.empty.config, self.fetch, dtype, blocks or self.blocks)
        with true_float64() if dtype == torch.float64 else nullcontext(), torch.no_grad():
            results = {name: run(model, ids_BT) for name, run in runs.items()}
        return results if dtype == torch.float64 else {name: value.float() for name, value in results.items()}


ANSWERS = ("logits", "prediction_logits", "start_logits", "last_hidden_state")
MORE_ANSWERS = ("end_logits", "seq_relationship_logits", "pooler_output")


def answer(output: Any) -> Tensor:
    """What a model is asked for: `[B,T,...]`, or `[B,L]` of a classifier of sequences."""
    found: Tensor = next(value for name in ANSWERS if (value := getattr(output, name, None)) is not None)
    return found


def other_answer(name: str) -> Run:
    """A run that gives what else a model with another head answers; empty where it does not."""

    def run(model: Any, ids_BT: Tensor) -> Tensor:
        value = getattr(model(input_ids=ids_BT), name, None)
        return torch.empty(0) if value is None else value

    return run


def plain(model: Any, ids_BT: Tensor) -> Tensor:
    """`[B,T,V]` of all tokens."""
    return answer(model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)))


def padded(model: Any, ids_BT: Tensor) -> Tensor:
    """`[N,V]` of the tokens that are none of the padding on the left (decoder) or right (encoder) of one sequence."""
    mask_BT = torch.ones_like(ids_BT)
    third = max(1, ids_BT.shape[1] // 3)
    where = slice(0, third) if model.can_generate() else slice(ids_BT.shape[1] - third, None)
    mask_BT[1:, where] = 0
    pad = getattr(model.config, "pad_token_id", None)
    padded_BT = ids_BT.masked_fill(mask_BT == 0, pad if isinstance(pad, int) else 0)
    value = answer(model(input_ids=padded_BT, attention_mask=mask_BT))
    return value[mask_BT.bool()] if value.shape[:2] == mask_BT.shape else value


def cached(model: Any, ids_BT: Tensor) -> Tensor:
    """`[B,T,V]` of all tokens, the last ones one at a time through a key-value cache."""
    start = ids_BT.shape[1] - NUM_CACHED
    return _continued(model, ids_BT, [start, *range(start + 1, ids_BT.shape[1] + 1)])


def last_cached(model: Any, ids_BT: Tensor) -> Tensor:
    """`[B,T,V]` of all tokens, the last one through a key-value cache."""
    return _continued(model, ids_BT, [ids_BT.shape[1] - 1, ids_BT.shape[1]])


def _continued(model: Any, ids_BT: Tensor, ends: Sequence[int]) -> Tensor:
    """`[B,T,V]`, computed piece by piece with the cache of what came before; `ends` are those of the pieces."""
    name, parts, cache, start = cache_argument(model), [], None, 0
    for end in ends:
        step = model(input_ids=ids_BT[:, start:end], use_cache=True, **{name: cache})
        parts.append(step.logits)
        cache, start = step[name], end
    return torch.cat(parts, 1)


def runs_of(plan: ExpansionPlan, *, held: bool, language_model: bool = True) -> dict[str, Run]:
    """What a model is run on; an encoder has no cache. One that is not held is read anew in every pass: the fewest."""
    if not language_model:
        return {"tokens": plain, "padding": padded, **{name: other_answer(name) for name in MORE_ANSWERS}}
    if not objective_of(plan.family.objective).is_causal:
        return {"tokens": plain, "padding": padded}
    if held:
        return {"tokens": plain, "padding": padded, "cache": cached}
    return {"tokens": last_cached, "padding": padded}


def verify(
    plan: ExpansionPlan,
    mapping: ExpansionMap,
    small: ModelUnderTest,
    grown: ModelUnderTest,
    *,
    level: Level = "full",
    progress: Callable[[str], None] | None = None,
) -> ExpansionReport:
    """Compare both models on random tokens, with padding and with a cache, in three precisions.

    `quick` looks at a few tokens in float64 alone; `none` at functions of position and length alone, which need no
    weights.

    In float64 the map is applied to float64 weights: a weight scaled by sqrt(D/d) and stored in float32 moves the
    logits by float32 rounding, which says nothing about the map. Only logits of the old vocabulary are compared; the
    divergence counts the probability that new tokens take.
    """
    tell = progress or (lambda _text: None)
    check_position_functions(plan, small.empty, grown.empty)
    report = ExpansionReport(
        family=plan.target_family.name,
        mode=plan.mode if not plan.approximations or plan.mode == "elle" else "approximate",
        source=dict(plan.source),
        target=dict(plan.target),
        parameters_before=count_parameters(small.empty),
        parameters_after=count_parameters(grown.empty),
        notes=plan.approximations,
    )
    if level == "none":
        return replace(report, notes=(*report.notes, "logits were not compared (verify: none)"))
    exact = ModelUnderTest(grown.empty, doubled(mapping, small.fetch))
    ids_BT = random_tokens(plan)
    if level == "quick":
        ids_BT = ids_BT[:1, :QUICK_TOKENS]
    tell("verify float64")
    is_language_model = type(small.empty) is model_class_of(plan.source_config, plan.family.objective)
    runs = runs_of(plan, held=is_held(grown.empty, torch.float64), language_model=is_language_model)
    if level == "quick":
        runs = {"tokens": plain}
    with _one_thread() if level == "quick" else nullcontext():
        befores = small.logits(ids_BT, torch.float64, runs)
        afters = exact.logits(ids_BT, torch.float64, runs, doubled_blocks(mapping, small, grown.blocks))
    worst = {name: largest_difference(befores[name], afters[name]) for name in runs if befores[name].numel()}
    before, after = befores["tokens"], afters["tokens"]
    tolerance = TOLERANCE * max(1.0, float(before.abs().max()))
    moved: dict[str, Any] = divergence(before, after, ids_BT) if is_language_model else {}
    report = replace(
        report,
        max_logit_difference_float64=max(worst.values()),
        **moved,
        tolerance=tolerance,
        passed=not plan.is_exact or max(worst.values()) <= tolerance,
        notes=(*report.notes, _listed(worst, cache=runs["tokens"] is last_cached)),
    )
    return report if level == "quick" else _with_formats(report, small, grown, before, ids_BT, tell)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks of rows times a few tokens: threads gain little, and on a busy machine mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_formats(
    report: ExpansionReport,
    small: ModelUnderTest,
    grown: ModelUnderTest,
    before: Tensor,
    ids_BT: Tensor,
    tell: Callable[[str], None],
) -> ExpansionReport:
    """The report with differences in number formats: of the models, and of the old one from itself in float64."""
    difference, rounding = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        tell(f"verify {str(dtype).removeprefix('torch.')}")
        # many processors multiply bfloat16 fifty times more slowly than float32: a few tokens have to do
        some_BT = ids_BT[:1, :FEW_TOKENS] if dtype == torch.bfloat16 else ids_BT
        low, high = (model.logits(some_BT, dtype, {"tokens": plain})["tokens"] for model in (small, grown))
        difference[dtype] = largest_difference(low, high)
        if low.dim() == 3:  # what a classifier says of a whole text depends on how much of it was seen
            rounding[dtype] = largest_difference(before[: len(some_BT), : some_BT.shape[1]], low)
    return replace(
        report,
        max_logit_difference_float32=difference[torch.float32],
        max_logit_difference_bfloat16=difference[torch.bfloat16],
        notes=(*report.notes, *([_rounding(rounding)] if rounding else [])),
    )


def _listed(worst: Mapping[str, float], *, cache: bool) -> str:
    listed = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return f"in float64: {listed}" + ("; the last token through the cache" if cache else "")


def _rounding(rounding: Mapping[torch.dtype, float]) -> str:
    """What the number formats alone do to the model that did not grow: differences of this size say nothing."""
    listed = ", ".join(f"{str(dtype).removeprefix('torch.')} {value:.1e}" for dtype, value in rounding.items())
    return f"rounding of the model before growth, against float64: {listed}"


def largest_difference(before: Tensor, after: Tensor) -> float:
    """Largest difference between logits of the old vocabulary; NaN counts as infinite."""
    moved = (after[..., : before.shape[-1]] - before).abs()
    return float(moved.nan_to_num(nan=float("inf")).max())


def divergence(before: Tensor, after: Tensor, ids_BT: Tensor) -> dict[str, float]:
    """Loss difference on the tokens, KL(old || grown) in nats and agreement of the most probable token."""
    size = before.shape[-1]
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)[..., :size]
    wanted = ids_BT[:, 1:, None]
    loss = [-float(log[:, :-1].gather(-1, wanted).mean()) for log in (log_p, log_q)]
    return {
        "loss_difference": loss[1] - loss[0],
        "kl_divergence": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "top1_agreement": float((before.argmax(-1) == after[..., :size].argmax(-1)).double().mean()),
    }


def random_tokens(plan: ExpansionPlan) -> Tensor:
    """`[B,T]` tokens of the old vocabulary, within the old positions."""
    generator = torch.Generator().manual_seed(VERIFY_SEED)
    padding = getattr(plan.source_config, "pad_token_id", None) or 0
    room = plan.source.get("positions", NUM_TOKENS) - (padding + 1 if plan.family.positions_after_padding else 0)
    length = max(NUM_CACHED + 2, min(NUM_TOKENS, room))
    return torch.randint(0, plan.source["vocab_size"], (NUM_SEQUENCES, length), generator=generator)


def doubled(mapping: ExpansionMap, fetch: Fetch) -> Fetch:
    """Grown parameters in float64, made from the old ones as they are asked for."""

    def grown(name: str) -> Tensor:
        sources = {source: fetch(source).double() for source in mapping.tensors[name].sources}
        return mapping.weight(name, sources)

    return grown


def doubled_blocks(mapping: ExpansionMap, small: ModelUnderTest, stored: Blocks | None) -> Blocks | None:
    """The same by rows: as they were written where old entries are only moved, else made again in float64."""
    old = small.rows
    if old is None or stored is None:
        return None

    def double(name: str, start: int, stop: int) -> Tensor:
        return old(name, start, stop).double()

    def blocks(name: str) -> Iterator[Tensor]:
        if mapping.only_moves(name):
            return stored(name)
        made = mapping.weight_rows(name, double, torch.float64, most_bytes=4 * BLOCK_BYTES)
        return made if made is not None else iter([doubled(mapping, small.fetch)(name)])

    return blocks


def count_parameters(model: Any) -> int:
    """Parameters, counting shared ones once."""
    return sum(value.numel() for value in model.parameters())


def from_weights(weights: Mapping[str, Tensor]) -> Fetch:
    """Parameters from a dict."""
    return weights.__getitem__
