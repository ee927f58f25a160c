"""Tables of a report for a paper: plain LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_SPECIAL = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "→": r"$\to$", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "–": "--", "≠": r"$\neq$", "τ": r"$\tau$", "α": r"$\alpha$", "×": r"$\times$", "²": "$^2$",
})  # fmt: skip


def latex_safe(text: str) -> str:
    """A text in which LaTeX sees no command."""
    return " ".join(text.split()).translate(_SPECIAL)


def latex_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds names; `Markup` is taken as LaTeX, everything else is escaped."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(str(cell) if isinstance(cell, Markup) else latex_safe(cell) for cell in cells) + r" \\"

    body = [line(row) for row in rows]
    columns = "l" + "r" * (len(heads) - 1)
    return "\n".join([
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(heads), r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
        "",
    ])  # fmt: skip
