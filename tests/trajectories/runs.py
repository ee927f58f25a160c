"""Small runs that together go through every phase, kind of teacher and method, and the hash of every file they leave.

    python -m tests.trajectories.runs FOLDER hashes.json            # all of them, from an empty folder
    python -m tests.trajectories.runs FOLDER hashes.json grow ewc   # some

Cards and checkpoints are named relative to FOLDER, so that the hashes do not depend on where it lies. A change of the
code that is meant to change nothing leaves every hash as it is; two files are compared with `diff`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.kills import comparable
from tests.support import WORDS, recipe_data, write_domain

BERT = {"family": "bert", "layers": 1, "hidden_size": 24, "heads": 2, "intermediate_size": 40}
LLAMA = {**BERT, "family": "llama"}


def stages(*names: str, tokens: int = 1500, **first: Any) -> list[dict[str, Any]]:
    """One stage a domain."""
    return [{"domain": name, "tokens": tokens, **(first if not index else {})} for index, name in enumerate(names)]


def recipe(*names: str, **changes: Any) -> dict[str, Any]:
    """Short stages of a small model; None takes a section out."""
    base: dict[str, Any] = {
        "stages": stages(*names),
        "model": LLAMA,
        "evaluate": {"tokens": 300},
        "replay": None,
        "inherit": None,
    }
    tokenizer = {"train": {"kind": "bpe", "vocab_size": 300}}
    data = {**recipe_data(Path()), **base, "tokenizer": tokenizer, **changes}
    return {key: value for key, value in data.items() if value is not None}


def run(case: str, **data: Any) -> Path:
    """Run a recipe into runs/CASE."""
    from lifelong.pipeline import run_recipe
    from lifelong.recipe import parse_recipe

    run_recipe(parse_recipe({**data, "name": case}), Path("runs") / case)
    return Path("runs") / case


def last_model(out: Path) -> str:
    """The model of the last stage."""
    return str(sorted(out.glob("stages/*"))[-1] / "model")


def methods(*names: str, expand: dict[str, Any] | None = None) -> Callable[[str], Any]:
    """Two stages with methods that can stand together; the second may grow."""
    section = [{"name": name} for name in names]
    data = recipe("sea", "farm", methods=section, replay={"memory_tokens": 900, "share": 0})
    if expand is not None:
        data["stages"][1]["expand"] = expand
    return lambda case: run(case, **data)


def grow(case: str) -> None:
    """Two growths, recovery, a teacher, replay, probes; then extended."""
    from lifelong.pipeline import extend_run

    data = recipe_data(Path(), stages=[
        {"domain": "sea", "tokens": 1500},
        {"domain": "farm", "tokens": 1500, "expand": {"layers": 3, "hidden_size": 36, "heads": 3}},
    ])  # fmt: skip
    data |= {"recover": {"tokens": 600}, "evaluate": {"tokens": 200, "probes": 2, "probe_tokens": 100}}
    out = run(case, **data, methods=[{"name": "l2", "strength": 0.01}])
    extend_run(out, "law", overrides=["stages.2.expand.layers=4", "stages.2.expand.strategy=clone"])


def cached(case: str) -> None:
    """A teacher's targets are written once and teach another model."""
    from lifelong.inherit.sparse import TauSampler
    from lifelong.inherit.write_cache import CacheRequest, write_cache

    teacher = run(f"{case}-teacher", **recipe("sea", "farm"))
    write_cache(
        CacheRequest(str(teacher), ["sea", "farm"], TauSampler(), sequence_length=32), Path("runs") / f"{case}-targets"
    )
    tokenizer = {"checkpoint": last_model(teacher)}
    inherit = {"teacher": {"cache": f"runs/{case}-targets"}, "alpha": 0.5, "until": 0.5}
    run(case, **recipe("sea", "farm", tokenizer=tokenizer, inherit=inherit))


def steered(case: str) -> None:
    """A budget moves the share of replay; the newest domain is let learn more."""
    replay = {"memory_tokens": 2000, "share": 0.1, "probes": 6, "min_share": 0.02, "max_share": 0.6}
    data = recipe("sea", "farm", "law", replay=replay, budget={"sea": "90%", "farm": "90%"})
    run(case, **{**data, "stages": stages("sea", "farm", "law", tokens=4000)})


