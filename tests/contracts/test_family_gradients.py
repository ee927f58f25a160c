"""What is attached to gradients, for every family file, without naming any of them."""

import pytest
import torch

from lifelong.expand import plan_expansion
from lifelong.expand.family import load_family
from lifelong.plugins import plugin_names
from tests.expand.models import batch, drawn, gradients, shapes, tiny, twin, wider

FAMILIES = plugin_names("lifelong.expand.families")
KEPT = ("vocab_size", "positions")  # a larger softmax has other gradients


def without(shape, *axes):
    return {axis: size for axis, size in shape.items() if axis not in axes}


CASES = {
    family: [
        (family, strategy, shape)
        for strategy, chosen in (
            ("pad", shapes(family)),
            ("clone", shapes(family)[-1:]),
            ("pairs", shapes(family)[-1:]),
        )
        for shape in (without(shape, *KEPT) for shape in chosen)
        if shape
    ]
    for family in FAMILIES
}


@pytest.mark.parametrize(("family", "strategy", "shape"), drawn("adjoint", CASES))
def test_the_adjoint_of_the_map_brings_true_gradients_back(family, strategy, shape):
    """Where a linear map A keeps the function for all weights, the chain rule says A^T g' = g: nothing is lost."""
    model = tiny(family).double()
    grown, mapping = twin(model, plan_expansion(model.config, strategy=strategy, **shape))
    tokens = batch(model)
    old, new = gradients(model, tokens), gradients(grown, tokens)
    weights = {
        name: value.detach().clone().requires_grad_() for name, value in model.named_parameters(remove_duplicate=False)
    }
    image = mapping.apply_weights(weights)
    sum((image[name] * new[name]).sum() for name in mapping.tensors if name in new).backward()
    largest = max(float(gradient.abs().max()) for gradient in old.values())
    for name, gradient in old.items():
        assert torch.allclose(weights[name].grad, gradient, rtol=1e-9, atol=1e-11 * largest), name


@pytest.mark.parametrize("family", drawn("moments", {family: [(family,)] for family in FAMILIES}, of=3))
def test_moments_are_the_moments_of_the_grown_model(family):
    """Without copies the dual map gives the grown model's own gradients, on all old entries.

    LayerNorm subtracts the mean over all channels; what random readers send back through the new ones shifts the
    gradients of the old ones together, by a few per cent. No map of the old gradients can know that. Nor what comes
    back through a norm over all heads: heads are not grown where there is one.
    """
    table = load_family(family.replace("-", "_"))
    model = tiny(family).double()
    copies = table.placement in ("stream", "embedding")
    shape = {"intermediate_size": 53} if copies else {**wider(family), "intermediate_size": 53}
    if table.head_norm == "full":
        shape = {"intermediate_size": 53}
    if table.placement == "pre":
        shape["layers"] = 3
    grown, mapping = twin(model, plan_expansion(model.config, **shape))
    tokens = batch(model, count=4, length=32)
    old, new = gradients(model, tokens), gradients(grown, tokens)
    made = mapping.apply_gradients(old)
    squared = mapping.apply_gradients({name: gradient**2 for name, gradient in old.items()}, power=2, fill="mean")
    tolerance = 0.1 if table.norm == "layer" and not copies else 1e-9
    largest = max(float(gradient.abs().max()) for gradient in new.values())
    for name, is_new in mapping.masks():
        kept = ~is_new
        if name not in new or not kept.any():
            continue
        true = new[name][kept]
        floor = max(float(true.abs().max()), 1e-6 * largest)
        assert (made[name][kept] - true).abs().max() <= tolerance * floor, name
        assert (squared[name][kept] - true**2).abs().max() <= 2 * tolerance * floor**2, name
        fresh = squared[name][is_new]
        assert torch.equal(fresh, fresh[:1].expand_as(fresh))
