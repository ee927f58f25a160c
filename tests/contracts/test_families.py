"""Every family file, without naming any of them."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong.expand import expand_model, new_config
from lifelong.plugins import plugin_names

FAMILIES = plugin_names("lifelong.expand.families")


def tiny(family, *, heads=4, kv_heads=2, layers=2, tied=True):
    """A small model with a large epsilon and random gains and biases: small ones and unit gains hide bugs."""
    torch.manual_seed(0)
    config = new_config(
        family, vocab_size=61, max_positions=64, layers=layers, hidden_size=24, heads=heads, kv_heads=kv_heads,
        head_dim=8, intermediate_size=40, rms_norm_eps=1e-3, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0 if name.endswith("bias") else 1))
            else:
                parameter.mul_(8)
    return model


SHAPES = [
    {"hidden_size": 36},
    {"heads": 6, "kv_heads": 6},
    {"kv_heads": 4},
    {"layers": 5},
    {"hidden_size": 40, "intermediate_size": 60, "heads": 8, "kv_heads": 4, "layers": 3, "vocab_size": 70},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_growth_keeps_the_function_through_save_and_load(family, tied, shape, tmp_path):
    model = tiny(family, tied=tied)
    grown, report = expand_model(model, **shape)
    assert report.passed
    grown.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(20).view(2, 10)
    vocab = model.config.vocab_size
    expected = model.eval()(ids).logits.detach()
    assert torch.allclose(again(ids).logits[..., :vocab], expected, atol=2e-3 * float(expected.abs().max()))
    if "vocab_size" not in shape:
        settings_ = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        assert torch.equal(again.generate(ids[:1], **settings_), model.generate(ids[:1], **settings_))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_shape_is_the_same_model(family):
    model = tiny(family)
    grown, _ = expand_model(model, layers=2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), grown.state_dict().values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_new_entry_is_alive_after_two_steps(family):
    """New entries must move under the optimizer: zero gradients for ever would be dead weight."""
    grown, _ = expand_model(tiny(family).double(), hidden_size=36, intermediate_size=48, heads=6, kv_heads=3, layers=3)
    seen = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in grown.named_parameters()}
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    ids = torch.randint(0, 61, (8, 32), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        grown(input_ids=ids, labels=ids).loss.backward()
        for name, parameter in grown.named_parameters():
            seen[name] |= parameter.grad != 0
        optimizer.step()
    for name, moved in seen.items():
        assert moved.all(), f"{name}: {int((~moved).sum())} entries have no gradient after two steps"


@settings(max_examples=10)
@given(data=st.data())
def test_random_feasible_shapes(data):
    family = data.draw(st.sampled_from(FAMILIES))
    kv, group = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 3))
    shape = {
        "hidden_size": kv * group * data.draw(st.integers(-(-24 // (kv * group)), 50 // (kv * group))),
        "intermediate_size": data.draw(st.integers(40, 70)),
        "heads": kv * group,
        "kv_heads": kv,
        "layers": data.draw(st.integers(2, 5)),
    }
    _, report = expand_model(tiny(family), **shape)
    assert report.passed, shape
