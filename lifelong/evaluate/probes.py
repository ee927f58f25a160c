"""Probe schedule of a stage: dense in its first few per cent, where the stability gap is."""

from __future__ import annotations


def probe_steps(num_steps: int, count: int) -> list[int]:
    """`count` steps between 1 and `num_steps`, evenly spaced on a log scale, the last step included.

    Fewer where a stage is too short for distinct steps. Step 0, the model as the stage finds it, is not counted
    here: it is always probed, so that a rise is measured on the documents of the later probes.

    Source: De Lange et al. 2023 (arXiv 2205.13452), continual evaluation for the stability gap.
    """
    if count <= 1:
        return [num_steps] if count == 1 else []
    ratio = num_steps ** (1 / (count - 1))
    return sorted({min(num_steps, max(1, round(ratio**number))) for number in range(count)})
