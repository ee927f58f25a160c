"""Growing a model without changing its function."""

from lifelong.expand.apply import ExpansionMap, expand_model, grow
from lifelong.expand.checkpoint import expand_checkpoint, explain_expansion
from lifelong.expand.family import family_of
from lifelong.expand.plan import ExpansionPlan, model_shape, new_config, plan_expansion
from lifelong.expand.verify import true_float64, verify

__all__ = [
    "ExpansionMap", "ExpansionPlan", "expand_checkpoint", "expand_model", "explain_expansion", "family_of", "grow",
    "model_shape", "new_config", "plan_expansion", "true_float64", "verify",
]  # fmt: skip
