"""A run of any size in generated figures."""

from __future__ import annotations

import random

from lifelong.records import (
    DomainLoss,
    LossMatrix,
    ProbePoint,
    RunHistory,
    Sample,
    StageRecord,
    TrainPoint,
)

TOKENS = 1_000_000


def generated_history(num_domains: int, num_stages: int, documents: int = 20) -> RunHistory:
    """Every stage lowers its own domain and raises all others a little."""
    draw = random.Random(0)
    domains = tuple(f"domain-{k:03d}" for k in range(num_domains))
    visits = tuple(t % num_domains for t in range(num_stages))
    losses = [8 + draw.random() for _ in domains]
    initial = tuple(losses)
    rows = []
    for column in visits:
        losses = [loss + 0.02 * draw.random() for loss in losses]
        losses[column] = 3 + draw.random()
        rows.append(tuple(losses))

    def evaluated(row: tuple[float, ...]) -> tuple[DomainLoss, ...]:
        return tuple(
            DomainLoss(d, x * 20 * documents, 20 * documents, 80 * documents, (x * 20,) * documents, (20,) * documents)
            for d, x in zip(domains, row, strict=True)
        )

    matrix = LossMatrix(
        domains, tuple(f"{t:02d}-{domains[k]}" for t, k in enumerate(visits)), visits, initial, tuple(rows),
        tuple(tuple(x / 2 for x in row) for row in rows), tuple((20 * documents,) * num_domains for _ in rows),
        tuple(x / 2 for x in initial),
    )  # fmt: skip
    cost = {"train": {"tokens": TOKENS, "flops": 1e12, "teacher_flops": 1e11, "seconds": 2.0}}
    stages = tuple(
        StageRecord(
            t, matrix.stages[t], domains[k], "p" * 64, "r", TOKENS, {}, 10**6, cost, {}, {"model": "m" * 64}, {}, {}, {},
            replay={domains[j]: 1000 for j in visits[max(0, t - 20) : t]},
        )
        for t, k in enumerate(visits)
    )  # fmt: skip
    train = tuple(
        TrainPoint("train", i, i * TOKENS // 10, 5 - i / 10, 5 - i / 10, 0.1, max(0, 0.5 - i / 10))
        for i in range(1, 11)
    )
    probes = tuple(
        tuple(
            ProbePoint(s, s * TOKENS // 10, d, row[j] + 0.1, 100)
            for j, d in list(enumerate(domains))[:8]
            for s in (0, 1, 3, 10)
        )
        for row in rows
    )
    return RunHistory(
        name="generated", path="runs/generated", recipe={"name": "generated"}, environment={}, stages=stages,
        unfinished=(), matrix=matrix, initial_losses=evaluated(initial), losses=tuple(map(evaluated, rows)),
        train=(train,) * num_stages, probes=probes, expansions=(None,) * num_stages,
        samples=tuple(Sample(s, d, "opening", "more") for d in domains for s in (-1, num_stages - 1)),
    )  # fmt: skip
