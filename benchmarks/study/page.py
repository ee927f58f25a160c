"""docs/results.md from the raw figures: tables and pictures are generated, the reading of them is written by hand.

The raw figures are `results/*.jsonl` beside this file, one run a line; the page can be made again from them alone.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import figures, real_model
from benchmarks.study.parts import PARTS
from benchmarks.study.settings import TABLES as SETTINGS_TABLES
from lifelong.report.uncertainty import holm, t_interval, t_test

HERE = Path(__file__).parent
RESULTS = HERE / "results"
READING = HERE / "reading.md"
Row = Mapping[str, Any]


def collect(out: Path) -> None:
    """Copy what a study has measured into the repository; runs of other seeds and arms that are there stay."""
    RESULTS.mkdir(exist_ok=True)
    for name, part in PARTS.items():
        found = [json.loads(path.read_text()) for path in sorted((out / "figures").glob(f"{name}-*.json"))]
        path, order = RESULTS / f"{name}.jsonl", list(part.arms)
        before = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() and found else []
        rows = {(row["arm"], row["seed"]): _rounded(row) for row in (*before, *found) if row["arm"] in order}
        kept = sorted(rows, key=lambda key: (order.index(key[0]), key[1]))
        if found:
            path.write_text("".join(json.dumps(rows[key]) + "\n" for key in kept))
    for name in ("fronts", "downstream", "steps_saved"):
        if (path := out / "figures" / f"{name}.jsonl").is_file():
            (RESULTS / path.name).write_text(path.read_text())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def read(part: str) -> dict[str, list[Row]]:
    """Runs of a part by arm, in the order of the part."""
    path = RESULTS / f"{part}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {arm: found for arm in PARTS[part].arms if (found := [row for row in rows if row["arm"] == arm])}


# --- figures of a run -----------------------------------------------------------------------------------------


def log_ap(row: Row) -> float:
    """Mean loss over all domains after the stream, nats per token: the logarithm of AP."""
    return math.log(row["metrics"]["ap"])


def metric(name: str) -> Callable[[Row], float]:
    """A metric of the loss matrix."""
    return lambda row: float(row["metrics"][name])


def by_seed(rows: Sequence[Row], value: Callable[[Row], float]) -> dict[int, float]:
    """Values by seed."""
    return {row["seed"]: value(row) for row in rows}


def spread(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """Mean and the half width of its 95 % interval over seeds."""
    interval = t_interval(list(values))
    plus = "+" if sign else ""
    mean = f"{statistics.fmean(values):{plus}.{digits}f}"
    return mean if interval is None else f"{mean} ± {(interval.high - interval.low) / 2:.{digits}f}"


def against(arms: Mapping[str, Sequence[Row]], reference: str, value: Callable[[Row], float]) -> dict[str, str]:
    """Mean paired difference to a reference arm and its p-value, corrected (Holm) for the number of arms."""
    base = by_seed(arms[reference], value)
    found = {name: t_test(by_seed(rows, value), base) for name, rows in arms.items() if name != reference}
    known = {name: test[0] for name, test in found.items() if test is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    texts = {reference: ""}
    for name, rows in arms.items():
        if name in corrected:
            mine = by_seed(rows, value)
            difference = statistics.fmean(mine[seed] - base[seed] for seed in mine if seed in base)
            texts[name] = f"{difference:+.3f} (p {corrected[name]:.2g})"
    return texts


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, first column to the left."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)) + "\n"


def seeds(rows: Sequence[Row], value: Callable[[Row], float], digits: int = 1) -> str:
    """Every seed."""
    return ", ".join(f"{value(row):.{digits}f}" for row in rows)


# --- sections -------------------------------------------------------------------------------------------------


def arms_table(part: str, reference: str = "replay") -> str:
    """Arms of a part, best loss first."""
    arms = read(part)
    names = sorted(arms, key=lambda name: statistics.fmean(map(log_ap, arms[name])))
    loss, forgotten = against(arms, reference, log_ap), against(arms, reference, metric("forgetting"))
    rows = [
        [
            f"`{name}`",
            seeds(arms[name], metric("ap")),
            f"{statistics.fmean(map(metric('ap_plus'), arms[name])):.1f}",
            spread([metric("forgetting")(row) for row in arms[name]], 3, sign=True),
            f"{statistics.fmean(map(metric('in_domain'), arms[name])):.3f}",
            f"{statistics.fmean(row['flops'] for row in arms[name]) / 1e12:.3f}",
            f"{arms[name][0]['stage_tokens'] / 1000:.0f}k",
            loss.get(name, ""),
            forgotten.get(name, ""),
        ]
        for name in names
    ]
    return table(
        [
            "arm", "AP, every seed", "AP+", "forgetting", "in-domain", "TFLOP", "tokens a stage",
            f"loss against `{reference}`", f"forgetting against `{reference}`",
        ],
        rows,
    )  # fmt: skip


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> str:
    """Mean paired difference with its p-value, alone where there is one seed."""
    test = t_test(left, right)
    mean = statistics.fmean(left[seed] - right[seed] for seed in sorted(set(left) & set(right)))
    return f"{mean:+.3f} (p {test[0]:.2g})" if test else f"{mean:+.3f}"


def pairs_table(part: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Paired differences between two arms: loss, forgetting, and what is learned of each new domain."""
    arms = read(part)
    rows = []
    for one, other in pairs:
        if one in arms and other in arms:
            values = (log_ap, metric("forgetting"), metric("in_domain"))
            cells = [difference(by_seed(arms[one], value), by_seed(arms[other], value)) for value in values]
            rows.append([f"`{one}` − `{other}`", *cells])
    return table(
        ["nats/token, paired over seeds (p not corrected)", "loss after the stream", "forgetting", "in-domain loss"],
        rows,
    )


