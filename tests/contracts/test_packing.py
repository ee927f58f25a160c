"""Every family file, without naming any: packed documents do not see each other, wherever a model meets them."""

import copy

import pytest
import torch
import transformers

from lifelong.errors import InputError
from lifelong.expand.family import load_family
from lifelong.inherit import loss_head, predicted_nats
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.lm import packed
from lifelong.lm.packed import packing_of
from lifelong.plugins import plugin_names
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import StageTrainer
from tests.expand.models import VOCAB, tiny

FAMILIES = plugin_names("lifelong.expand.families")
WINDOW = 3


def windowed(family):
    """A tiny model; layers that can look at a window only have one that is shorter than the documents."""
    model = tiny(family)
    return tiny(family, sliding_window=WINDOW) if hasattr(model.config, "sliding_window") else model


def objective_of(family):
    return load_family(family.replace("-", "_")).objective


def packed_batch(objective):
    """Two rows of 24: documents of 9, 7 and 5 tokens and padding; a single document of 24."""
    ids = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    segments = torch.ones(2, 24, dtype=torch.long)
    segments[0] = torch.tensor([1] * 9 + [2] * 7 + [3] * 5 + [0] * 3)
    positions = torch.arange(24).repeat(2, 1)
    positions[0] = torch.tensor([*range(9), *range(7), *range(5), *range(3)])
    labels = ids.clone()
    labels[positions == 0] = -100
    labels[segments == 0] = -100
    if objective == "mlm":
        labels[:, ::2] = -100
    return {"input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions}


def with_another_first_document(batch):
    """The labels stay: they are what the others are compared by, and inputs are what may leak."""
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 1:8] = 3 + (changed["input_ids"][0, 1:8] + 5) % 40
    return changed


def is_refused(model):
    """Linear attention hands its state from one document of a row to the next; ESM multiplies embeddings by the mask."""
    carries_a_state = "linear_attention" in (getattr(model.config, "layer_types", None) or ())
    return carries_a_state or hasattr(model.config, "token_dropout")


@pytest.fixture(params=FAMILIES)
def case(request):
    objective, model = objective_of(request.param), windowed(request.param)
    if is_refused(model):
        pytest.skip("refused: see test_models_that_cannot_keep_documents_apart_are_refused")
    return model, packed_batch(objective), objective


def test_models_that_cannot_keep_documents_apart_are_refused():
    """Such models grow; they are not trained on packed documents, in which one would see the other."""
    models = {family: windowed(family) for family in FAMILIES}
    refused = [family for family, model in models.items() if is_refused(model)]
    assert len(refused) == 3
    for family in refused:
        with pytest.raises(InputError, match="one would see the other"):
            packing_of(models[family], objective_of(family))


def test_a_change_in_one_document_leaves_the_others_alone(case):
    model, batch, objective = case
    before = predicted_nats(model, batch, objective)
    after = predicted_nats(model, with_another_first_document(batch), objective)
    others = batch["segment_ids"][0] > 1
    assert torch.allclose(after[0][others], before[0][others], atol=1e-5)
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0][~others], before[0][~others], atol=1e-3)


def test_each_document_is_scored_as_by_the_stock_model_alone(case):
    """Its window included: a ready mask replaces the one that the model would have made itself."""
    model, batch, objective = case
    together = predicted_nats(model, batch, objective)
    shift = 1 if objective == "clm" else 0
    for row, part in ((0, slice(0, 9)), (0, slice(9, 16)), (0, slice(16, 21)), (1, slice(0, 24))):
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"][row : row + 1, part]).logits[0].float()
        labels = batch["labels"][row, part][shift:]
        nats = torch.nn.functional.cross_entropy(logits[: len(labels)], labels, reduction="none", ignore_index=-100)
        assert torch.allclose(nats, together[row, part][shift:], atol=1e-4)


def test_no_gradient_passes_between_documents_in_training(case):
    """The embedding rows of tokens that only another document holds get no gradient from this one's loss."""
    model, batch, objective = case
    ids = batch["input_ids"]
    ids[0, :9] = torch.arange(50, 59)
    batch["labels"][0, :9] = -100
    batch["labels"][1] = -100
    model.train()
    embedded = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        embedded.append(output)

    with loss_head(model, objective):
        model.get_input_embeddings().register_forward_hook(keep)
        model(**batch).loss.backward()
    gradient = embedded[0].grad[0].abs().sum(-1)
    assert gradient[:9].max() < 1e-6
    assert gradient[9:15].min() > 1e-6


