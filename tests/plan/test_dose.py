"""`plan --probe`: short pieces, a line between them, and one sentence about the budget."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from lifelong.errors import InputError
from lifelong.plan.dose import FORGETTING, LEARNING, Dose, DosePoint, dose_parts, plot, probe_dose
from lifelong.recipe.files import parse_recipe
from tests.support import recipe_data, run_cli, tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory, cards):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("dose") / "base", cards))


def data(cards, base, **changes):
    plain = recipe_data(cards, model={"checkpoint": base}, **changes)
    plain.pop("tokenizer")
    for stage in plain["stages"]:
        stage.pop("expand", None)
    return plain


def dose(points, budgets):
    return Dose(0, "law", "replay share", 8000, 1000, tuple(points), tuple(points), budgets)


def test_the_share_that_keeps_the_budget_lies_on_the_line():
    found = dose([DosePoint(0.05, 1.0, {"wiki": 0.10}), DosePoint(0.3, 0.8, {"wiki": 0.0})], {"wiki": 0.05})
    share = found.dose_within_budget()
    expected = 0.05 + 0.25 * (0.10 - math.log1p(0.05)) / 0.10
    assert share == pytest.approx(expected, abs=0.0026)
    assert f"costs about {1 - (1 - 0.2 * (share - 0.05) / 0.25):.0%} of what law learns" in found.advice


def test_a_budget_that_costs_nothing_and_one_that_cannot_be_kept():
    points = [DosePoint(0.05, 1.0, {"wiki": 0.001}), DosePoint(0.3, 0.8, {"wiki": 0.0})]
    assert "costs nothing that shows" in dose(points, {"wiki": 0.05}).advice
    points = [DosePoint(0.05, 1.0, {"wiki": 0.4}), DosePoint(0.3, 0.8, {"wiki": 0.3})]
    assert f"at 0.3 wiki would still rise by {math.expm1(0.3):.1%}" in dose(points, {"wiki": 0.05}).advice
    assert "did not get better" in dose([DosePoint(0.05, -0.1, {"wiki": 0.0})] * 2, {"wiki": 0.05}).advice


def test_the_plane_shows_every_point_and_the_budget():
    points = [DosePoint(0.05, 1.0, {"wiki": 0.1}), DosePoint(0.3, 0.8, {"wiki": 0.0})]
    drawn = plot(points, {"wiki": 0.05}).splitlines()
    assert any(line.endswith("●0.05") for line in drawn)
    assert drawn[1].index("●0.3") < drawn[-3].index("●0.05")
    assert max(map(len, drawn)) <= 80


def test_pieces_at_two_replay_shares(cards, base):
    found = probe_dose(parse_recipe(data(cards, base)))
    assert (found.stage, found.domain, found.kind) == (1, "farm", "replay share")
    assert [point.dose for point in found.seen] == [0.05, 0.25]
    assert list(found.budgets) == ["sea"]
    console = Console(width=80)
    with console.capture() as said:
        for part in dose_parts(found):
            console.print(part)
    assert "An extrapolation" in said.get()
    ratio = found.tokens / found.piece_tokens
    for seen, carried in zip(found.seen, found.carried, strict=True):
        assert carried.learned == pytest.approx(seen.learned * max(1.0, ratio) ** LEARNING[found.kind])
        assert carried.rises["sea"] == pytest.approx(seen.rises["sea"] * max(1.0, ratio) ** FORGETTING[found.kind])


def test_without_a_memory_the_weights_are_averaged(monkeypatch, capsys, tmp_path, cards, base):
    plain = data(cards, base, watch=[str(cards / "law.yaml")], budget={"law": "3%"})
    plain.pop("replay")
    del plain["stages"][1]
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain))
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "plan", "recipe.yaml", "--probe", "--json") == 0
    found = json.loads(capsys.readouterr().out)["dose"]
    assert (found["stage"], found["domain"], found["kind"]) == (0, "sea", "weight")
    assert [point["dose"] for point in found["seen"]] == [0.25, 0.5, 0.75, 1.0]
    assert found["budgets"] == {"law": 0.03}
    assert found["seen"][-1]["learned"] > found["seen"][0]["learned"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_what_has_nothing_to_lose_is_refused(cards, base):
    with pytest.raises(InputError, match="starts from a checkpoint"):
        probe_dose(parse_recipe(recipe_data(cards)))
    plain = data(cards, base)
    plain.pop("replay")
    with pytest.raises(InputError, match="name general text in `watch:`"):
        probe_dose(parse_recipe(plain))
