"""EuroBERT: LLaMA's layout, read in both directions; the output embedding stands on the last norm."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="eurobert", model_types=("eurobert",), parameters=gated_decoder(), axes=ROTARY_AXES, objective="mlm"
)
