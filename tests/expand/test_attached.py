"""Everything that hangs on old weights: optimizer state, averages, anchors, adapters, groups, and life in new entries."""

import pytest
import torch

from lifelong.errors import ExpansionError
from lifelong.expand import (
    expand_model,
    expansion_map,
    grow,
    grow_adapter,
    parameter_groups,
    plan_expansion,
    train_only_new,
    true_float64,
)
from tests.expand.models import batch, tiny, twin

WIDER = {"hidden_size": 36, "intermediate_size": 56, "layers": 3}
LEARNING_RATE = 1e-3


def trained(family="llama", steps=40):
    """A model that has learned something, and its Adam."""
    model = tiny(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer, seed=5):
    optimizer.zero_grad()
    loss = model(**batch(model, seed=seed)).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def loss_of(model):
    with torch.no_grad():
        return float(model(**batch(model)).loss)


def test_one_step_with_mapped_moments_goes_on_where_the_old_model_was():
    """Fresh moments make every entry jump by the learning rate at once; mapped ones go on."""
    model, optimizer = trained()
    before = loss_of(model)
    fresh, _ = expand_model(model, **WIDER)
    step(fresh, torch.optim.AdamW(fresh.parameters(), lr=LEARNING_RATE, weight_decay=0.0))
    grown, _, _ = grow(model, plan_expansion(model.config, **WIDER), optimizer=optimizer)
    assert abs(loss_of(grown) - before) < 1e-4
    step(grown, optimizer)
    alone, own = trained()
    step(alone, own)
    jump, continued, usual = (loss_of(other) - before for other in (fresh, grown, alone))
    assert continued == pytest.approx(usual, rel=0.1)
    assert abs(jump - usual) > 4 * abs(continued - usual)


def test_the_optimizer_is_handed_over_whole():
    model, _ = trained(steps=1)
    gains = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}])
    for _ in range(3):
        step(model, optimizer)
    grown, _, _ = grow(model, plan_expansion(model.config, **WIDER), optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in grown.parameters()}
    for group, decay in zip(optimizer.param_groups, (0.1, 0.0), strict=True):
        assert group["weight_decay"] == decay
        assert all((p.dim() > 1) == (decay > 0) for p in group["params"])
    for parameter in held:
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == parameter.shape
        assert state["step"] == 3
        assert (state["exp_avg_sq"] > 0).any()
    step(grown, optimizer)


def test_nothing_is_attached_to_a_buffer():
    """Averages, anchors and moments are of parameters; the map carries the buffer where it is given."""
    model = tiny("glm4_moe")
    mapping = expansion_map(plan_expansion(model.config, hidden_size=36, layers=3), type(model))
    average = {name: parameter.detach() for name, parameter in model.named_parameters()}
    parameters = {name for name, mapped in mapping.tensors.items() if not mapped.buffer}
    assert {name for name in mapping.tensors if name not in parameters} == {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)
    }
    assert mapping.apply_weights(average).keys() == parameters
    assert mapping.apply_gradients(average).keys() == parameters
    assert {name for name, _ in mapping.masks()} == parameters
    assert mapping.apply_weights(dict(model.state_dict())).keys() == mapping.tensors.keys()


def test_an_optimizer_of_another_model_is_refused():
    model = tiny("llama")
    foreign = torch.optim.AdamW(tiny("llama").parameters())
    with pytest.raises(ExpansionError, match="are not the model's"):
        expand_model(model, layers=3, optimizer=foreign)


def test_a_new_second_moment_starts_at_the_mean():
    model, optimizer = trained(steps=5)
    old = {name: optimizer.state[p]["exp_avg_sq"].clone() for name, p in model.named_parameters()}
    grown, mapping, _ = grow(model, plan_expansion(model.config, intermediate_size=56), optimizer=optimizer)
    name = "model.layers.0.mlp.up_proj.weight"
    is_new = dict(mapping.masks())[name]
    second, first = (optimizer.state[grown.get_parameter(name)][key] for key in ("exp_avg_sq", "exp_avg"))
    assert torch.allclose(second[is_new], old[name].mean(), rtol=1e-5)
    assert not first[is_new].any()


def test_an_average_of_weights_and_an_anchor_compute_what_they_did():
    """EMA weights and the anchors of EWC are weights of the old shape: the same map makes them weights of the new."""
    model, _ = trained(steps=3)
    average = {name: 0.7 * p.detach().double() for name, p in model.double().named_parameters()}
    grown, mapping = twin(model, plan_expansion(model.config, **WIDER))
    small, large = tiny("llama").double(), grown
    small.load_state_dict(average, strict=False)
    large.load_state_dict(mapping.apply_weights(average), strict=False)
    tokens = batch(model)["input_ids"]
    with true_float64(), torch.no_grad():
        assert torch.allclose(small(tokens).logits, large(tokens).logits, atol=1e-12)