def short_table(part: str) -> str:
    """AP, forgetting and in-domain loss by arm."""
    rows = [
        [
            f"`{name}`",
            seeds(rows, metric("ap")),
            spread([log_ap(row) for row in rows]),
            spread([metric("forgetting")(row) for row in rows], 3, sign=True),
            f"{statistics.fmean(map(metric('in_domain'), rows)):.3f}",
            f"{statistics.fmean(row['flops'] for row in rows) / 1e12:.3f}",
        ]
        for name, rows in read(part).items()
    ]
    return table(["arm", "AP, every seed", "loss after the stream", "forgetting", "in-domain", "TFLOP"], rows)


def growth_saving() -> str:
    """FLOPs at which the final size reaches what the grown model has: linear in log FLOPs between three budgets."""
    main, final = read("main"), read("final")
    if not final:
        return ""
    base = by_seed(main["ours"], log_ap)
    points = [by_seed(rows, log_ap) for rows in (main["final-size"], *final.values())]
    flops = [statistics.fmean(row["flops"] for row in rows) for rows in (main["final-size"], *final.values())]
    rows, ratios = [], []
    for seed in sorted(set(base).intersection(*points)):
        target, curve = base[seed], [point[seed] for point in points]
        needed = crossing(flops, curve, target)
        ratios.append(needed / flops[0] if needed else math.nan)
        rows.append(
            [
                str(seed),
                f"{target:.3f}",
                *[f"{value:.3f}" for value in curve],
                f"{ratios[-1]:.2f}" if needed else "beyond",
            ]
        )
    heads = ["seed", "`ours`, loss", *[f"`final-size` at {flop / flops[0]:.2f}x" for flop in flops], "final size needs"]
    return table(heads, rows)


