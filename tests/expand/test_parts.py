"""What is more than a parameter of a decoder: factors on layers, layers of several kinds, parts of larger models."""

import json

import pytest
import torch
import transformers

from lifelong.errors import ExpansionError
from lifelong.expand import expand_checkpoint, expand_model, explain_expansion, plan_expansion
from tests.expand.models import batch, tiny


def test_factors_on_layers_are_one_where_layers_are_inserted():
    model = tiny("gemma4")
    grown, _ = expand_model(model, layers=4)
    scalars = torch.cat([layer.layer_scalar for layer in grown.model.layers])
    assert torch.equal(scalars[1::2], torch.ones(2))
    assert torch.equal(scalars[::2], torch.cat([layer.layer_scalar for layer in model.model.layers]))
    assert [layer.self_attn.head_dim for layer in grown.model.layers] == [8, 8, 16, 16]


def test_an_axis_that_a_family_keeps_is_refused_with_the_reason():
    with pytest.raises(ExpansionError, match="heads: gemma4 keeps its 4: local and global layers have heads of diff"):
        plan_expansion(tiny("gemma4").config, heads=6)


@pytest.mark.parametrize("key", ["num_kv_shared_layers", "hidden_size_per_layer_input", "enable_moe_block"])
def test_kinds_of_gemma4_that_are_not_covered_are_named(key):
    config = tiny("gemma4").config
    setattr(config, key, type(getattr(config, key))(1))
    with pytest.raises(ExpansionError, match=f"gemma4 with {key}: .* is not covered"):
        plan_expansion(config, layers=4)


@pytest.mark.parametrize("prefix", ["as saved", "model.language_model."])
def test_the_text_part_of_a_multimodal_checkpoint_grows(tmp_path, prefix):
    text = tiny("gemma3").config.to_dict()
    seen = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**seen, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        image_token_index=60,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    folder, out = tmp_path / "small", tmp_path / "grown"
    model.save_pretrained(folder, save_original_format=prefix == "as saved")
    (folder / "preprocessor_config.json").write_text("{}")
    report = expand_checkpoint(folder, out, targets={"layers": 3, "hidden_size": 32})
    assert "the text part of a gemma3 checkpoint" in explain_expansion(folder, {"layers": 3})
    assert any("tensors of model.multi_modal_projector, model.vision_tower" in note for note in report.notes)
    assert not (out / "preprocessor_config.json").exists()
    assert json.loads((out / "config.json").read_text())["model_type"] == "gemma3_text"
    grown = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = batch(tiny("gemma3"))["input_ids"] % 59
    assert torch.allclose(grown(ids).logits, model(input_ids=ids).logits, atol=1e-4)
