"""Slow: a recipe of the size small, run whole on the real corpora, gives what it says it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifelong.ledger.history import read_history
from lifelong.metrics import compute_run
from lifelong.pipeline import run_recipe
from lifelong.recipe import load_recipe
from lifelong.report.verdict import check_expectations


@pytest.mark.slow
def test_the_recommended_recipe_gives_what_it_expects(lifelong_data: Path, tmp_path: Path) -> None:
    """About 10 minutes on one core."""
    recipe = load_recipe("small/recommended", ["train.use_cpu=true"])
    assert recipe.expect, "the recipe carries measured values"
    run_recipe(recipe, tmp_path / "run")
    history = read_history(tmp_path / "run")
    checked = check_expectations(history, compute_run(history))
    assert checked
    assert [item for item in checked if not item.met] == []
