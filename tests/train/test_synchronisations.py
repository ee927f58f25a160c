"""A step does not ask a device for numbers: each look waits for everything that is still to be computed."""

import copy
import traceback

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from lifelong.inherit import loss_head
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, fill_cache
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.sparse import TauSampler, scheme_to_json
from lifelong.inherit.teachers._weighted import MixtureTeacher, weights_by_domain
from lifelong.inherit.teachers.cache import CachedTeacher
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.inherit.write_cache import block_probabilities
from lifelong.lm import packed
from lifelong.lm.batch import KnownBatch, WithHostArrays, known_batch
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import StageTrainer
from tests.expand.models import tiny

LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "equal"}
TEACHING = ("none", "all", "replay", "Bernoulli", "dynamic", "cache", "mixture")


class Looks(TorchDispatchMode):
    """Operations whose result the host has to know, and copies to it, by the line that asks."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.places = []
        for name in ("cpu", "tolist", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._noted(getattr(torch.Tensor, name)))

    def _noted(self, method):
        def noted(tensor, *given, **named):
            self._note()
            return method(tensor, *given, **named)

        return noted

    def _note(self):
        lines = [line for line in traceback.extract_stack() if "/tests/" not in line.filename]
        ours = [line for line in lines if "/lifelong/" in line.filename or "/transformers/" in line.filename]
        self.places.append(f"{ours[-1].filename.rpartition('/')[2]}: {ours[-1].line}" if ours else "autograd")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if name in LOOKS or by_mask:
            self._note()
        return func(*args, **(kwargs or {}))


def packed_batch():
    ids = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[1] * 9 + [2] * 15, [1] * 20 + [0] * 4])
    positions = torch.tensor([[*range(9), *range(15)], [*range(20), *range(4)]])
    labels = ids.masked_fill((positions == 0) | (segments == 0), -100)
    batch = {"input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions}
    return {**batch, "is_replay": torch.tensor([False, True]), "domain_ids": torch.tensor([1, 0])}


def collated():
    """As a collator of a `StageTrainer` gives it."""
    return WithHostArrays(lambda batch: batch)(packed_batch())


def distiller_of(teaching, model, folder):
    torch.manual_seed(3)
    models = [type(model)(model.config).eval() for _ in range(2)]
    teacher, settings, schedule = OnlineTeacher(models[0], "clm"), {}, "constant"
    if teaching == "replay":
        settings["on"] = "replay"
    elif teaching == "Bernoulli":
        settings |= {"bernoulli": True, "seed": 2}
    elif teaching == "dynamic":
        schedule = "dynamic"
    elif teaching == "mixture":
        table = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
        teacher = MixtureTeacher([OnlineTeacher(each, "clm") for each in models], weights_by_domain(table), "clm")
    elif teaching == "cache":
        about = CacheSettings(scheme_to_json(TauSampler()), 1.0, model.config.vocab_size, "t", "m", "clm", 24)
        writer = CacheWriter(folder / "targets", about)
        with torch.no_grad():
            fill_cache(writer, [packed_batch()], lambda part: block_probabilities(teacher, part, 1.0))
        stored = TargetCache(folder / "targets")
        teacher = CachedTeacher(stored, tokenizer="t", temperature=1.0, objective="clm", sequence_length=24)
    return models, Distiller(teacher, make_schedule(schedule, alpha=0.5), **settings)


def trainer_of(teaching, folder):
    model = tiny("llama").train()
    models, distiller = ([], None) if teaching == "none" else distiller_of(teaching, model, folder)
    arguments = training_arguments({"use_cpu": True}, output_dir=folder, max_steps=1, seed=0)
    phase = TrainingInputs(
        "train", [packed_batch()], lambda rows: rows[0], "clm", 48, distiller, domains=("far", "near")
    )
    trainer = StageTrainer(model, arguments, phase)
    trainer.state.max_steps = 1
    return trainer, [model, *models]


@pytest.mark.parametrize(("teaching", "most"), [("none", 1), ("all", 2), ("replay", 2), ("cache", 1)])
def test_only_transformers_looks_at_the_device(teaching, most, tmp_path, monkeypatch):
    """Once in the forward of each model, to find packed rows; Trainer's own step with the same model looks three times.

    The look at the gradient that flows in is of the CPU alone.
    """
    trainer, models = trainer_of(teaching, tmp_path)
    with loss_head(models[0], "clm"):
        first, second = collated(), collated()
        trainer.compute_loss(models[0], first, num_items_in_batch=torch.tensor(40))
        with monkeypatch.context() as patch, Looks(patch) as looks:
            trainer.compute_loss(models[0], second, num_items_in_batch=torch.tensor(40)).backward()
    places = [place for place in looks.places if "upstream" not in place]
    assert len(places) <= most, places
    trainer.reduce_counters()
    assert trainer.counter.replay_tokens == 2 * 20
    assert trainer.curve.replayed == {"far": 2 * 20}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("teaching", TEACHING[:-1])
def test_nothing_is_asked_of_a_gpu(teaching, flat, tmp_path, monkeypatch):
    """On tensors without numbers that say they lie on one: a look is an error.

    Not with a mixture, whose weights on the host have none here either. With masks of our own, or flat for
    FlashAttention, transformers does not look.
    """
    trainer, models = trainer_of(teaching, tmp_path)
    for model in models:
        if flat:
            monkeypatch.setitem(
                AttentionInterface._global_mapping,
                "flash_attention_2",
                lambda module, query, key, value, mask, **_: (query.transpose(1, 2), None),
            )
            model.config._attn_implementation_internal = "flash_attention_2"
        packed._found[model] = {"sdpa": "mask", "flash_attention_2": "flat"}
    numbers = FakeTensorMode(allow_non_fake_inputs=True)
    batch = collated()
    with numbers, loss_head(models[0], "clm"):
        for model in models:
            model.to("cuda")
        given = {
            name: numbers.from_tensor(value).to("cuda") if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        items = torch.ones((), device="cuda")
        assert trainer.compute_loss(models[0], given, num_items_in_batch=items).device.type == "cuda"


@pytest.mark.parametrize("teaching", TEACHING)
def test_what_the_host_knows_changes_no_bit(teaching, tmp_path):
    """Against a batch of tensors alone, which are asked."""
    found = []
    for number, batch in enumerate((collated(), packed_batch())):
        trainer, models = trainer_of(teaching, tmp_path / str(number))
        with loss_head(models[0], "clm"):
            loss = trainer.compute_loss(models[0], batch, num_items_in_batch=torch.tensor(40))
            loss.backward()
        found.append([loss.detach(), *(value.grad for value in models[0].parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_teacher_computes_in_the_precision_of_its_student(tmp_path):
    """Trainer's autocast is inside the student's forward: a teacher equal to its student has nothing to teach."""
    model = tiny("llama").train()
    teacher = OnlineTeacher(copy.deepcopy(model), "clm")
    arguments = training_arguments({"use_cpu": True, "bf16": True}, output_dir=tmp_path, max_steps=1, seed=0)
    distiller = Distiller(teacher, make_schedule("constant", alpha=0.5))
    phase = TrainingInputs("train", [0], lambda rows: rows[0], "clm", 48, distiller)
    trainer = StageTrainer(model, arguments, phase)
    trainer.state.max_steps = 1
    with loss_head(model, "clm"):
        prepared = trainer.accelerator.prepare_model(model)
        _, outputs = trainer.compute_loss(prepared, collated(), True, torch.tensor(40))
    assert float(outputs.kl) == 0
    assert teacher.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32


def test_the_arrays_arrive_with_the_batch(tmp_path):
    """Through the data loader, and what moves a batch to its device."""
    trainer, _ = trainer_of("none", tmp_path)
    batch = known_batch(trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
    assert isinstance(batch, KnownBatch)
    assert set(batch) == set(packed_batch()) == set(batch.on_host.arrays)
