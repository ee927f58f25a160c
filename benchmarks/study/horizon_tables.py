"""Tables of the unknown horizon: losses by training FLOPs, and what an arm regrets at each of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.study import figures
from benchmarks.study.page import Row, against, by_seed, read, spread, table

Values = Mapping[str, Sequence[Row]]


def mixed(kind: str, place: int) -> Callable[[Row], float]:
    """Mean loss over all domains after piece `place`; `kind` is `mean` or `raw`, of which weights."""
    return lambda row: statistics.fmean(row["horizons"][kind][place])


def seen(kind: str, place: int) -> Callable[[Row], float]:
    """The same over the domains that a stream has met by then."""
    return lambda row: statistics.fmean(row["horizons"][kind][place][: place + 1])


def ends(arms: Values) -> list[str]:
    """Training TFLOP at which runs are read."""
    row = next(iter(arms.values()))[0]
    return [f"{flops / 1e12:.2g}" for flops in row["horizons"]["flops"]]


def loss_table(part: str, kind: str, loss: Callable[[str, int], Callable[[Row], float]] = mixed) -> str:
    """Losses of every arm, every seed, at every horizon."""
    if not (arms := read(part)):
        return ""
    heads = ends(arms)
    rows = [
        [f"`{name}`", *[", ".join(f"{loss(kind, place)(row):.3f}" for row in rows) for place in range(len(heads))]]
        for name, rows in arms.items()
    ]
    return table(["arm \\ TFLOP", *heads], rows)


def regret_table(part: str, loss: Callable[[str, int], Callable[[Row], float]] = mixed) -> str:
    """Loss above the best arm of the same seed, mean over seeds; the worst and the mean over horizons."""
    if not (arms := read(part)):
        return ""
    heads = ends(arms)
    regrets = regret(arms, len(heads), loss)
    rows = []
    for name in sorted(arms, key=lambda name: max(map(statistics.fmean, regrets[name]))):
        means = [statistics.fmean(found) for found in regrets[name]]
        by_run = list(zip(*regrets[name], strict=True))
        rows.append([
            f"`{name}`",
            str(len(arms[name])),
            *[f"{value:.3f}" for value in means],
            spread([max(found) for found in by_run]),
            spread([statistics.fmean(found) for found in by_run]),
        ])  # fmt: skip
    return table(["arm \\ TFLOP", "seeds", *heads, "worst", "mean"], rows)


def regret(
    arms: Values, places: int, loss: Callable[[str, int], Callable[[Row], float]] = mixed
) -> dict[str, list[list[float]]]:
    """Arm -> horizon -> seed -> loss of the averaged weights above the lowest of the arms that have the seed."""
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for place in range(places):
        values = {name: by_seed(rows, loss("mean", place)) for name, rows in arms.items()}
        for name, mine in values.items():
            found[name].append(
                [value - min(other[seed] for other in values.values() if seed in other) for seed, value in mine.items()]
            )
    return found


def paired_table(part: str, reference: str, loss: Callable[[str, int], Callable[[Row], float]] = mixed) -> str:
    """Difference to one arm at every horizon, paired over the seeds that both have; no test where that is one."""
    if reference not in (arms := read(part)):
        return ""
    heads = ends(arms)
    rows = [[f"`{name}`"] for name in arms if name != reference]
    for place in range(len(heads)):
        value = loss("mean", place)
        tested, base = against(arms, reference, value), by_seed(arms[reference], value)
        for cells, name in zip(rows, (name for name in arms if name != reference), strict=True):
            differences = [mine - base[seed] for seed, mine in by_seed(arms[name], value).items() if seed in base]
            cells.append(tested.get(name) or ", ".join(f"{difference:+.3f}" for difference in differences))
    return table([f"arm − `{reference}` \\ TFLOP", *heads], rows)


def horizon_page(pictures: Path) -> dict[str, str]:
    """What the page says of unknown horizons, by its names in the reading; draws the picture."""
    if "mid" in (arms := read("unknown-horizon")):
        flops = [float(end) for end in ends(arms)]
        level = [by_seed(arms["mid"], mixed("mean", place)) for place in range(len(flops))]
        curves = {
            name: {
                row["seed"]: [mixed("mean", place)(row) - level[place][row["seed"]] for place in range(len(flops))]
                for row in rows
                if row["seed"] in level[0]
            }
            for name, rows in arms.items()
        }
        figures.horizon_figure(curves, flops, pictures / "study-unknown-horizon")
    planes = {
        name: [(row["metrics"]["in_domain"], row["metrics"]["forgetting"]) for row in rows]
        for name, rows in read("horizon-stream").items()
    }
    if planes:
        figures.plane_figure(
            planes, "after its own stage, nats/token", "forgetting, nats/token", pictures / "study-horizon-stream"
        )
    return {
        "HORIZON": loss_table("unknown-horizon", "mean"),
        "HORIZON_RAW": loss_table("unknown-horizon", "raw"),
        "HORIZON_REGRET": regret_table("unknown-horizon"),
        "HORIZON_PAIRED": paired_table("unknown-horizon", "mid"),
        "HORIZON_LONG": loss_table("horizon-long", "mean"),
        "HORIZON_LONG_PAIRED": paired_table("horizon-long", "mid"),
        "HORIZON_MOMENTS": loss_table("horizon-moments", "mean"),
        "HORIZON_STREAM": loss_table("horizon-stream", "mean", seen),
        "HORIZON_STREAM_PAIRED": paired_table("horizon-stream", "mid", seen),
        "HORIZON_STREAM_REGRET": regret_table("horizon-stream", seen),
        "HORIZON_RATES": loss_table("horizon-rates", "mean"),
    }