def test_a_teacher_sees_each_document_alone(case):
    model, batch, objective = case
    teacher = OnlineTeacher(model, objective)
    (before,) = teacher.targets(batch)
    (after,) = teacher.targets(with_another_first_document(batch))
    rows = batch["labels"][:, 1:] != -100 if objective == "clm" else batch["labels"] != -100
    segments = (batch["segment_ids"][:, 1:] if objective == "clm" else batch["segment_ids"])[rows]
    first_row = rows.nonzero()[:, 0] == 0
    others = ~(first_row & (segments == 1))
    difference = (after.hidden_NE - before.hidden_NE).abs().amax(-1)
    assert difference[others].max() < 1e-5
    assert difference[~others].max() > 1e-3


def test_a_teacher_held_as_autocast_rounds_it_says_the_same(case):
    model, batch, objective = case
    held, known = OnlineTeacher(model, objective), OnlineTeacher(copy.deepcopy(model), objective)
    known._hold_rounded = lambda dtype: None
    with torch.autocast("cpu", torch.bfloat16):
        (one,), (two,) = held.targets(batch), known.targets(batch)
    assert torch.equal(one.hidden_NE, two.hidden_NE)
    assert torch.equal(one.weight_VE.bfloat16(), two.weight_VE.bfloat16())
    assert one.bias_V is two.bias_V is None or torch.equal(one.bias_V, two.bias_V)
    assert any(value.dtype == torch.bfloat16 for value in model.parameters())


def test_the_trainer_keeps_them_apart_with_a_teacher_beside_it(case, tmp_path):
    """The whole way through `StageTrainer`: the loss of the other documents does not move, nor does their KL."""
    model, batch, objective = case
    batch["labels"][0, :9] = -100
    arguments = training_arguments({"use_cpu": True}, output_dir=tmp_path, max_steps=1, seed=0)
    losses = []
    for shown in (batch, with_another_first_document(batch)):
        distiller = Distiller(OnlineTeacher(tiny_like(model), objective), make_schedule("constant", alpha=0.5, until=1))
        trainer = StageTrainer(
            model, arguments, TrainingInputs("train", [0], lambda rows: {}, objective, 48, distiller)
        )
        inputs = {**shown, "is_replay": torch.zeros(2, dtype=torch.bool), "domain_ids": torch.zeros(2).long()}
        with loss_head(model, objective), torch.no_grad():
            trainer.state.max_steps = 1
            losses.append(trainer.compute_loss(model.eval(), inputs, num_items_in_batch=10))
    assert losses[0] > 0
    assert torch.allclose(losses[0], losses[1], atol=1e-5)


def tiny_like(model):
    """Another model of the same configuration."""
    torch.manual_seed(3)
    return type(model)(model.config)


def test_the_loss_head_gives_the_stock_loss_and_leaves_no_trace(case):
    model, batch, objective = case
    row = {name: tensor[1:] for name, tensor in batch.items()}
    stock = model(input_ids=row["input_ids"], labels=row["labels"])
    names = list(model.state_dict())
    with loss_head(model, objective):
        ours = model(**row)
        ours.loss.backward()
        assert list(model.state_dict()) == names
        assert model(input_ids=row["input_ids"]).logits.shape == stock.logits.shape
    assert abs(float(ours.loss.detach() - stock.loss.detach())) < 1e-5
    gradient = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    stock.loss.backward()
    assert torch.allclose(gradient, model.get_output_embeddings().weight.grad, atol=1e-5)
    assert "forward" not in model.__dict__
    assert "forward" not in model.get_output_embeddings().__dict__


UNPACKABLE = {
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "expand": 2, "conv_kernel": 2},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16, "context_length": 32},
}


@pytest.mark.parametrize("model_type", UNPACKABLE)
@pytest.mark.filterwarnings("ignore:.*")
def test_a_model_with_a_recurrent_state_is_refused_with_a_reason(model_type):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, vocab_size=VOCAB, **UNPACKABLE[model_type])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=f"model_type '{model_type}'.* cannot be trained on packed documents"):
        packing_of(model, "clm")


def test_a_document_at_a_time_computes_what_whole_rows_do(case, monkeypatch):
    """Whichever models take it; their windows included, and the gradients."""
    model, batch, objective = case
    outputs = []
    for least in (packed.LEAST_TOKENS, 0):
        monkeypatch.setattr(packed, "LEAST_TOKENS", least)
        model.zero_grad()
        with loss_head(model, objective):
            loss = model(**batch).loss
        loss.backward()
        gradients = [value.grad.clone() for value in model.parameters() if value.grad is not None]
        outputs.append((predicted_nats(model, batch, objective), gradients))
    (whole, far), (by_document, near) = outputs
    assert torch.allclose(whole, by_document, atol=1e-5)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(far, near, strict=True))
