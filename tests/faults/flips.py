"""Flip bytes of a committed run, one at a time; `lifelong check` must find each.

    python -m tests.faults.flips RUN --every 997

RUN is copied first. Left out is what is not committed: caches, the report, the lock.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lifelong.ledger.ledger import check_run

NOT_COMMITTED = {".lock", ".cache", ".work", "report", "metrics.jsonl", "README.md"}


def committed_files(out: Path) -> list[Path]:
    """Everything in a run folder that a flip may not go unnoticed in."""
    every = sorted(path for path in out.rglob("*") if path.is_file())
    return [path for path in every if not NOT_COMMITTED & set(path.relative_to(out).parts)]


def places(path: Path, every: int) -> Iterator[int]:
    """The first byte, the last, and every n-th."""
    yield from sorted({*range(0, path.stat().st_size, every), path.stat().st_size - 1})


def flip(path: Path, place: int) -> None:
    """Change one bit of one byte, in place; once more changes it back."""
    with path.open("r+b") as stream:
        stream.seek(place)
        value = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([value ^ 1 << place % 8]))


def unnoticed(out: Path, every: int) -> tuple[int, list[str]]:
    """Bytes flipped, and those of them that `check_run` did not speak of."""
    assert check_run(out) == []
    flipped, missed = 0, []
    for path in committed_files(out):
        for place in places(path, every):
            flip(path, place)
            if not check_run(out):
                missed.append(f"{path.relative_to(out)} at byte {place}")
            flip(path, place)
            flipped += 1
    assert check_run(out) == []
    return flipped, missed


def main() -> int:
    """Flip through a copy of a run and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--every", type=int, default=997)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(options.run, Path(folder) / "run"))
        size = sum(path.stat().st_size for path in committed_files(copy))
        flipped, missed = unnoticed(copy, options.every)
        print(f"{len(committed_files(copy))} files, {size:,} bytes; flipped {flipped}, found {flipped - len(missed)}")
    print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
