"""Classifiers, reward models and bare bodies grow with what they have on top."""

import pytest
import torch
import transformers

from lifelong.errors import ExpansionError, InputError
from lifelong.expand import expand_checkpoint, expand_model
from tests.expand.models import batch, shapes, tiny

CLASSES = {
    "llama": ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"),
    "gpt2": ("ForSequenceClassification", "Model"),
    "bert": (
        "Model", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
        "ForNextSentencePrediction",
    ),
    "roberta": ("Model", "ForSequenceClassification"),
    "modernbert": ("ForSequenceClassification",),
    "modernbert-decoder": ("ForSequenceClassification",),
    "eurobert": ("ForSequenceClassification",),
    "mixtral": ("Model", "ForSequenceClassification"),
    "qwen3-next": ("Model",),
    "esm": ("Model", "ForTokenClassification"),
}  # fmt: skip
CASES = [(family, head) for family, heads in CLASSES.items() for head in heads]
ANSWERS = ("logits", "prediction_logits", "start_logits", "last_hidden_state", "seq_relationship_logits", "end_logits")


def with_head(family, head, *, tied=True):
    config = tiny(family).config
    config.tie_word_embeddings = tied
    config.num_labels = 2 if head == "ForQuestionAnswering" else 3
    stem = type(config).__name__.removesuffix("Config")
    torch.manual_seed(1)
    model = getattr(transformers, stem + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (not name.endswith("bias")))
            else:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize(("family", "head"), CASES)
def test_a_model_grows_with_its_head(tmp_path, family, head):
    model = with_head(family, head)
    model.save_pretrained(tmp_path / "small")
    shape = {axis: size for axis, size in shapes(family)[-1].items() if axis != "experts"}
    report = expand_checkpoint(tmp_path / "small", tmp_path / "grown", targets=shape)
    assert report.passed
    assert not any("left out" in note for note in report.notes)
    grown, info = type(model).from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not any(info.values())
    ids = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(2))
    before, after = model(ids), grown.eval()(ids)
    compared = [name for name in ANSWERS if getattr(before, name, None) is not None]
    assert compared
    for name in compared:
        old, new = getattr(before, name), getattr(after, name)
        assert torch.allclose(new[..., : old.shape[-1]], old, atol=1e-4), name


def test_a_tied_classifier_keeps_its_score(tmp_path):
    model = with_head("llama", "ForSequenceClassification", tied=True)
    model.save_pretrained(tmp_path / "small")
    assert expand_checkpoint(tmp_path / "small", tmp_path / "grown", targets={"hidden_size": 40}).passed


@pytest.mark.parametrize(("name", "message"), [
    ("LlamaForRanking", "transformers has no class 'LlamaForRanking', and what it has beside the clm model would be"),
    ("LlamaForMultipleChoice", "takes several texts at once"),
    ("BertForMultipleChoice", "takes several texts at once"),
])  # fmt: skip
def test_a_head_that_would_be_lost_is_refused(tmp_path, name, message):
    model = tiny("bert" if name.startswith("Bert") else "llama")
    model.save_pretrained(tmp_path / "small")
    file = tmp_path / "small" / "config.json"
    file.write_text(file.read_text().replace(type(model).__name__, name))
    with pytest.raises(ExpansionError, match=message):
        expand_checkpoint(tmp_path / "small", tmp_path / "grown", targets={"layers": 3})


def test_a_classifier_does_not_become_a_mixture(tmp_path):
    with_head("llama", "ForSequenceClassification").save_pretrained(tmp_path / "small")
    with pytest.raises(ExpansionError, match="its head would be lost"):
        expand_checkpoint(tmp_path / "small", tmp_path / "grown", targets={"experts": 4})


def test_a_body_called_a_language_model_is_refused(tmp_path):
    model = with_head("bert", "Model")
    model.save_pretrained(tmp_path / "small")
    file = tmp_path / "small" / "config.json"
    file.write_text(file.read_text().replace("BertModel", "BertForMaskedLM"))
    with pytest.raises(InputError, match=r"lacks 5 parameters of bert: cls.predictions"):
        expand_checkpoint(tmp_path / "small", tmp_path / "grown", targets={"layers": 3})


@pytest.mark.parametrize("strategy", ["pad", "clone"])
def test_contacts_are_read_from_the_attention_of_old_heads(strategy):
    """ESM's regression on all attention maps: what it says of a protein stays, whatever layers and heads are new."""
    model = tiny("esm")
    grown, report = expand_model(model, strategy=strategy, hidden_size=48, heads=8, layers=4)
    assert report.passed
    ids = batch(model)["input_ids"]
    for each in (model, grown.eval()):
        each.set_attn_implementation("eager")
    before, after = (each.esm.predict_contacts(ids, torch.ones_like(ids)) for each in (model, grown))
    assert before.std() > 0
    assert torch.allclose(before, after, atol=1e-6)


def test_a_stored_rotary_table_is_carried_and_keeps_the_head_size(tmp_path):
    """ESM's files hold the table; transformers 5 writes its name with a star, older ones once a layer."""
    model = tiny("esm")
    with torch.no_grad():
        model.esm.rotary_embeddings.inv_freq.copy_(model.esm.rotary_embeddings.inv_freq.half())
    model.save_pretrained(tmp_path / "small")
    expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets={"layers": 3, "hidden_size": 48})
    grown = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "grown")
    assert torch.equal(grown.esm.rotary_embeddings.inv_freq, model.esm.rotary_embeddings.inv_freq)
    with pytest.raises(ExpansionError, match="head_dim: 12: esm with position_embedding_type: rotary keeps the"):
        expand_model(model, hidden_size=48, heads=4)
    assert expand_model(tiny("esm", position_embedding_type="absolute"), hidden_size=48, heads=4)[1].passed
