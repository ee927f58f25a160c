"""Every family file, without naming any of them."""

import ast
import inspect

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lifelong.expand import expand_checkpoint, expand_model, plan_expansion
from lifelong.expand.family import Family, load_family
from lifelong.expand.lazy import stored_shapes
from lifelong.plugins import load_plugin, plugin_names
from tests.expand.models import batch, drawn, gradients, shapes, tiny, twin, wider

FAMILIES = plugin_names("lifelong.expand.families")
STRATEGIES = ("pad", "clone", "pairs")


def one_of(test, many):
    """A family's name as the only value: one family in `many` in the default run."""
    return drawn(test, {family: [(family,)] for family in FAMILIES}, of=many)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_file_is_a_table(family):
    module = load_plugin("lifelong.expand.families", family, kind="family")
    assert isinstance(module.FAMILY, Family)
    assert module.FAMILY.name == family.replace("-", "_")
    logic = (ast.FunctionDef, ast.If, ast.For, ast.While, ast.Lambda, ast.comprehension, ast.IfExp)
    tree = ast.parse(inspect.getsource(module))
    found = [ast.unparse(node).strip() for node in ast.walk(tree) if isinstance(node, logic)]
    assert not found, f"a family file is a table: put {found} into layouts.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_matched_by_exactly_one_entry(family):
    names = stored_shapes(tiny(family))
    assert all(load_family(family.replace("-", "_")).match(name) for name in names)


@pytest.mark.parametrize(
    ("family", "shape"),
    # all axes at once for every family, and one axis alone
    drawn("growth", {family: [(family, shape) for shape in shapes(family)] for family in FAMILIES}, keep=[-1]),
)
def test_growth_keeps_the_function(family, shape):
    _, report = expand_model(tiny(family), **shape)
    assert report.passed
    assert report.max_logit_difference_float64 < 1e-12
    assert report.max_logit_difference_float32 < 1e-4
    if "vocab_size" not in shape:
        assert abs(report.kl_divergence) < 1e-12
        assert report.top1_agreement == 1.0


@pytest.mark.parametrize(
    ("family", "strategy"),
    drawn("strategies", {family: [(family, name) for name in STRATEGIES[1:]] for family in FAMILIES}),
)
def test_every_strategy_is_exact(family, strategy):
    _, report = expand_model(tiny(family), strategy=strategy, **shapes(family)[-1])
    assert report.max_logit_difference_float64 < 1e-12


@pytest.mark.parametrize("family", one_of("checkpoints", 3))
def test_a_grown_checkpoint_loads_without_this_package(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path / "small")
    shape = {axis: size for axis, size in shapes(family)[-1].items() if axis != "vocab_size"}
    report = expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets=shape)
    assert report.passed
    causal = load_family(family.replace("-", "_")).objective == "clm"
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    grown, info = auto.from_pretrained(tmp_path / "grown", output_loading_info=True, dtype=torch.float32)
    assert not any(info.values())
    ids = batch(model)["input_ids"]
    assert torch.allclose(grown.eval()(ids).logits, model(ids).logits, atol=1e-4)
    if causal:
        again = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        assert torch.equal(grown.generate(ids[:1], **again), model.generate(ids[:1], **again))


@pytest.mark.parametrize("family", one_of("heads", 4))
def test_classifiers_and_bare_bodies_grow_where_transformers_has_them(family, tmp_path):
    config = tiny(family).config
    for auto in (transformers.AutoModel, transformers.AutoModelForSequenceClassification):
        if type(config) not in auto._model_mapping:
            continue
        model = auto.from_config(config).eval()
        small, large = (tmp_path / f"{auto.__name__}-{name}" for name in ("small", "large"))
        model.save_pretrained(small)
        assert expand_checkpoint(small, large, targets={"layers": 3, **wider(family)}, verify="full").passed
        _, info = type(model).from_pretrained(large, output_loading_info=True)
        assert not any(info.values())
        body = load_family(family.replace("-", "_")).base + "."
        stored = [load_file(folder / "model.safetensors") for folder in (small, large)]
        prefixed, also = ({name.startswith(body) for name in weights} for weights in stored)
        assert prefixed == also, "tensors of a bare body have no prefix, and no others"


