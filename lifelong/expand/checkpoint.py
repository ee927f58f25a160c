"""Growing a checkpoint folder: load, grow, verify, write a new folder as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from lifelong.checkpoint import load_config, load_model, whole_folder, write_json
from lifelong.errors import InputError
from lifelong.expand.apply import grow
from lifelong.expand.plan import plan_expansion
from lifelong.records import ExpansionReport


def explain_expansion(source: str, targets: Mapping[str, int], *, mode: str = "exact") -> str:
    """What growing a checkpoint would do, from its configuration alone.

    Raises:
        ExpansionError: the target cannot be reached.
    """
    return plan_expansion(load_config(source), mode=mode, **targets).explain()


def expand_checkpoint(
    source: str, out: Path, *, targets: Mapping[str, int], mode: str = "exact", seed: int = 0
) -> ExpansionReport:
    """Grow the checkpoint `source` into the new folder `out`, which appears complete or not at all.

    Raises:
        InputError: `out` exists, or `source` cannot be loaded.
        ExpansionError: the target cannot be reached.
    """
    import transformers

    if out.exists():
        raise InputError(f"{str(out)!r} exists already; name a new folder")
    plan = plan_expansion(load_config(source), mode=mode, **targets)
    model = load_model(source, "clm")
    grown, mapping, report = grow(model, plan, seed=seed)
    if report.passed:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(out) as partial:
            grown.save_pretrained(partial)
            # a checkpoint may come without its tokenizer
            with contextlib.suppress(OSError, ValueError):
                transformers.AutoTokenizer.from_pretrained(source).save_pretrained(partial)
            write_json(partial / "expansion.json", {**report.to_json(), "map": mapping.to_json()})
    return report
