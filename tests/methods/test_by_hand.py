"""Methods against plain implementations that share nothing with them, and against what the papers promise."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lifelong.errors import InputError
from lifelong.expand import grow, plan_expansion
from lifelong.lm.head import loss_head
from lifelong.methods._importances import Anchor, AnchoredMethod, fisher_information
from lifelong.methods._make import make_methods
from lifelong.methods.a_gem import Plugin as AGem
from lifelong.methods.domain_prompts import with_prompt_ids
from lifelong.methods.ewc import Plugin as Ewc
from lifelong.methods.gem import Plugin as Gem
from lifelong.methods.gem import dual_solution
from lifelong.methods.si import Plugin as Si
from tests.laws.stages import DOMAINS, GROWTH, Run, blocks_of, collator, grown


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("sequential"), growth=None)


def own_rows(context, count):
    """Token ids of the rows that a method is given: each of them once, and of the stage's own domain."""
    rows = [batch["input_ids"][0].tolist() for batch in context.own_batches(count)]
    own = [block.ids.tolist() for block in blocks_of(context.domain)]
    assert all(row in own for row in rows)
    assert len({tuple(row) for row in rows}) == count
    return rows


def plain_loss(model, row):
    """Mean cross-entropy of one row of two documents, by running each document alone."""
    ids = torch.tensor(row)
    first, second = ids[:5], ids[5:]
    nats = [
        torch.nn.functional.cross_entropy(model(part[None]).logits[0, :-1], part[1:], reduction="none")
        for part in (first, second)
    ]
    return torch.cat(nats).mean()


def by_hand_fisher(model, rows):
    """Mean over rows of tokens x squared gradient of the mean loss, one parameter at a time."""
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        model.zero_grad()
        plain_loss(model, row).backward()
        for name, parameter in model.named_parameters():
            fisher[name] += (len(row) - 2) * parameter.grad**2 / len(rows)
    model.zero_grad()
    return fisher


def test_fisher_information_by_hand(run):
    context = run.contexts[-1]
    found = fisher_information(context, 8)
    expected = by_hand_fisher(run.model.eval(), own_rows(context, 8))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-9), name


@pytest.mark.parametrize(("settings", "count"), [({}, 2), ({"mode": "online", "decay": 0.5}, 1)])
def test_ewc_penalty_by_hand(run, settings, count):
    (method,) = make_methods([("ewc", {"strength": 3.0, "samples": 4, **settings})])
    context = run.contexts[-1]
    rows = own_rows(context, 4)
    parameters = dict(run.model.named_parameters())
    anchors = []
    for shift in (0.0, 0.01):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(shift)
        method.end_stage(context)
        anchors.append(({n: p.detach().clone() for n, p in parameters.items()}, by_hand_fisher(run.model, rows)))
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.02)
    if count == 1:
        (_, old), (weights, new) = anchors
        anchors = [(weights, {name: 0.5 * old[name] + new[name] for name in new})]
    expected = sum(
        1.5 * float((fisher[name] * (parameters[name].detach() - weights[name]) ** 2).sum())
        for weights, fisher in anchors
        for name in parameters
    )
    assert len(method.anchors) == count
    assert float(method.loss_term(run.model).detach()) == pytest.approx(expected, rel=1e-4)


def test_ewc_strength_one_estimates_the_rise_of_the_old_loss():
    """On a quadratic loss with the Fisher information as its curvature, the penalty is the rise itself."""
    fisher, best = torch.tensor([4.0, 0.5]), torch.tensor([1.0, -1.0])
    method = AnchoredMethod()
    method.anchors = [Anchor({"weight": best}, {"weight": fisher})]
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.tensor([1.5, 1.0]))
    rise = 0.5 * float((fisher * (model.weight.detach() - best) ** 2).sum())
    assert float(method.loss_term(model).detach()) == pytest.approx(rise)


