"""The study runs from nothing to its page on small made-up corpora, at equal FLOPs."""

from __future__ import annotations

import gzip
import json
import random
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from benchmarks.study import page, runs
from benchmarks.study.__main__ import main
from benchmarks.study.arms import RECIPES, Arm
from benchmarks.study.budget import arm_recipe, planned_flops, tokens_at
from benchmarks.study.horizon import HORIZON, HORIZONS, LONG_ENDS, STREAM_ENDS
from benchmarks.study.parts import MAIN, PARTS, large
from benchmarks.study.real_model import table_rows
from lifelong.plan import plan_recipe

WORDS = ["".join(random.Random(seed).choices("abcdefghijklmnop", k=1 + seed % 7)) for seed in range(300)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with its tokenizer, and corpora for its five domains."""
    folder = tmp_path_factory.mktemp("study")
    for number, name in enumerate(("wiki", "news", "reviews", "bio", "cs")):
        source = random.Random(number)
        for split, count in (("train", 60), ("valid", 6), ("test", 6)):
            lines = [
                json.dumps({"text": " ".join(source.choices(WORDS[40 * number : 40 * number + 80], k=60))})
                for _ in range(count)
            ]
            path = folder / "data" / "corpora" / f"{name}.{split}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFELONG_DATA", str(folder / "data"))
        patch.setenv("STUDY", str(folder))
        patch.setenv("SMOLLM2", str(folder / "no-such-model"))
        runs.prepare(folder, teachers=False, vocab_size=400)
        yield folder


ARMS = ("sequential", "ours", "ewc", "a-gem", "logits-kd", "elle-published", "ours-no-growth", "final-size")


@pytest.mark.parametrize(
    "name", [ARMS[1], *(pytest.param(name, marks=pytest.mark.slow) for name in ARMS if name != ARMS[1])]
)
def test_every_arm_gets_the_same_training_flops(study: Path, name: str) -> None:
    """The search for tokens ends within half an optimizer step a stage of the budget, for arms of every kind."""
    budget = planned_flops(arm_recipe(Arm("replay"), 40_000, 0))
    arm = Arm(name)
    tokens = tokens_at(arm, budget, 40_000)
    step = abs(planned_flops(arm_recipe(arm, tokens + 1024, 0)) - planned_flops(arm_recipe(arm, tokens, 0)))
    assert abs(planned_flops(arm_recipe(arm, tokens, 0)) - budget) <= step / 2 * 1.01


@pytest.mark.slow
def test_a_part_runs_to_its_figures_and_the_page(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spent FLOPs are the planned ones; the page is made from the kept figures alone."""
    arms = {name: MAIN.arms[name] for name in ("replay", "sequential")}
    changes = ("evaluate.tokens=400", "stages.3.expand=null")
    part = replace(MAIN, arms=arms, tokens=4_000, seeds=(0,), changes=changes)
    tasks = runs.tasks_of("main", part, study)
    for task in tasks:
        figures = runs.run_one(task, study)
        planned = planned_flops(arm_recipe(task.arm, task.tokens, 0, part.changes))
        assert figures["flops"] == pytest.approx(planned, rel=1e-6)
        assert len(figures["nats_per_token"]) == len(figures["domains"]) == 5
    assert not list((study / "runs").glob("main-sequential*")), "run folders that nobody needs are removed"
    again = list(runs.run_all(tasks, study, workers=1))
    assert again == [], "finished runs are not run again"

    monkeypatch.setattr(page, "RESULTS", study / "results")
    page.collect(study)
    page.write_page(study / "docs")
    text = (study / "docs" / "results.md").read_text()
    assert "`sequential`" in text
    assert "{{" not in text
    assert (study / "docs" / "figures" / "study-arms.png").stat().st_size > 5_000


def test_collected_runs_join_those_of_other_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later call that ran one seed replaces that seed and leaves the others where they are."""
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    (tmp_path / "figures").mkdir()
    for seed, flops in ((1, 1.0), (0, 2.0), (1, 3.0)):
        for old in (tmp_path / "figures").iterdir():
            old.unlink()
        row = {"part": "main", "arm": "replay", "seed": seed, "flops": flops}
        (tmp_path / "figures" / f"main-replay-{seed}.json").write_text(json.dumps(row))
        page.collect(tmp_path)
    kept = [json.loads(line) for line in (tmp_path / "results" / "main.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["flops"]) for row in kept] == [(0, 2.0), (1, 3.0)]


def test_every_arm_of_every_part_is_a_recipe(study: Path) -> None:
    """Names in the parts lead to files, and their changes to keys that exist; the large size changes no arm's kind."""
    for part in PARTS.values():
        for arm in part.arms.values():
            arm_recipe(arm, 10_000, 0, part.changes)
    files = {path.stem for path in RECIPES.glob("*.yaml")}
    used = {arm.recipe for part in PARTS.values() for arm in part.arms.values()} | {"teacher"}
    assert used == files
    grows = {
        arm.recipe: [i for i, stage in enumerate(arm_recipe(arm, 1, 0).stages) if stage.expand]
        for arm in MAIN.arms.values()
    }
    scaled = large(MAIN, grows, 1_000_000)
    for name, arm in scaled.arms.items():
        small, big = arm_recipe(MAIN.arms[name], 1, 0), arm_recipe(arm, 1, 0, scaled.changes)
        assert [bool(stage.expand) for stage in small.stages] == [bool(stage.expand) for stage in big.stages]
        assert big.model.hidden_size == (768 if name == "final-size" else 512)


@pytest.mark.parametrize(
    ("name", "ends"), [("unknown-horizon", HORIZONS), ("horizon-long", LONG_ENDS), ("horizon-stream", STREAM_ENDS)]
)
def test_pieces_of_every_arm_end_at_the_horizons(study: Path, name: str, ends: tuple[float, ...]) -> None:
    """What a token costs each size is what the plan says, so that arms are read at equal FLOPs, to a step a piece."""
    part = HORIZON[name]
    for arm in part.arms.values():
        recipe = arm_recipe(arm, part.tokens, 0, (*part.changes, "tokenizer={train: {kind: bpe, vocab_size: 512}}"))
        spent = list(accumulate(stage.flops for stage in plan_recipe(recipe).stages))
        assert spent == pytest.approx([end * 1e12 for end in ends], rel=4e-3)


def test_an_arm_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run for it, and the nearest name is offered."""
    monkeypatch.setattr(sys, "argv", ["study", "--part", "horizon-long", "--only", "mid", "grow twce"])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert "'grow twce' is no arm of horizon-long; did you mean 'grow twice'?" in capsys.readouterr().err


def test_a_real_model_has_a_row_for_every_seed() -> None:
    """The base stands once, and rises are against it whichever run measured it."""
    chat = {"stops": [3, 4]}
    base, moved = (dict.fromkeys(("wiki", "code", "news", "legal", "bio", "cs"), value) for value in (3.0, 3.5))
    rows = {
        "sequential": [
            {
                "seed": seed,
                "flops": 1e12,
                "tested": {kind: {"nats": nats, "chat": chat} for kind, nats in found.items()},
            }
            for seed, found in enumerate(({"base": base, "released": moved}, {"released": moved}))
        ]
    }
    table = list(table_rows(rows))
    assert [row[0] for row in table] == ["the base", "`sequential`, seed 0", "`sequential`, seed 1"]
    assert [row[1] for row in table] == ["3.000", "+0.500", "+0.500"]
