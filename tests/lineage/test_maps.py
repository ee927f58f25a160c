"""Earlier stages at the newest size: the function is kept, and what is attached moves along."""

import pytest
import torch
import transformers

from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.lineage.maps import carry_importances, carry_weights, maps_since, stage_at_newest_size
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from tests.support import WORDS, recipe_data, write_domain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three stages, of which the second and the third grow; every trace of training removed."""
    folder = tmp_path_factory.mktemp("lineage")
    for name in WORDS:
        write_domain(folder, name, documents=20)
    data = recipe_data(folder)
    data["stages"].append(
        {"domain": str(folder / "law.yaml"), "tokens": 1000, "expand": {"layers": 5, "intermediate_size": 56}}
    )
    for section in data["stages"]:
        section["tokens"] = 1000
    run_recipe(parse_recipe(data), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("stage", [0, "01-farm", 2])
def test_a_stage_at_the_newest_size_computes_what_it_computed(run, stage):
    brought = stage_at_newest_size(run, stage, dtype=torch.float64)
    name = {0: "00-sea", 2: "02-law"}.get(stage, stage)
    original = transformers.AutoModelForCausalLM.from_pretrained(run / "stages" / name / "model", dtype=torch.float64)
    newest = transformers.AutoConfig.from_pretrained(run / "stages/02-law/model")
    assert brought.config.hidden_size == newest.hidden_size == 36
    assert brought.config.num_hidden_layers == newest.num_hidden_layers == 5
    ids = torch.arange(24)[None] * 7 % 300
    with torch.no_grad():
        difference = (brought(ids).logits - original.eval()(ids).logits).abs().max()
    # rotary tables stay in float32 in a plain float64 model
    assert difference < 1e-5


def test_it_has_the_parameters_of_the_newest_model_and_can_be_interpolated_with_it(run):
    old, new = stage_at_newest_size(run, 0), stage_at_newest_size(run, 2)
    assert {n: p.shape for n, p in old.named_parameters()} == {n: p.shape for n, p in new.named_parameters()}
    assert all(p.dtype == torch.float32 for p in old.parameters())
    middle = {name: torch.lerp(value, new.state_dict()[name], 0.5) for name, value in old.state_dict().items()}
    new.load_state_dict(middle)
    assert torch.isfinite(new(torch.arange(8)[None]).logits).all()


def test_anchors_and_importances_are_carried_by_the_same_maps(run):
    maps = maps_since(run, 0)
    assert len(maps) == 2
    assert maps_since(run, "01-farm")[0].to_json() == maps[1].to_json()
    assert maps_since(run, 2) == []
    start = transformers.AutoModelForCausalLM.from_pretrained(run / "stages/00-sea/model")
    weights = {name: value.detach() for name, value in start.named_parameters()}
    anchors = carry_weights(maps, weights)
    model = stage_at_newest_size(run, 0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(anchors[name], value, rtol=0, atol=0)
    fisher = carry_importances(maps, {name: torch.ones_like(value) for name, value in weights.items()})
    assert {name: value.shape for name, value in fisher.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert all((value >= 0).all() for value in fisher.values())


def test_unknown_stages_and_damaged_files_are_reported(run, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        maps_since(tmp_path, 0)
    with pytest.raises(UnknownNameError, match="no committed stage '01-fram'; did you mean '01-farm'"):
        stage_at_newest_size(run, "01-fram")
    with pytest.raises(UnknownNameError, match="no committed stage 3"):
        stage_at_newest_size(run, 3)
    path = run / "stages/01-farm/expansion.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2", 1))
    try:
        with pytest.raises(CorruptionError, match=r"stages/01-farm/expansion.json: its content differs from what was"):
            stage_at_newest_size(run, 0)
    finally:
        path.write_bytes(content)
