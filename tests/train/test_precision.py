"""What Trainer's autocast reaches: accelerate wraps the student's forward alone."""

import copy

import torch

from lifelong.inherit import loss_head
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import StageTrainer
from tests.expand.models import tiny
from tests.train.test_once_a_step import rows


def test_a_teacher_equal_to_its_student_teaches_nothing_in_bfloat16(tmp_path):
    """Both are computed in the precision that trains."""
    model = tiny("llama").eval()
    distiller = Distiller(OnlineTeacher(copy.deepcopy(model), "clm"), make_schedule("constant", alpha=0.5))
    arguments = training_arguments({"use_cpu": True, "bf16": True}, output_dir=tmp_path, max_steps=1, seed=0)
    trainer = StageTrainer(model, arguments, TrainingInputs("train", [0], dict, "clm", 32, distiller))
    trainer.state.max_steps = 1
    wrapped = trainer.accelerator.prepare_model(model)
    with loss_head(model, "clm"), torch.no_grad():
        _, outputs = trainer.compute_loss(wrapped, rows(4), return_outputs=True, num_items_in_batch=torch.tensor(28))
    assert torch.is_autocast_enabled("cpu") is False
    assert float(outputs.kl) == 0.0
    assert float(outputs.ce) > 0