def test_a_penalty_pulls_as_automatic_differentiation_says():
    """Around two anchors, scaled by what comes in; frozen weights are left alone."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    model[1].bias.requires_grad_(False)
    method = AnchoredMethod(strength=0.7)
    shapes = dict(model.named_parameters())
    method.anchors = [
        Anchor(*({name: torch.rand_like(value) for name, value in shapes.items()} for _ in range(2))) for _ in range(2)
    ]
    (3 * method.loss_term(model)).backward()
    found = {name: value.grad for name, value in shapes.items()}
    model.zero_grad()
    terms = [(a.importances[n] * (p - a.weights[n]) ** 2).sum() for a in method.anchors for n, p in shapes.items()]
    (3 * 0.35 * sum(terms)).backward()
    for name, value in shapes.items():
        assert value.requires_grad == (name != "1.bias")
        torch.testing.assert_close(found[name], value.grad)


def test_importances_and_anchors_grow_with_the_model(run):
    """A move that the map carries costs at the new size what it cost at the old one; new entries cost nothing."""
    method = Ewc(samples=4)
    context = run.contexts[-1]
    method.end_stage(context)
    small = run.model
    larger, mapping = grown(small, GROWTH, 0)
    before = {name: value.clone() for name, value in small.named_parameters()}
    moved = {name: value.detach() + 0.01 * torch.randn_like(value) for name, value in before.items()}
    small.load_state_dict(moved, strict=False)
    cost = float(method.loss_term(small).detach())
    small.load_state_dict({name: value.detach() for name, value in before.items()}, strict=False)
    larger.load_state_dict(mapping.apply_weights(moved), strict=False)
    method.begin_stage(Context(larger, mapping))
    assert float(method.loss_term(larger).detach()) == pytest.approx(cost, rel=1e-4)
    with torch.no_grad():
        for name, is_new in mapping.masks():
            larger.get_parameter(name)[is_new] += 1.0
    assert float(method.loss_term(larger).detach()) == pytest.approx(cost, rel=1e-4)


class Context:
    """The little that `begin_stage` of an anchored method looks at."""

    def __init__(self, model, mapping):
        self.model, self.mapping = model, mapping


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_gem_by_hand(strength):
    model = torch.nn.Linear(3, 1, bias=False)
    method = AGem(strength=strength)
    reference, gradient = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, -1.0, 3.0]])
    method.reference = [reference]
    model.weight.grad = gradient.clone()
    method.edit_gradients(model)
    g, r = gradient.numpy()[0], reference.numpy()[0]
    expected = g - strength * (g @ r) / (r @ r) * r
    assert np.allclose(model.weight.grad.numpy()[0], expected)
    assert (strength == 1.0) == (abs(expected @ r) < 1e-6)
    method.edit_gradients(model)  # what agrees with the memory is left alone
    model.weight.grad = reference.clone()
    method.edit_gradients(model)
    assert torch.equal(model.weight.grad, reference)


def test_gem_solves_the_program_of_the_paper():
    """Against a general solver of the primal: the nearest step that goes against no domain's gradient."""
    generator = np.random.default_rng(0)
    for _ in range(10):
        references, gradient = generator.normal(size=(3, 6)), generator.normal(size=6)
        factors = dual_solution(references @ references.T, references @ gradient)
        step = gradient + factors @ references
        limits = [{"type": "ineq", "fun": lambda x, r=r: r @ x} for r in references]
        best = minimize(lambda x: 0.5 * ((x - gradient) ** 2).sum(), gradient, constraints=limits, method="SLSQP")  # noqa: B023
        assert np.allclose(step, best.x, atol=1e-4)
        assert (references @ step >= -1e-5).all()


def test_gem_with_one_domain_is_a_gem():
    model = torch.nn.Linear(3, 1, bias=False)
    reference, gradient = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, -1.0, 3.0]])
    found = []
    for method in (AGem(), Gem()):
        method.reference, method.references = [reference], [[reference]]
        model.weight.grad = gradient.clone()
        method.edit_gradients(model)
        found.append(model.weight.grad.clone())
    assert torch.allclose(*found, atol=1e-6)


def test_the_importances_of_si_sum_to_the_fall_in_loss():
    """Along a straight way down a quadratic bowl, in small steps of plain gradient descent."""
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    method = Si(damping=0.0)
    curvature = torch.tensor([[4.0, 1.0]])

    def loss():
        return 0.5 * (curvature * model.weight**2).sum()

    context = Context(model, None)
    model.device = torch.device("cpu")
    method.begin_stage(context)
    start, first = model.weight.detach().clone(), float(loss().detach())
    for _ in range(400):
        model.weight.grad = None
        loss().backward()
        method.edit_gradients(model)
        with torch.no_grad():
            model.weight -= 0.002 * model.weight.grad
        method.end_step(model)
    method.end_stage(context)
    fall = first - float(loss().detach())
    (anchor,) = method.anchors
    assert float((anchor.importances["weight"] * (start - anchor.weights["weight"]) ** 2).sum()) / 2 == pytest.approx(
        fall, rel=0.01
    )


def test_pnn_keeps_every_old_bit_through_weight_decay(tmp_path):
    run = Run(tmp_path, [{"name": "pnn"}], train={"weight_decay": 0.5})
    mapping = run.contexts[-1].mapping
    start = dict(run.contexts[0].model.named_parameters())
    grown_start = mapping.apply_weights({name: value.detach() for name, value in start.items()})
    moved = 0
    for name, is_new in mapping.masks():
        assert torch.equal(run.weights[name][~is_new], grown_start[name][~is_new]), name
        moved += int((run.weights[name][is_new] != grown_start[name][is_new]).sum())
    assert moved