def crossing(flops: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """FLOPs at which a falling curve reaches `target`, linear in the logarithm of FLOPs; None outside of it."""
    for (x0, y0), (x1, y1) in zip(
        zip(flops, losses, strict=True), zip(flops[1:], losses[1:], strict=True), strict=False
    ):
        if y1 <= target <= y0:
            return math.exp(math.log(x0) + (y0 - target) / (y0 - y1) * (math.log(x1) - math.log(x0)))
    return flops[0] if target >= losses[0] else None


def gap_table() -> str:
    """What a growth costs the earlier domain: the rise right after it, the worst, and when it is made up."""
    curves = rises()
    rows = []
    for arm, found in curves.items():
        back = [made_up(curve) for curve in found.values()]
        rows.append([
            f"`{arm}`",
            spread([curve[0] for curve in found.values()], sign=True),
            spread([max(curve.values()) for curve in found.values()], sign=True),
            ", ".join("never" if tokens is None else f"{tokens / 1000:.0f}k" for tokens in back),
            spread([row["nats_per_token"][1][0] for row in read("curves")[arm]]),
            spread([row["nats_per_token"][1][1] for row in read("curves")[arm]]),
        ])  # fmt: skip
    heads = [
        "arm",
        "rise right after",
        "worst rise",
        "tokens until made up, every seed",
        "wiki at the end",
        "news at the end",
    ]
    return table(heads, rows)


def made_up(curve: Mapping[int, float]) -> int | None:
    """Tokens after which a rise stays at or below zero."""
    above = [tokens for tokens, rise in curve.items() if rise > 0]
    return next((tokens for tokens in curve if tokens > max(above, default=-1)), None)


def rises() -> dict[str, dict[int, dict[int, float]]]:
    """Arm -> seed -> tokens since the growth -> rise of wiki above the model before the growth.

    All arms share that model, seed by seed, and the exactly grown one has its loss on every document: its probe
    at token 0 is the level.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    curves = read("curves")
    level = {row["seed"]: _wiki(row)[0] for row in curves.get("exact", ())}
    for arm, rows in curves.items():
        found[arm] = {
            row["seed"]: {tokens: nats - level[row["seed"]] for tokens, nats in _wiki(row).items()} for row in rows
        }
    return found


def _wiki(row: Row) -> dict[int, float]:
    return {tokens: nats for domain, tokens, nats in sorted(row["probes"][1], key=lambda p: p[1]) if domain == "wiki"}


def tested_mean(kind: str) -> Callable[[Row], float]:
    """Mean test loss over the base's domain and those of the stream, of the `released` model or the best `merged`."""
    return lambda row: statistics.fmean(row["tested"][kind].values())


def rise_of_base(kind: str) -> Callable[[Row], float]:
    """Rise of the test loss on the base's own domain, the first that is tested."""
    return lambda row: next(iter(row["tested"][kind].values())) - next(iter(row["tested"]["base"].values()))


def tested_new(row: Row) -> float:
    """Mean test loss of the last model on the stream's domains."""
    return statistics.fmean(list(row["tested"]["released"].values())[1:])


def regime_table(part: str, reference: str) -> str:
    """What is kept and learned on test text, and the best merge of every run; best mean first."""
    arms = {name: rows for name, rows in read(part).items() if "tested" in rows[0]}
    if not arms:
        return ""
    mean = tested_mean("merged")
    difference = against(arms, reference, mean) if reference in arms else {}
    new = list(next(iter(arms.values()))[0]["tested"]["base"])[1:]
    rows = []
    for name in sorted(arms, key=lambda name: statistics.fmean(map(mean, arms[name]))):
        found = arms[name]
        rises = [rise_of_base(kind)(row) for kind in ("released", "merged") for row in found]
        half = len(found)
        rows.append(
            [
                f"`{name}`",
                ", ".join(f"{value:+.3f}" for value in rises[:half]),
                *[f"{statistics.fmean(row['tested']['released'][domain] for row in found):.3f}" for domain in new],
                spread(list(map(tested_mean("released"), found))),
                ", ".join(f"{value:+.3f}" for value in rises[half:]),
                spread(list(map(mean, found))),
                difference.get(name, ""),
                f"{statistics.fmean(row['flops'] for row in found) / 1e12:.3f}",
            ]
        )
    heads = ["arm", "rise on the base's text, every seed", *new, "mean", "rise, best merge", "mean, best merge"]
    return table([*heads, f"against `{reference}`", "TFLOP"], rows)


def by_passes(part: str) -> dict[str, dict[int, list[Row]]]:
    """Kind of arm -> passes over the text -> runs."""
    kinds: dict[str, dict[int, list[Row]]] = {}
    for arm, rows in read(part).items():
        kind, _, passes = arm.rpartition(", ")
        kinds.setdefault(kind, {})[int(passes.split()[0])] = rows
    return kinds


def chosen_passes(kinds: Mapping[str, Mapping[int, Sequence[Row]]]) -> dict[str, list[Row]]:
    """Of every kind and seed the run with the number of passes that validation text chooses."""
    return {
        kind: [min(rows, key=lambda row: row["nats_per_token"][-1][0]) for rows in zip(*found.values(), strict=True)]
        for kind, found in kinds.items()
    }


def passes_tables(part: str, reference: str) -> str:
    """Loss on the new text by number of passes, then every kind with the number that validation text chooses."""
    if not (kinds := by_passes(part)):
        return ""
    heads = ["new text, nats (rise on the base's)", *(f"{passes} passes" for passes in next(iter(kinds.values())))]
    rise = rise_of_base("released")
    losses = [
        [f"`{kind}`", *(
            f"{statistics.fmean(map(tested_new, rows)):.3f} ({statistics.fmean(map(rise, rows)):+.3f})"
            for rows in found.values()
        )]
        for kind, found in kinds.items()
    ]  # fmt: skip
    chosen = chosen_passes(kinds)
    new, kept = (against(chosen, reference, value) for value in (tested_new, rise))
    merged = against(chosen, reference, tested_mean("merged"))
    best = [
        [
            f"`{kind}`",
            ", ".join(row["arm"].rpartition(", ")[2].split()[0] for row in rows),
            spread(list(map(tested_new, rows))),
            new.get(kind, ""),
            spread(list(map(rise, rows)), sign=True),
            kept.get(kind, ""),
            spread(list(map(tested_mean("merged"), rows))),
            merged.get(kind, ""),
        ]
        for kind, rows in chosen.items()
    ]
    against_it = f"against `{reference}`"
    return f"{table(heads, losses)}\n" + table(
        ["passes chosen", "of every seed", "new text", against_it, "rise on the base's", against_it,
         "mean, best merge", against_it],
        best,
    )  # fmt: skip


def settings_table(name: str) -> str:
    """Arms that differ in a setting, each beside the first of its group, on the seeds that all of the group have."""
    known, rows = {**read("no-old-text"), **read("settings")}, []
    values = (tested_new, rise_of_base("released"), tested_mean("released"))
    for group in SETTINGS_TABLES[name]:
        arms = {arm: known[arm] for arm in group if arm in known}
        shared = set.intersection(*({row["seed"] for row in found} for found in arms.values())) if arms else set()
        for arm, runs in arms.items():
            found = [row for row in runs if row["seed"] in shared]
            nats = [statistics.fmean(row["tested"]["released"][domain] for row in found) for domain in ("news", "bio")]
            cells = [*[f"{value:.3f}" for value in nats], spread(list(map(values[1], found)), sign=True)]
            cells += [f"{statistics.fmean(map(values[2], found)):.3f}"]
            for value in values:
                pair = [by_seed([row for row in arms[one] if row["seed"] in shared], value) for one in (arm, group[0])]
                cells.append("" if arm == group[0] else difference(*pair))
            rows.append([f"`{arm}`", str(len(shared)), *cells])
    heads = ["arm", "seeds", "news", "bio", "rise on stories", "mean of three"]
    return table([*heads, "learned, difference", "rise, difference", "mean, difference"], rows)


def adaptation_table() -> str:
    """Loss on the new and the old domain by size of the corpus."""
    rows = []
    for name, found in read("adaptation").items():
        new = [row["nats_per_token"][-1][1] for row in found]
        old = [row["nats_per_token"][-1][0] - row["nats_per_token"][0][0] for row in found]
        tokens = [f"{row['stage_tokens'] / 1000:.0f}k" for row in found[:1]]
        rows.append([f"`{name}`", *tokens, spread(new), spread(old, sign=True), f"{found[0]['flops'] / 1e12:.3f}"])
    return table(["arm", "tokens of cs", "loss on cs", "rise on wiki", "TFLOP with wiki"], rows)


def steps_table() -> str:
    """Steps and FLOPs that a small teacher saves a larger student; nothing where that was not run."""
    path = RESULTS / "steps_saved.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = []
    for row in found:
        nats = [f"{row[key]:.3f}" for key in ("teacher_nats", "plain", "taught")]
        saved = ["none" if row[key] is None else f"{row[key]:.1%}" for key in ("steps_saved", "flops_saved")]
        rows.append(["a cache" if row["cached"] else "beside", str(row["seed"]), *nats, *saved])
    if not rows:
        return ""
    heads = ["teacher", "seed", "teacher, nats", "plain, nats", "taught, nats", "steps saved", "FLOPs saved"]
    return table(heads, rows)


def front_table() -> str:
    """Loss between the model before the last stage and after it."""
    points = fronts()
    rows = []
    for weight, found in points.items():
        new = [row["nats_per_token"]["cs"] for row in found]
        old = [statistics.fmean(v for k, v in row["nats_per_token"].items() if k != "cs") for row in found]
        both = [statistics.fmean(row["nats_per_token"].values()) for row in found]
        rows.append([f"{weight:g}", spread(new), spread(old), spread(both), f"{math.exp(statistics.fmean(both)):.1f}"])
    return table(["weight", "cs (new)", "earlier domains", "all", "AP of the mean"], rows)


def fronts() -> dict[float, list[Row]]:
    """Points of the interpolation by weight."""
    path = RESULTS / "fronts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {
        weight: [row for row in rows if row["weight"] == weight] for weight in sorted({row["weight"] for row in rows})
    }


