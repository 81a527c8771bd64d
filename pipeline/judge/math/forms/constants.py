"""Equal up to the names of constants and parameters, or up to a constant of integration."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise, permutations

from pipeline.judge.math import numeric
from pipeline.judge.math.parser import Tree
from pipeline.judge.math.rational import exact

_PARAMETERS = frozenset("kmnltjscC")
"""Letters that a solver may choose for a free integer or constant."""
_CONSTANT = re.compile(r"[A-DKck]|[A-DKck]_\d|\\(?:alpha|beta|gamma)")
_VARIABLES = frozenset(["x", "y", "z", "t", "u", "v", "s", "r", "w", "n", "\\theta"])
"""Of the rest of a formula: a + b + c is a sum of three quantities, not an antiderivative."""
_INTEGRATION = frozenset(["C", "c", "K", "k", "C_1", "c_1"])


def renamed(a: Tree, b: Tree, statement: str) -> bool:
    """Whether `b` is the gold `a` with other names, which `statement` does not give."""
    if not (numeric.symbols(a) and numeric.symbols(b)):
        return False
    return _reparametrised(a, b, statement) or _with_constants(a, b, statement) or \
        _antiderivative(a, b)


def _reparametrised(a: Tree, b: Tree, statement: str) -> bool:
    """Equal up to the name of one symbol that the problem does not give: kπ and nπ."""
    old, new = numeric.symbols(a) - numeric.symbols(b), numeric.symbols(b) - numeric.symbols(a)
    if len(old) != 1 or len(new) != 1 or a[0] == "v" or not new <= _PARAMETERS:
        return False
    name, = old
    free = name.lstrip("\\").isalpha() and bool(statement) and not _mentioned(name, statement)
    if not (free or (not statement and _counts(a, name)) or numeric.periodic(a, name)):
        return False
    return numeric.equal(numeric.replaced(a, ("v", name), ("v", *new)), b)


def _counts(tree: Tree, name: str) -> bool:
    """Whether `tree` is 6k + 1 or its like, k the letter that counts unless a problem gives it."""
    if name != "k":
        return False
    values = [exact(numeric.replaced(tree, ("v", "k"), ("n", Fraction(n)))) for n in range(4)]
    if any(value is None or value.denominator != 1 for value in values):
        return False
    steps = {second - first for first, second in pairwise(v for v in values if v is not None)}
    return len(steps) == 1 and abs(steps.pop()) > 1


def _with_constants(a: Tree, b: Tree, statement: str) -> bool:
    """Equal functions of the same variables up to the names of at most three constants."""
    first, second = ({name for name in numeric.symbols(tree) if _CONSTANT.fullmatch(name)
                      and not _mentioned(name, statement)} for tree in (a, b))
    if not first or len(first) != len(second) or len(first) > 3 or first == second or \
            not numeric.symbols(a) - first or not numeric.symbols(a) - first <= _VARIABLES or \
            numeric.symbols(a) - first != numeric.symbols(b) - second:
        return False
    for order in permutations(sorted(second)):
        tree = a
        for name in first:  # by way of names that neither side has
            tree = numeric.replaced(tree, ("v", name), ("v", f"#{name}"))
        for name, other in zip(sorted(first), order, strict=True):
            tree = numeric.replaced(tree, ("v", f"#{name}"), ("v", other))
        if numeric.equal(tree, b):
            return True
    return False


def _antiderivative(a: Tree, b: Tree) -> bool:
    """Both end in + C and differ by a number."""
    first, second = _without_constant(a), _without_constant(b)
    if first is None or second is None or not numeric.symbols(first) or \
            not numeric.symbols(first) <= _VARIABLES:
        return False
    if numeric.symbols(first) != numeric.symbols(second):
        return False
    return numeric.constant(("+", first, ("*", ("n", Fraction(-1)), second)))


def _mentioned(name: str, statement: str) -> bool:
    letter = name.lstrip("\\").partition("_")[0]
    return bool(re.search(rf"(?<![A-Za-z]){re.escape(letter)}(?![A-Za-z])", statement))


def _without_constant(tree: Tree) -> Tree | None:
    """A sum without the constant of integration that is one of its terms; None without one."""
    if tree[0] != "+":
        return None
    constants = [part for part in tree[1:] if part[0] == "v" and part[1] in _INTEGRATION]
    rest = tuple(part for part in tree[1:] if part not in constants)
    if len(constants) != 1 or not rest or constants[0][1] in numeric.symbols(("+", *rest)):
        return None
    return rest[0] if len(rest) == 1 else ("+", *rest)