def test_freeze_old_trains_the_inserted_blocks_only(tmp_path):
    run = Run(tmp_path, [{"name": "freeze-old"}])
    mapping = run.contexts[-1].mapping
    start = dict(run.contexts[0].model.named_parameters())
    grown_start = mapping.apply_weights({name: value.detach() for name, value in start.items()})
    changed = {name for name, value in run.weights.items() if not torch.equal(value, grown_start[name])}
    assert changed
    assert changed <= {name for name, tensor in mapping.tensors.items() if tensor.inserted}


@pytest.mark.parametrize("name", ["pnn", "freeze-old"])
def test_methods_that_train_new_parameters_require_growth(name, tmp_path):
    growth = None if name == "pnn" else {"intermediate_size": 32}
    with pytest.raises(InputError, match=f"methods.{name}: .*(does not grow|inserts no layer)"):
        Run(tmp_path, [{"name": name}], growth=growth)


def test_average_is_the_mean_of_start_and_end(tmp_path):
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "averaged", [{"name": "average"}])
    mapping, before = plain.contexts[-1].mapping, plain.contexts[0].model
    start = mapping.apply_weights({name: value.detach() for name, value in before.named_parameters()})
    for name, value in averaged.weights.items():
        assert torch.allclose(value, (start[name] + plain.weights[name]) / 2, atol=1e-7), name


def test_lora_starts_at_the_previous_model_and_adds_a_low_rank_update(tmp_path):
    run = Run(tmp_path, [{"name": "lora", "rank": 2}], growth=None)
    (method,) = run.made
    factors = method.factors
    assert {value.shape[0] if "lora_A" in name else value.shape[1] for name, value in factors.items()} == {2}
    assert any(bool(value.any()) for name, value in factors.items() if "lora_B" in name)


def test_a_prompt_follows_the_first_token_of_every_text():
    batch = collator()([{"block": blocks_of("next")[0], "domain_id": 0, "is_replay": False, "mask_key": 0}])
    edited, inserted = with_prompt_ids(batch, torch.tensor([100]), 2)
    assert inserted == 4
    ids = batch["input_ids"][0].tolist()
    assert edited["input_ids"][0].tolist() == [ids[0], 100, 101, *ids[1:5], ids[5], 100, 101, *ids[6:]]
    assert edited["position_ids"][0].tolist() == [*range(7), *range(9)]
    assert edited["segment_ids"][0].tolist() == [1] * 7 + [2] * 9
    assert edited["labels"][0, [0, 1, 2, 7, 8, 9]].tolist() == [-100] * 6
    assert (edited["labels"] != -100).sum() == (batch["labels"] != -100).sum()


def test_prompts_of_both_domains_are_laid_beside_the_model_and_grow_with_it(tmp_path):
    run = Run(tmp_path, [{"name": "domain-prompts", "tokens": 2}])
    prompts = run.made[0].exports()["prompts.safetensors"]
    assert {name: tuple(value.shape) for name, value in prompts.items()} == dict.fromkeys(DOMAINS, (2, 24))


def test_a_grown_prompt_does_what_it_did(tmp_path):
    """In float64 the grown model answers to the grown prompt as the small one did to the small one."""
    from lifelong.expand import true_float64
    from lifelong.methods.domain_prompts import grown_prompt

    run = Run(tmp_path, growth=None)
    small = run.model.double()
    plan = plan_expansion(small.config, **GROWTH)
    larger, mapping, _ = grow(small, plan)
    prompt = torch.randn(2, 16, dtype=torch.float64)
    context = Context(larger, mapping)
    ids = torch.arange(5)[None]
    with true_float64(), torch.no_grad():
        logits = [
            model(inputs_embeds=torch.cat([p[None], model.get_input_embeddings()(ids)], 1)).logits
            for model, p in ((small, prompt), (larger, grown_prompt(prompt, context)))
        ]
    assert torch.allclose(*logits, atol=1e-10)


def test_a_frozen_prompt_stays(tmp_path):
    run = Run(tmp_path, [{"name": "domain-prompts", "trained": False}], growth=None)
    other = Run(tmp_path / "trained", [{"name": "domain-prompts"}], growth=None)
    frozen, learned = (r.made[0].exports()["prompts.safetensors"]["next"] for r in (run, other))
    assert not torch.equal(frozen, learned)
    with loss_head(run.model, "clm"):
        assert "domain_prompts" not in dict(run.model.named_parameters())