def test_a_penalty_around_a_moved_anchor_is_the_penalty_of_the_old_model():
    """Importances go by the square of the dual: sum F' (w' - a')^2 = sum F (w - a)^2 for a move that the map carries."""
    model = tiny("llama").double()
    _, mapping = twin(model, plan_expansion(model.config, **WIDER))
    generator = torch.Generator().manual_seed(0)
    anchor = {name: p.detach() for name, p in model.named_parameters()}
    moved = {name: p + torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in anchor.items()}
    fisher = {name: torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in anchor.items()}
    new_anchor, new_moved = mapping.apply_weights(anchor), mapping.apply_weights(moved)
    new_fisher = mapping.apply_gradients(fisher, power=2)
    inserted = {name for name, tensor in mapping.tensors.items() if tensor.inserted}
    old = sum(float((fisher[name] * (moved[name] - anchor[name]) ** 2).sum()) for name in anchor)
    new = sum(
        float((new_fisher[name] * (new_moved[name] - new_anchor[name]) ** 2).sum())
        for name in new_anchor
        if name not in inserted
    )
    assert new == pytest.approx(old, rel=1e-9)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"])
def test_a_low_rank_adapter_moves_with_its_weight(name):
    model = tiny("llama").double()
    generator = torch.Generator().manual_seed(1)
    full = f"model.layers.1.{name}.weight"
    weight = model.get_parameter(full)
    down = torch.randn((3, weight.shape[1]), generator=generator, dtype=torch.float64)
    up = torch.randn((weight.shape[0], 3), generator=generator, dtype=torch.float64)
    plan = plan_expansion(model.config, hidden_size=40, heads=8, kv_heads=4, intermediate_size=56)
    grown, mapping = twin(model, plan)
    new_down, new_up = grow_adapter(down, up, mapping, full)
    with torch.no_grad():
        weight += up @ down
        grown.get_parameter(full).add_(new_up @ new_down)
    tokens = batch(model)["input_ids"]
    with true_float64(), torch.no_grad():
        assert torch.allclose(model(tokens).logits, grown(tokens).logits, atol=1e-12)


def test_only_new_entries_learn():
    model = tiny("llama")
    plan = plan_expansion(model.config, **WIDER)
    grown, mapping, _ = grow(model, plan)
    start = {name: p.detach().clone() for name, p in grown.named_parameters()}
    optimizer = torch.optim.AdamW(grown.parameters(), lr=1e-2, weight_decay=0.0)
    with train_only_new(grown, mapping):
        for seed in range(3):
            step(grown, optimizer, seed=seed)
    moved = {name: (p != start[name]) for name, p in grown.named_parameters()}
    for name, is_new in mapping.masks():
        assert not (moved[name] & ~is_new).any(), name
    assert sum(int(m.sum()) for m in moved.values()) > 0
    optimizer.zero_grad()
    step(grown, optimizer)
    assert any((p != start[name])[~dict(mapping.masks())[name]].any() for name, p in grown.named_parameters())


def test_groups_of_old_and_new_parameters_have_their_own_rates():
    model = tiny("llama")
    grown, mapping, _ = grow(model, plan_expansion(model.config, layers=3, placement=[0]))
    old, new = parameter_groups(grown, mapping, learning_rate=1e-3, new_multiplier=5.0, old_multiplier=0.5)
    assert (old["lr"], new["lr"]) == (5e-4, 5e-3)
    assert {id(p) for p in new["params"]} == {id(p) for p in grown.model.layers[1].parameters()}
    assert len(old["params"]) + len(new["params"]) == len(list(grown.parameters()))
    (only,) = parameter_groups(grown, mapping, learning_rate=1e-3, old_multiplier=0.0)
    assert {id(p) for p in only["params"]} == {id(p) for p in grown.parameters() if p.requires_grad}


@pytest.mark.parametrize("strategy", ["pad", "clone", "pairs"])
def test_new_neurons_become_directions_of_their_own(strategy):
    """Equal halves would stay equal for ever: capacity has to grow, so the rank has to."""
    model = tiny("llama", intermediate_size=8)
    grown, _ = expand_model(model, intermediate_size=16, strategy=strategy)
    name = "model.layers.0.mlp.up_proj.weight"
    rank = lambda weight: int(torch.linalg.matrix_rank(weight.double(), rtol=1e-4))  # noqa: E731
    assert rank(model.get_parameter(name).detach()) == 8
    start = rank(grown.get_parameter(name).detach())
    assert start == {"pad": 16, "clone": 8, "pairs": 12}[strategy]
    optimizer = torch.optim.AdamW(grown.parameters(), lr=LEARNING_RATE)
    for seed in range(2):
        step(grown, optimizer, seed=seed)
    assert rank(grown.get_parameter(name).detach()) == 16
    down = grown.get_parameter("model.layers.0.mlp.down_proj.weight").detach()
    assert rank(down) == 16


def test_clone_pairs_do_not_stay_equal_halves():
    """The control of the test above: with even shares the clones stay copies, and the rank stays."""
    model = tiny("llama", intermediate_size=8)
    grown, _ = expand_model(model, intermediate_size=16, strategy="clone")
    for layer, old in zip(grown.model.layers, model.model.layers, strict=True):
        with torch.no_grad():
            layer.mlp.down_proj.weight.copy_(old.mlp.down_proj.weight.repeat(1, 2) / 2)
    optimizer = torch.optim.AdamW(grown.parameters(), lr=LEARNING_RATE)
    for seed in range(5):
        step(grown, optimizer, seed=seed)
    weight = grown.get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    assert int(torch.linalg.matrix_rank(weight.double(), rtol=1e-4)) == 8
