"""How the package is laid out, in figures: entries, levels, arrows, cycles, the longest chain of imports, lines.

python -m benchmarks.house
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import grimp

import lifelong

PACKAGE = Path(lifelong.__file__).parent
SPELLED = re.compile(r"""[=!]=\s*["'](clm|mlm)["']|["'](clm|mlm)["']\s*[=!]=""")


def arrows(graph: grimp.ImportGraph, depth: int) -> dict[str, set[str]]:
    """Entries at some depth of the package, each with those that it imports; imports for types alone are left out."""

    def entry(module: str) -> str:
        return ".".join(module.split(".")[: depth + 1])

    found: dict[str, set[str]] = {entry(module): set() for module in graph.modules if module != "lifelong"}
    for module in graph.modules - {"lifelong"}:
        for other in graph.find_modules_directly_imported_by(module) - {"lifelong"}:
            if entry(module) != entry(other):
                found[entry(module)].add(entry(other))
    return found


def longest_chain(found: Mapping[str, set[str]]) -> tuple[int, int]:
    """Nodes of the longest chain, and how many arrows close a circle; those are passed over."""
    open_now: set[str] = set()
    closing: set[tuple[str, str]] = set()

    @cache
    def length(node: str) -> int:
        open_now.add(node)
        closing.update((node, other) for other in found[node] & open_now)
        result = 1 + max((length(other) for other in sorted(found[node] - open_now)), default=0)
        open_now.discard(node)
        return result

    return max(map(length, sorted(found))), len(closing)


def main() -> None:
    """Print the table."""
    graph = grimp.build_graph("lifelong", exclude_type_checking_imports=True)
    top, modules = arrows(graph, 1), arrows(graph, 9)
    levels, top_circles = longest_chain(top)
    chain, circles = longest_chain(modules)
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    spelled = sum(len(SPELLED.findall(text)) for text in sources.values())
    rows = {
        "entries at the top of the package": len(top),
        "levels of these entries": levels,
        "arrows between these entries": sum(map(len, top.values())),
        "imports that close a circle, entries / modules": f"{top_circles} / {circles}",
        "modules / imports between them": f"{len(modules)} / {sum(map(len, modules.values()))}",
        "longest chain of imports, modules": chain,
        'comparisons with "clm" or "mlm"': spelled,
        "public names": len(lifelong.__all__),
        "lines of the package": sum(text.count("\n") for text in sources.values()),
    }
    for label, value in rows.items():
        print(f"{label:50} {value}")


if __name__ == "__main__":
    main()