def selected(case: str) -> None:
    """Documents chosen by a model, and a memory chosen by its losses."""
    section = {"by": "challenge", "model": "previous", "top_k": 200, "keep": 0.5}
    data = recipe("sea", "farm", replay={"memory_tokens": 900, "share": 0.2, "policy": "loss-ranked"})
    data["stages"][1]["select"] = section
    run(case, **data)


def facts(case: str) -> None:
    """Invented sentences are put into a stage and asked for."""
    section = {"stage": 0, "at": [0.4], "count": 3, "repeats": 4, "probes": 4}
    run(case, **recipe("sea", "farm", facts=section, sequence_length=64))


def merged(case: str) -> None:
    """Two teachers with vocabularies of their own."""
    teachers = {
        name: last_model(run(f"{case}-{name}", **recipe(name, tokenizer={"train": {"vocab_size": size}})))
        for name, size in (("sea", 300), ("farm", 305))
    }
    inherit = {"teacher": {"by_domain": teachers}, "alpha": 0.5, "until": 1.0, "temperature": 1.0}
    replay = {"memory_tokens": 600, "share": 0.25}
    run(case, **recipe("sea", "farm", tokenizer={"merge": teachers}, inherit=inherit, replay=replay))


def masked(case: str) -> None:
    """A masked language model grows and is taught."""
    data = recipe("sea", "farm", objective="mlm", model=BERT, inherit={"alpha": 0.5}, recover={"tokens": 600})
    data["stages"][1]["expand"] = {"layers": 2}
    run(case, **data, replay={"memory_tokens": 900, "share": 0.25})


def taught(case: str) -> None:
    """A mixture of the previous stage and another model; a joint first stage; a teacher until the student is better."""
    other = last_model(run(f"{case}-teacher", **recipe("sea")))
    mixture = [{"teacher": "previous", "weight": 0.5}, {"teacher": other, "weight": {"sea": 1.0, "law": 0.2}}]
    inherit = {"teacher": {"mixture": mixture}, "alpha": 0.5, "until": 0.6, "temperature": 1.0}
    data = recipe("sea", "law", tokenizer={"checkpoint": other}, inherit=inherit)
    data["stages"][0]["together_with"] = ["farm"]
    run(case, **data)
    run(f"{case}-until", **recipe("sea", "law", inherit={"until": "surpassed", "schedule": "cosine"}))


RATE = {"policy": "infinite", "warmup": 0.1, "cooldown": 0.2, "decay": 0.3, "constant": 0.5}
CASES: dict[str, Callable[[str], Any]] = {
    "grow": grow,
    "cached": cached,
    "steered": steered,
    "selected": selected,
    "facts": facts,
    "merged": merged,
    "masked": masked,
    "taught": taught,
    "importances": methods("ewc", "si", "mas", "average"),
    "gradients": methods("a-gem"),
    "gem": methods("gem"),
    "lora": methods("lora"),
    "pnn": methods("pnn", expand={"intermediate_size": 56}),
    "prompts": methods("domain-prompts"),
    "frozen": methods("freeze-old", expand={"layers": 2, "intermediate_size": 56}),
    "infinite": lambda case: run(case, **recipe("sea", "farm", lr=RATE)),
}


def hashes(folder: Path, *cases: str) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of the runs of these cases that two equal runs have in common."""
    import torch

    torch.set_num_threads(1)
    (folder / "domains").mkdir(parents=True, exist_ok=True)
    for name in WORDS:
        write_domain(folder / "domains", name)
    with chdir(folder):
        for case in cases or CASES:
            CASES[case](case)
        return {
            out.name: {name: hashlib.sha256(content).hexdigest() for name, content in comparable(out).items()}
            for out in sorted(Path("runs").iterdir())
            if (out / "ledger.jsonl").is_file()
        }


@contextlib.contextmanager
def chdir(folder: Path) -> Any:
    """Work in a folder (contextlib has it from Python 3.11 on)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    found = hashes(Path(sys.argv[1]), *sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
