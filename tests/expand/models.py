"""Small models of any family, built from its table: large epsilon, random gains and biases."""

import zlib

import pytest
import torch

from lifelong.expand import expansion_map, new_config, true_float64
from lifelong.expand.apply import grown_class
from lifelong.expand.family import load_family
from lifelong.expand.lazy import model_class_of, stored_tensors

VOCAB = 61


def drawn(test, cases, *, of=1, keep=()):
    """Cases of a test in the default run: one in `of` of every family's, or of the families where each has one.

    The draw goes by the names of test and family, so that it is the same in every run and every test draws others; the
    rest is `slow`. Cases whose place among those of their family is in `keep` (-1: the last) are always in.

    Args:
        test: name of the test.
        cases: by family, each the values of one case.
        of: families of which one is drawn, where a family has one case.
        keep: places of cases that the default run has anyway.
    """
    found = []
    for number, (family, own) in enumerate(sorted(cases.items())):
        chosen = {zlib.crc32(f"{test} {family}".encode()) % len(own)} | {place % len(own) for place in keep}
        if len(own) == 1 and (number + zlib.crc32(test.encode())) % of:
            chosen = set()
        found += [
            pytest.param(*values, id="-".join(map(str, values)), marks=[] if place in chosen else [pytest.mark.slow])
            for place, values in enumerate(own)
        ]
    return found


EPSILON_KEYS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
EXTRA = {
    "smollm3": {"no_rope_layers": [1, 0]},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "cwm": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6},
    "modernbert_decoder": {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 12},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "qwen3_5": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "esm": {"token_dropout": True, "mask_token_id": 4},
    "gemma4": {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6,
        "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    },
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
}  # fmt: skip
"""What makes small models of a family treat layers differently, as large ones do."""


def tiny(family_name, **settings):
    """A small epsilon and unit gains hide bugs, so here are neither."""
    family = load_family(family_name.replace("-", "_"))
    sizes = {"layers": 2, "hidden_size": 24, "heads": 4, "intermediate_size": 40}
    if not family.fixed_head:
        sizes |= {"kv_heads": 2, "head_dim": 8}
    elif "kv_heads" in family.axes:
        sizes |= {"kv_heads": 2}
    ids = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos"))}
    if family.objective == "mlm":
        ids |= {"cls_token_id": 1, "sep_token_id": 2}
    extra = EXTRA.get(family.name, {}) if "layers" not in settings else {}
    config = new_config(family.name, vocab_size=VOCAB, max_positions=64, **{**sizes, **ids, **extra, **settings})
    for key in EPSILON_KEYS:
        if getattr(config, key, None) is not None:
            setattr(config, key, 1e-3)
    config._experts_implementation = "eager"  # the grouped kernel takes no float64 and no odd sizes
    if getattr(config, "activation_function", None) == "relu":
        config.activation_function = "gelu"  # an old neuron that never fires says nothing about growth
    if getattr(config, "hidden_act", None) == "relu2":
        config.hidden_act = "gelu"
    torch.manual_seed(0)
    model = model_class_of(config, family.objective)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 0 if name.endswith("bias") or family.gain_offset else 1
                parameter.copy_(torch.randn_like(parameter) * 0.3 + centre)
            else:
                parameter.mul_(8)
        for name, buffer in model.named_buffers():
            if name.endswith(("bias", "layer_scalar")):  # of the choice of experts; what follows a layer
                buffer.add_(torch.randn_like(buffer) * 0.03)
    return model.eval()


def batch(model, count=2, length=16, seed=5):
    """Random tokens and labels for a loss."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (count, length), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


def wider(family_name):
    """A hidden size (and heads, where they hang on it) that the family can reach exactly; the least round one."""
    family = load_family(family_name.replace("-", "_"))
    if family.placement in ("stream", "embedding"):
        return {"hidden_size": 48}
    if "kv_heads" in family.axes and family.fixed_head:
        return {"hidden_size": 36, "heads": 6}
    return {"hidden_size": 42, "heads": 7} if family.fixed_head else {"hidden_size": 36}


def shapes(family_name):
    """Growths of one axis each, and of all together."""
    family = load_family(family_name.replace("-", "_"))
    found = [wider(family_name), {"intermediate_size": 53}, {"layers": 5}, {"vocab_size": 70, "positions": 80}]
    if family.fixed_head:
        size = 48
        together = {"hidden_size": size, "heads": 8 if "head_dim" in family.axis_requires else 4}
        found += [together]
    else:
        found += [{"heads": 6, "kv_heads": 3}, {"kv_heads": 4}, {"head_dim": 16}, {"head_dim": 10}]
        together = {"hidden_size": 40, "heads": 8, "kv_heads": 4, "head_dim": 12}
    if family.experts_family or "experts" in family.axes:
        found.append({"experts": 8})
        together["experts"] = 8
    found += [{**together, "layers": 3, "intermediate_size": 56, "vocab_size": 70}]
    return [kept for shape in found if (kept := {a: n for a, n in shape.items() if a not in family.refuses})]


def twin(model, plan):
    """The grown model without its verification (which other tests are about), and the map."""
    mapping = expansion_map(plan, type(model))
    plan.target_config._experts_implementation = "eager"
    grown = grown_class(plan, type(model))(plan.target_config).to(next(model.parameters()).dtype)
    grown.load_state_dict(mapping.apply_weights(stored_tensors(model)), strict=False)
    grown.tie_weights()
    return grown.eval(), mapping


def gradients(model, batch):
    """Gradients of the loss in true float64, by parameter name."""
    model.zero_grad()
    with true_float64():
        model(**batch).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