def downstream_table() -> str:
    """Macro F1 by task and prompt."""
    path = RESULTS / "downstream.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        scores = json.loads(line)
        cells = []
        for prompt in ("none", "right", "wrong"):
            values = [100 * run["macro_f1"] for run in scores["runs"] if run["prompt"] == prompt]
            cells.append(f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
        rows.append([scores["task"], scores["domain"], *cells])
    return table(["task", "domain", "no prompt", "right prompt", "wrong prompt"], rows)


def write_page(out: Path) -> None:
    """docs/results.md with its pictures in docs/figures."""
    pictures = out / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    main = read("main")
    if main:
        order = sorted(main, key=lambda name: statistics.fmean(map(log_ap, main[name])))
        figures.arms_figure({name: main[name] for name in order}, pictures / "study-arms")
    regimes = {"no-old-text": read("no-old-text")}
    regimes |= {part: chosen_passes(by_passes(part)) for part in ("little-text", "more-text")}
    for part, arms in regimes.items():
        planes = {
            name: [(tested_new(row), rise_of_base("released")(row)) for row in rows] for name, rows in arms.items()
        }
        if planes:
            figures.plane_figure(planes, "new text, nats/token", "rise on the base's text", pictures / f"study-{part}")
    if points := fronts():
        figures.front_figure(points, "cs", pictures / "study-front")
    if curves := rises():
        means = {
            arm: {
                tokens: statistics.fmean(curve[tokens] for curve in found.values())
                for tokens in next(iter(found.values()))
            }
            for arm, found in curves.items()
        }
        figures.growth_figure(means, pictures / "study-growth")
    values: dict[str, str] = {
        "MAIN": arms_table("main") if main else "",
        "PAIRS": pairs_table("main", PAIRS) if main else "",
        "GROWTH": growth_saving() if main else "",
        "GAP": gap_table(),
        "TUNING": short_table("tuning"),
        "CONVERGED": short_table("converged"),
        "NO_OLD_TEXT": regime_table("no-old-text", "KI on the new text, alpha .5"),
        "LITTLE_TEXT": passes_tables("little-text", "plain"),
        "MORE_TEXT": passes_tables("more-text", "plain"),
        **{name: settings_table(name) for name in SETTINGS_TABLES},
        "REAL_MODEL": table(real_model.HEADS, rows)
        if (rows := list(real_model.table_rows(read("real-model"))))
        else "",
        "ADAPTATION": adaptation_table(),
        "STEPS": steps_table(),
        "FRONT": front_table(),
        "ORDER": short_table("order"),
        "MASKED": short_table("masked"),
        "DOWNSTREAM": downstream_table(),
    }
    from benchmarks.study.horizon_tables import horizon_page

    values |= horizon_page(pictures)
    text = READING.read_text()
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value.strip())
    (out / "results.md").write_text(text)


PAIRS = (
    ("ours", "ours-uniform"),
    ("ours", "ours-no-inheritance"),
    ("ours", "ours-no-recovery"),
    ("ours", "ours-no-replay"),
    ("ours", "ours-no-growth"),
    ("ours", "final-size"),
    ("ours-no-replay", "sequential"),
    ("ki-new-domain", "sequential"),
    ("ki-new-domain-replay", "replay"),
    ("ours-uniform", "replay"),
    ("logits-kd", "replay"),
    ("elle-exact", "elle-published"),
)
