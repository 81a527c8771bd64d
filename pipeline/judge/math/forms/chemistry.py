"""Chemical formulas, compared as text: case, indices and charges count."""

from __future__ import annotations

import re
from functools import lru_cache

from pipeline.judge.math.forms.wrappings import unwrap

_ELEMENTS = frozenset([
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S",
    "Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga",
    "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd",
    "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm",
    "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os",
    "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa",
    "U", "Np", "Pu", "Am"])
_FONT = re.compile(r"\\(?:text|mathrm|mathsf|textrm|mbox|rm|ce|mathbf|textbf)(?![A-Za-z])")
_ARROW = re.compile(r"\s*(<=>|<->|->|→|⇌|\\(?:to|rightarrow|longrightarrow|rightleftharpoons|"
                    r"leftrightarrow|xrightarrow\s*\{\s*\})(?![A-Za-z]))\s*")
_BOTH_WAYS = ("<=>", "<->", "⇌", "\\rightleftharpoons", "\\leftrightarrow")
_PLUS = re.compile(r"\s*\+\s*(?=\d*\s*[\^A-Z(\[])")
_FORMULA = re.compile(r"(?:\^\d+)?\d*(?:[A-Z][a-z]?\d*|[()\[\]]\d*)+(?:\^\d*[+-])?")
_SYMBOL = re.compile(r"[A-Z][a-z]?")


@lru_cache(maxsize=5_000)
def formula(text: str) -> str:
    """The formula that `text` is, without fonts and layout; "" if it is none."""
    if len(text) > 240 or not re.search(r"[A-Z]", text) or re.search(r"[A-Z]\s+[a-z]", text):
        return ""
    text = re.sub(r"\\[,;! ]|[{}$_]", "", _FONT.sub(" ", unwrap(text))).replace("−", "-")
    first, *rest = _ARROW.split(text)
    return _reaction(first, *rest) if len(rest) == 2 else _species(first) if not rest else ""


def _reaction(left: str, arrow: str, right: str) -> str:
    """Both sides of an equation, each in one order of its terms."""
    sides = [[_species(term) for term in _PLUS.split(side.strip())] for side in (left, right)]
    if not all(all(side) for side in sides):
        return ""
    said = [" + ".join(sorted(side)) for side in sides]
    return " <=> ".join(sorted(said)) if arrow in _BOTH_WAYS else " -> ".join(said)


def _species(text: str) -> str:
    """One formula with its coefficient, "" of anything else."""
    bare = re.sub(r"\s", "", text)
    bare = re.sub(r"^\(([A-Za-z\d]*)\)$", r"\1", bare)
    bare = re.sub(r"(?<=[A-Za-z\d)\]])([+-])$", r"^\1", bare) if "^" not in bare else bare
    if not _FORMULA.fullmatch(bare) or not set(_SYMBOL.findall(bare)) <= _ELEMENTS:
        return ""
    return bare


def is_chemistry(text: str) -> bool:
    """Whether `text` is set as a formula of chemistry, not as a product of variables."""
    return len(formula(text)) > 1 and bool(
        _ARROW.search(text) or _FONT.search(text) or re.search(r"[₀-₉]|[A-Z]\d|[A-Z][a-z]", text))