@pytest.mark.parametrize("family", one_of("same shape", 4))
def test_the_same_shape_is_the_same_model(family):
    model = tiny(family)
    grown, _ = expand_model(model, layers=2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), grown.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("family", "strategy", "placement"),
    drawn("alive", {
        family: [(family, name, place) for name in STRATEGIES for place in ("interleaved", "last")]
        for family in FAMILIES
    }),
)  # fmt: skip
def test_every_new_entry_is_alive_after_two_steps(family, strategy, placement):
    """New entries must move under the optimizer: zero gradients for ever would be dead weight."""
    shape = {axis: size for axis, size in shapes(family)[-1].items() if axis not in ("vocab_size", "experts")}
    model = tiny(family).double()
    grown, mapping = twin(model, plan_expansion(model.config, strategy=strategy, placement=placement, **shape))
    parameters = dict(grown.named_parameters())
    reached = gradients(model, batch(model)).keys()  # a head that the loss does not use has none before either
    pending = {
        name: is_new
        for name, is_new in mapping.masks()
        if name in parameters and (not mapping.tensors[name].sources or reached & set(mapping.tensors[name].sources))
    }
    occurred = {name: torch.zeros(len(is_new), dtype=torch.bool) for name, is_new in pending.items()}
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.01)
    for seed in range(3):  # gradients before, after one, and after two steps
        optimizer.zero_grad()
        grown(**batch(grown, count=6, length=48, seed=seed)).loss.backward()
        for name in pending:
            if (gradient := parameters[name].grad) is not None:
                pending[name] &= gradient == 0
                occurred[name] |= (gradient != 0).flatten(1).any(-1) if gradient.dim() > 1 else True
        optimizer.step()
    for name, still in pending.items():
        # rows of tokens and positions that did not occur tell nothing
        dead = still[occurred[name]] if "embed" in name or name.startswith("transformer.w") else still
        assert not dead.any(), f"{name}: {int(dead.sum())} new entries have no gradient after two steps"


@settings(max_examples=8)
@given(data=st.data())
def test_random_feasible_shapes(data):
    name = data.draw(st.sampled_from(FAMILIES))
    family = load_family(name.replace("-", "_"))
    shape = {"intermediate_size": data.draw(st.integers(40, 70)), "layers": data.draw(st.integers(2, 5))}
    if family.placement in ("stream", "embedding"):
        copies = data.draw(st.integers(1, 3))
        shape |= {"hidden_size": 24 * copies, "heads": 4 * copies}
    elif family.fixed_head:
        heads, size = data.draw(st.integers(4, 8)), 2 * data.draw(st.integers(3, 6))
        heads += heads % 2 if "kv_heads" in family.axes else 0
        shape |= {"hidden_size": heads * size, "heads": heads, "head_dim": size}
    else:
        kv, group = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 3))
        low = -(-24 // (kv * group))
        shape |= {
            "hidden_size": kv * group * data.draw(st.integers(low, 50 // (kv * group) + 1)),
            "heads": kv * group,
            "kv_heads": kv,
            "head_dim": 2 * data.draw(st.integers(4, 8)),
        }
    shape = {axis: size for axis, size in shape.items() if axis not in family.refuses}
    strategy = data.draw(st.sampled_from(["pad", "clone", "pairs"]))
    _, report = expand_model(tiny(name), strategy=strategy, seed=data.draw(st.integers(0, 99)), **shape)
    assert report.max_logit_difference_float64 < 1e-12, shape


@pytest.mark.parametrize("family", one_of("twice", 5))
def test_growing_twice_is_growing_once(family):
    """The same function again, and the same old entries: the maps compose."""
    model = tiny(family)
    first = {**wider(family), "layers": 3}
    second = {"intermediate_size": 60, "layers": 4}
    once, _ = expand_model(model, **{**first, **second}, placement=[0, 1])
    middle, _ = expand_model(model, **first, placement=[0])
    twice, report = expand_model(middle, **second, placement=[2])
    assert report.passed
    ids = batch(model)["input_ids"]
    assert torch.allclose(once.double()(ids).logits, twice.double()(ids).logits, atol=1e-4)
    assert plan_expansion(model.config, **{**first, **second}).target == plan_expansion(middle.config, **second).target
