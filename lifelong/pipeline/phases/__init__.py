"""Phases of a stage, in order; a new phase is one file and one word here."""

from lifelong.pipeline.phases.chat import Chat
from lifelong.pipeline.phases.evaluate import Evaluate
from lifelong.pipeline.phases.generate import Generate
from lifelong.pipeline.phases.grow import Grow
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.phases.prepare import Prepare
from lifelong.pipeline.phases.proxy import Proxy
from lifelong.pipeline.phases.recover import Recover
from lifelong.pipeline.phases.remember import Remember
from lifelong.pipeline.phases.targets import Targets
from lifelong.pipeline.phases.train import Train

PHASES: tuple[Phase, ...] = (
    Prepare(), Proxy(), Generate(), Targets(), Grow(), Recover(), Train(), Evaluate(), Chat(), Remember()
)  # fmt: skip

__all__ = ["PHASES", "Phase"]
