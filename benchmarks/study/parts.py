"""What the study runs: parts and their arms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from benchmarks.study.arms import TUNING_SEEDS, Arm, Part
from benchmarks.study.horizon import HORIZON
from benchmarks.study.real_model import REAL_MODEL
from benchmarks.study.regimes import REGIMES
from benchmarks.study.settings import SETTINGS

TEACHERS = ("news", "reviews", "bio", "cs")


def replay(*changes: str) -> Arm:
    """The replay arm with changes."""
    return Arm("replay", ("replay.share=0.3", *changes))


def inherit(*changes: str) -> Arm:
    """Even replay and a teacher, with changes."""
    return Arm("ours-uniform", ("replay.share=0.3", "inherit.temperature=1.0", *changes))


TUNING = Part(
    {
        "replay share 0.1": replay("replay.share=0.1"),
        "replay share 0.3": replay(),
        "replay share 0.5": replay("replay.share=0.5"),
        "replay share 0.7": replay("replay.share=0.7"),
        "replay mix proportional": replay("replay.mix=proportional"),
        "replay mix adaptive": replay("replay.mix=adaptive"),
        "replay memory 25k": replay("replay.memory_tokens=25k"),
        "replay memory 400k": replay("replay.memory_tokens=400k"),
        "replay rate 1.5e-3": replay("train.learning_rate=1.5e-3"),
        "replay rate 6e-3": replay("train.learning_rate=6e-3"),
        "ki alpha 0.5 until 0.3": inherit(),
        "ki alpha 1 until 0.3": inherit("inherit.alpha=1.0"),
        "ki alpha 0.5 until 1": inherit("inherit.until=1.0"),
        "ki alpha 0.2 constant": inherit("inherit.alpha=0.2", "inherit.schedule=constant"),
        "ki alpha 0.5 until 0.3 tau 2": inherit("inherit.temperature=2.0"),
        "ki on replay, alpha 0.5 constant": inherit(
            "inherit.on=replay", "inherit.schedule=constant", "inherit.until=1.0"
        ),
        "ewc strength 0.1": Arm("ewc", ("methods.0.strength=0.1",)),
        "ewc strength 1": Arm("ewc"),
        "ewc strength 10": Arm("ewc", ("methods.0.strength=10.0",)),
    },
    TUNING_SEEDS,
)

MAIN_ARMS = (
    "sequential",
    "replay",
    "ewc",
    "a-gem",
    "logits-kd",
    "elle-published",
    "elle-prompts",
    "elle-exact",
    "ours",
    "ours-uniform",
    "ours-no-inheritance",
    "ours-no-recovery",
    "ours-no-replay",
    "ours-random-copies",
    "ours-no-growth",
    "final-size",
    "ki-new-domain",
    "ki-new-domain-replay",
    "joint",
)
MAIN = Part({name: Arm(name, keep=name == "ours") for name in MAIN_ARMS})


FINAL = Part({f"final-size x{times}": Arm("final-size", budget=times) for times in (1.6,)})
"""The final size with more FLOPs than the others: where does it reach what the grown model has?"""

CURVES = Part(
    {
        "exact": Arm("growth"),
        "elle": Arm("growth", ("stages.1.expand.mode=elle",)),
        "not grown": Arm("growth", ("stages.1.expand=null", "stages.1.tokens=160k")),
    },
    reference=Arm("growth"),
    changes=("stages.0.tokens=160k",),
)
"""What happens right behind a growth, by probes; they count as measurement here, and the model before is the same."""

REVERSED = tuple(f"stages.{index}.domain={name}" for index, name in enumerate(("cs", "bio", "reviews", "news", "wiki")))
ORDER = Part(
    {name: Arm(name) for name in ("sequential", "replay", "ours")},
    changes=REVERSED,
)
"""The stream the other way round."""

DOUBLED = ("stages.3.expand.hidden_size=128", "stages.3.expand.heads=4", "stages.3.expand.intermediate_size=352")
"""ModernBERT grows exactly to multiples of its width only."""
MASKED = Part(
    {name: Arm(name) for name in ("sequential", "replay", "ours")},
    tokens=60_000,
    changes=("objective=mlm", "model.family=modernbert", "evaluate.tokens=30k", *DOUBLED),
)
"""Masked language modelling, smaller."""

CONVERGED = Part(
    {
        "sequential": Arm("converged"),
        "replay 0.1": Arm("converged-replay", ("replay.share=0.1",)),
        "replay 0.3": Arm("converged-replay"),
        "ewc": Arm("converged", ("methods=[{name: ewc, strength: 1.0, samples: 64}]",)),
        "logits-kd": Arm(
            "converged-replay",
            ("inherit={teacher: previous, on: replay, alpha: 0.5, schedule: constant, temperature: 1.0}",),
        ),
        "ki on all": Arm(
            "converged-replay",
            ("inherit={teacher: previous, on: all, alpha: 0.5, schedule: linear, until: 0.3, temperature: 1.0}",),
        ),
        "ki without replay": Arm(
            "converged",
            ("inherit={teacher: previous, on: all, alpha: 0.5, schedule: constant, temperature: 1.0}",),
        ),
    },
    reference=Arm("converged-replay"),
    tokens=150_000,
    changes=("stages.0.tokens=30k",),
)
"""A model that has converged on its first domain before the stream begins."""

ADAPTATION = Part(
    {
        f"{name} {thousands}k": Arm(recipe, budget=(160 + thousands) / (160 + 80))
        for thousands in (80, 320)
        for name, recipe in (("plain", "adaptation"), ("taught", "adaptation-taught"))
    },
    reference=Arm("adaptation"),
    tokens=80_000,
    changes=("stages.0.tokens=160k",),
)
"""A model of wiki adapted to cs with little, more and much text, with and without the domain's teacher."""

