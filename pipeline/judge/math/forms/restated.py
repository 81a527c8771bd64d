"""Whether an answer only repeats what the problem asks to work out, or leaves it unsolved.

RL's policy: equal by value, but copied from the statement or built of nothing else than its numbers
and letters, so that it costs no reasoning. The gold itself, however the statement holds it, is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from pipeline.judge.math.latex import clean
from pipeline.judge.math.node import Node
from pipeline.judge.math.parse import parse
from pipeline.judge.math.parser import Tree, UnreadableError, read
from pipeline.judge.math.phrases import key

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_PARTS = re.compile(r"=|<|>|\\(?:le|ge|ne|in|equiv|approx)\b|,|;")
_OPERATOR = re.compile(r"[-+*/^!|]|\\(?!text|mathrm|pi\b|infty\b)[A-Za-z]+")


def restated(gold: str, answer: str, statement: str) -> bool:
    """Whether `answer`, equal to `gold` by value, is a formula of the statement or unsolved."""
    if not statement or key(gold) == key(answer):
        return False
    a, b = parse(gold), parse(answer)
    if b.kind == "relation" and b.detail != "chain":
        return a.kind in ("value", "interval", "list", "set", "union") and (
            not _names_value(b) or _copied(answer, statement))
    if b.kind != "value" or b.tree is None:
        return b.kind in ("opaque", "relation") and _copied(answer, statement)
    if a.kind != "value" or a.tree is None:
        return False
    own, right = _sorted(b.tree), _sorted(a.tree)
    if own == right and a.unit == b.unit:
        return False
    formulas, atoms = _said(statement)
    if own in formulas or _copied(answer, statement) or (own[0] == "n" and _atoms(own) <= atoms):
        return True
    return _is_number(right) and not _is_number(own) and _atoms(own) <= atoms


def _is_number(tree: Tree) -> bool:
    """Whether a tree is a number worked out: 5, -2.5, 3/4."""
    if tree[0] == "*" and len(tree) == 3 and ("n", -1) in tree[1:]:
        tree = next((part for part in tree[1:] if part != ("n", -1)), tree)
    return tree[0] == "n" or (tree[0] == "/" and tree[1][0] == tree[2][0] == "n")


def _names_value(node: Node) -> bool:
    """m + n = 293 says the value of a sum; 2x + 1 = 5 leaves x unsolved."""
    return node.detail == "=" and any(
        item.tree is not None and item.tree[0] == "n" for item in node.items) and all(
        re.fullmatch(r"[A-Za-z\s+]*|-?[\d.,]+", item.text) for item in node.items)


def _copied(answer: str, statement: str) -> bool:
    """Whether the statement holds the answer as it is written."""
    text, where = (re.sub(r"[\s{}]|\\(?:left|right)\b", "", clean(one)) for one in (
        answer, statement))
    return len(text) > 2 and bool(_OPERATOR.search(text)) and text in where


@lru_cache(maxsize=2_000)
def _said(statement: str) -> tuple[frozenset[Tree], frozenset[str]]:
    """Every formula and part of a formula in the statement; its numbers and letters."""
    formulas: set[Tree] = set()
    atoms: set[str] = set(re.findall(r"\d+(?:\.\d+)?", statement))
    for match in _FORMULA.finditer(statement[:4000]):
        for part in _PARTS.split(clean(next(filter(None, match.groups())))):
            try:
                tree = _sorted(read(part.strip()))
            except UnreadableError:
                continue
            formulas.update(one for one in _subtrees(tree) if one[0] not in ("n", "v", "c"))
            atoms |= _atoms(tree)
    return frozenset(formulas), frozenset(atoms)


def _sorted(tree: Tree) -> Tree:
    """`tree` with the operands of sums and products in one order."""
    parts = tuple(_sorted(part) if isinstance(part, tuple) else part for part in tree[1:])
    if tree[0] in ("+", "*"):
        flat = [one for part in parts for one in (part[1:] if part[0] == tree[0] else (part,))]
        return (tree[0], *sorted(flat, key=repr))
    return (tree[0], *parts)


def _subtrees(tree: Tree) -> Iterator[Tree]:
    yield tree
    for part in tree[1:]:
        if isinstance(part, tuple):
            yield from _subtrees(part)


def _atoms(tree: Tree) -> set[str]:
    """The numbers and letters of `tree`."""
    if tree[0] in ("n", "v", "c"):
        return set() if tree == ("n", -1) else {str(tree[1])}
    parts = [part for part in tree[1:] if isinstance(part, tuple)]
    if tree[0] == "^" and parts[1] == ("/", ("n", 1), ("n", 2)):
        parts = parts[:1]
    return set().union(*map(_atoms, parts))