PROMPTS = Part({"ours-prompts": Arm("ours-prompts", keep=True)}, seeds=(0,))
"""The run whose prompts are tried on tasks."""

PARTS: dict[str, Part] = {
    "tuning": TUNING,
    "main": MAIN,
    "final": FINAL,
    "curves": CURVES,
    "converged": CONVERGED,
    "adaptation": ADAPTATION,
    "order": ORDER,
    "masked": MASKED,
    "prompts": PROMPTS,
    **REGIMES,
    **HORIZON,
    "settings": SETTINGS,
    "real-model": REAL_MODEL,
}
SCALABLE = ("tuning", "main", "final", "order")
LARGE = (
    "sequence_length=512", "train.per_device_train_batch_size=64", "train.learning_rate=1e-3", "train.use_cpu=false",
    "train.bf16=true", "evaluate.tokens=200k",
)  # fmt: skip
LARGE_SIZES = ({"layers": 6, "hidden_size": 512, "intermediate_size": 1408, "heads": 8}, {"layers": 9},
               {"hidden_size": 768, "intermediate_size": 2112, "heads": 12})  # fmt: skip
"""First sizes, and what the second and the fourth stage grow to: 20 to 85 million parameters, for a GPU machine."""


def large(part: Part, grows: Mapping[str, Collection[int]], tokens: int) -> Part:
    """The same part for a GPU machine.

    Args:
        part: one of `SCALABLE`.
        grows: recipe -> stages that grow in it.
        tokens: of a stage of the reference arm; what the corpora hold decides.
    """
    first, second, fourth = LARGE_SIZES
    arms = {}
    for name, arm in part.arms.items():
        start = {**first, **second, **fourth} if arm.recipe == "final-size" else first
        sizes = [f"model.{key}={value}" for key, value in start.items()]
        for stage, grown in ((1, second), (3, fourth)):
            if stage in grows[arm.recipe]:
                sizes += [f"stages.{stage}.expand.{key}={value}" for key, value in grown.items()]
        arms[name] = replace(arm, changes=(*sizes, *arm.changes))
    reference = [f"model.{key}={value}" for key, value in first.items()]
    reference += [f"stages.1.expand.{key}={value}" for key, value in second.items()]
    reference += [f"stages.3.expand.{key}={value}" for key, value in fourth.items()]
    return replace(
        part, arms=arms, tokens=tokens, changes=(*part.changes, *LARGE), reference=Arm("replay", tuple(reference))
    )
