"""The shape of an answer: value, list, tuple, set, interval, union, matrix, relation, ratio, text.

parse() reads a cleaned answer into a Node; compare.py says whether two Nodes are the same answer.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, product

from pipeline.judge.math.forms.amount import amount, plain_text
from pipeline.judge.math.forms.matrices import matrix, vector
from pipeline.judge.math.forms.number_words import in_words
from pipeline.judge.math.forms.wording import only_states
from pipeline.judge.math.latex import clean
from pipeline.judge.math.node import Node
from pipeline.judge.math.numeric import symbols
from pipeline.judge.math.phrases import congruence, distance, split_condition
from pipeline.judge.math.split import (
    CLOSE,
    OPEN,
    evaluates_to,
    in_order,
    is_bracketed,
    is_label,
    rounds_to,
    split_relation,
    split_top,
)


@lru_cache(maxsize=50_000)
def parse(text: str) -> Node:
    """The Node of a raw answer."""
    plain = clean(text)
    if (lead := _LEAD.match(plain)) and only_states(lead[1]):
        plain = plain[lead.end():]
    return _parse(plain, 0)


_LEAD = re.compile(r"‹([^›]+)›\s*[:,]?\s*(?=\S)")


def _parse(text: str, depth: int) -> Node:
    text = congruence(text.strip()) or distance(text.strip()) or text.strip()
    if depth > 6 or not text:
        return Node("opaque", text)
    if _EMPTY.fullmatch(text):
        return Node("set", text)
    if _REALS.fullmatch(text):
        text = "(-\\infty, \\infty)"
    if text.startswith("‹") and text.find("›") == len(text) - 1:
        if in_words(text[1:-1].strip()) is not None:
            return plain_text(text)
        names = re.split(r",? and |, ", text[1:-1])
        return plain_text(text) if len(names) == 1 or any(len(n.split()) > 3 for n in names) else \
            Node("list", text, tuple(Node("text", f"‹{name}›") for name in names))
    if "⟦" in text and (node := matrix(text, lambda part: _parse(part, depth + 1))):
        return node
    for reader in (_without, _aside, _separated, _related, _union, _bracketed, _ratio, _signs):
        if node := reader(text, depth):
            return node
    return vector(amount(text))


_EMPTY = re.compile(r"\\(?:emptyset|varnothing)|∅|⦃\s*⦄|‹(?:there (?:is|are) )?no (?:real )?"
                    r"(?:solutions?|roots?)(?: exists?)?›", re.I)
_REALS = re.compile(r"ℝ|‹all (?:the )?real(?:s| numbers?)›(?:\s*[a-z])?", re.I)
_EXCEPT = re.compile(r"‹(?:all )?(?:the )?real(?: number)?s? (?:numbers )?"
                     r"(?:except|other than|besides|but)(?: for)?›(.+)", re.I)
_WITHOUT = re.compile(r"(.+?)\s*(?:\\setminus|\\backslash|\\(?=\s)|-)\s*⦃([^⦃⦄]*)⦄")
_UNEQUAL = re.compile(r"([a-z])\s*\\ne\b(.*)")
_UNEQUAL_TURNED = re.compile(r"([^=<>,]+)\\ne\s*([a-z])")


def _without(text: str, depth: int) -> Node | None:
    """ℝ or an interval without some points, x ≠ 2 among them, as the union of what is left."""
    if turned := _UNEQUAL_TURNED.fullmatch(text):
        text = f"{turned[2]} \\ne {turned[1]}"
    if excepted := _EXCEPT.fullmatch(text):
        text = f"(-\\infty, \\infty) \\setminus ⦃{excepted[1]}⦄"
    match, base, points = _WITHOUT.fullmatch(text), "(-\\infty, \\infty)", ""
    if match:
        base, points = match.groups()
    elif match := _UNEQUAL.fullmatch(text):
        points = re.sub(rf"\b{match[1]}\s*\\ne\b", "", match[2])
    if not match or not (cuts := in_order(split_top(points, ","))):
        return None
    whole = _parse(base, depth + 1)
    if whole.kind not in ("interval", "tuple") or len(whole.items) != 2:
        return None
    ends = [whole.items[0].text, *cuts, whole.items[1].text]
    pieces = [f"({low}, {high})" for low, high in pairwise(ends)]
    pieces[0] = whole.detail[0] + pieces[0][1:]
    pieces[-1] = pieces[-1][:-1] + whole.detail[1]
    return _parse(" ∪ ".join(pieces), depth + 1)


def _separated(text: str, depth: int) -> Node | None:
    """A bare list: ";" parts lists of lists, "," parts elements; a shared label goes with all."""
    if number := _grouped_number(text):
        return number
    for separators in (";", ",⏎"):
        parts = split_top(text, separators)
        if len(parts) > 1:
            return _list(text, [_parse(part, depth + 1) for part in parts])
    return None


def _list(text: str, items: list[Node]) -> Node:
    """A list of `items`, ± laid flat; x = 1, y = 2, x = 3, y = 4 is the list of two points."""
    flat: list[Node] = []
    for item in items:
        flat += item.items if item.kind == "list" and (
            item.detail == "±" or all(part.label for part in item.items)) else [item]
    names = [item.label for item in flat]
    period = len(set(names))
    if 1 < period < len(names) and all(names) and names == names[:period] * (
            len(names) // period):
        flat = [Node("tuple", " , ".join(n.text for n in flat[i:i + period]),
                     tuple(flat[i:i + period])) for i in range(0, len(flat), period)]
    label = names[0] if names and not any(names[1:]) else ""
    return Node("list", text, tuple(flat), label=label)


_GROUPED = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d\d)+,\d{3})(?:\.\d+)?)(?!\d)")
_SPACED = re.compile(r"([-+]?\d{1,3}(?: \d{3})+)$")
_POINTED = re.compile(r"([-+]?\d{1,3}(?:\.\d{3})+),(\d+)$")


def _grouped_number(text: str) -> Node | None:
    """"1,234.5", "1,00,000", "1 234" or "1.234,5" as one number with what unit follows."""
    if match := _POINTED.match(text):
        return amount(f"{match[1].replace('.', '')}.{match[2]}")
    match = _GROUPED.match(text) or _SPACED.match(text)
    if not match or "," in text[match.end():] or re.search(r"[=<>]", text):
        return None
    return amount(re.sub("[, ]", "", match[1]) + text[match.end():])


def _aside(text: str, depth: int) -> Node | None:
    """What follows "for all", "where", "if" is the condition of the answer before it."""
    plain, condition = split_condition(text)
    if not condition or depth > 4:
        return None
    node = _parse(plain, depth + 1)
    return replace(node, condition=f"{node.condition} {condition}".strip(), text=text)


def _related(text: str, depth: int) -> Node | None:
    """Relations: labels dropped, bounds of one symbol read as an interval, else kept as they are"""
    parts, ops = split_relation(text)
    if not ops:
        return None
    while ops and (ops[-1] == "\\approx" or (ops[-1] == "=" and parts[-1].endswith("ldots"))) \
            and rounds_to(*parts[-2:]):
        parts, ops = parts[:-1], ops[:-1]
    if ops == ["\\approx"] and (not parts[0] or is_label(parts[0])):
        return _parse(parts[1], depth + 1)
    if not ops:
        return _parse(parts[0], depth + 1)
    if set(ops) == {"="}:
        return _equal(text, parts, depth)
    if ops == ["\\in"] and is_label(parts[0]):
        return replace(_parse(parts[1], depth + 1), text=text, label=parts[0])
    if set(ops) <= {"<", ">", "\\le", "\\ge"}:
        if bound := _bounds(text, parts, ops, depth):
            return bound
        if set(ops) <= {">", "\\ge"}:
            parts, ops = parts[::-1], [_TURNED[op] for op in ops[::-1]]
    items = tuple(_parse(part, depth + 1) for part in parts)
    return Node("relation", text, items, detail=" ".join(ops))


_TURNED = {">": "<", "\\ge": "\\le"}
_SYMBOLIC = re.compile(r"[A-Za-z](?:_\w)?(?:\s*[+-]\s*[A-Za-z](?:_\w)?)+")


def _equal(text: str, parts: list[str], depth: int) -> Node:
    """A chain of equations: what only names is the label, of whichever side it stands."""
    names = [part for part in parts if is_label(part)]
    values = [part for part in parts if part not in names]
    if len(parts) > 2 and (sums := [part for part in values if _SYMBOLIC.fullmatch(part)]):
        values = [part for part in values if part not in sums] or values
    if len(parts) > 1 and len({part.strip() for part in parts}) == 1:
        return Node("relation", text, (_parse(parts[0], depth + 1),) * 2, detail="identity")
    if len(values) > 1 and len(parts) == 2 and evaluates_to(*parts):
        values = values[1:]
    if len(parts) == 2 and not values and not all(len(part) == 1 for part in parts):
        names, values = parts[:1], parts[1:]
    label = names[0] if len(names) == 1 else "=".join(sorted(names))
    if len(values) == 1 and (names or len(parts) > 1):
        return replace(_parse(values[0], depth + 1), label=label, text=text)
    items = tuple(_parse(part, depth + 1) for part in values or parts)
    if not values:
        items = tuple(sorted(items, key=lambda item: item.text)) if len(items) > 2 else items
    solved = all((item.tree is not None and not symbols(item.tree)) or item.kind == "opaque"
                 for item in items)
    chain = len(values) > 1 and (bool(names) or len(values) < len(parts) or solved
                                 or len(parts) > 2)
    return Node("relation", text, items, label=label, detail="chain" if chain else
                " ".join(["="] * (len(items) - 1)))


def _bounds(text: str, parts: list[str], ops: list[str], depth: int) -> Node | None:
    """a < x ≤ b, x ≥ a, a ≤ x as the interval of x."""
    names = [i for i, part in enumerate(parts) if is_label(part) and "‹" not in part]
    if len(parts) not in (2, 3) or names not in ([0], [1], [0, 1]) or (len(parts) == 3 and \
            names != [1]):
        return None
    low, high = ("-\\infty", "("), ("\\infty", ")")
    at = names[0]
    for index, op in enumerate(ops):
        side = parts[index if index < at else index + 1]
        above = (op[-1] in "<e" and op != "\\ge") == (index >= at)
        bracket = "" if op in "<>" else "="
        if above:
            high = (side, "]" if bracket else ")")
        else:
            low = (side, "[" if bracket else "(")
    items = (_parse(low[0], depth + 1), _parse(high[0], depth + 1))
    return Node("interval", text, items, label=parts[at], detail=low[1] + high[1])


def _union(text: str, depth: int) -> Node | None:
    parts = split_top(text.replace("\\cup", "∪"), "∪")
    if len(parts) < 2:
        return None
    return Node("union", text, tuple(_parse(part, depth + 1) for part in parts))


_PAIRS = {"(": ")", "[": "]", "{": "}", "⟦": "⟧"}
_POINT = re.compile(r"[A-Z](?:_\{?\w\}?)?'*\s*(?=\(.*,)")


def _bracketed(text: str, depth: int) -> Node | None:
    """(a, b), [a, b), {a, b} and {x | condition}; one bracketed thing is that thing."""
    if named := _POINT.match(text):
        text = text[named.end():]
    if text[0] not in OPEN or text[-1] not in CLOSE or not is_bracketed(text):
        return None
    inner = text[1:-1].strip()
    if text[0] == "⦃":
        if match := re.match(r"\(?\s*[A-Za-z,\s]+\)?\s*(?:\\in\s*\S+\s*)?[|:]", inner):
            return _parse(inner[match.end():], depth + 1)
        items = _list(inner, [_parse(part, depth + 1) for part in split_top(inner, ",;")]).items
        return Node("set", text, tuple({item.text: item for item in items}.values()))
    parts = split_top(inner, ",")
    if len(parts) < 2:
        return _parse(inner, depth + 1) if inner else None
    items = tuple(_parse(part, depth + 1) for part in parts)
    if len(parts) == 2 and text[0] + text[-1] in ("[]", "[)", "(]") and \
            all(item.detail != "±" for item in items):
        return Node("interval", text, items, detail=text[0] + text[-1])
    if _PAIRS.get(text[0]) != text[-1]:
        return Node("opaque", text)
    return _list(text, list(items)) if text[0] == "{" else _signed_tuple(text, items)


def _signed_tuple(text: str, items: tuple[Node, ...]) -> Node:
    """A tuple; with ± in its elements the list of all that it stands for."""
    choices = [item.items if item.detail == "±" else (item,) for item in items]
    if all(len(choice) == 1 for choice in choices) or len(items) > 6:
        return Node("tuple", text, items, detail="()" if len(items) == 2 else "")
    return Node("list", text, tuple(
        Node("tuple", " , ".join(n.text for n in chosen), chosen) for chosen in product(*choices)))


def _ratio(text: str, depth: int) -> Node | None:
    parts = split_top(text, ":")
    if len(parts) < 2:
        return None
    if len(parts) == 2 and re.fullmatch(r".*›\s*\d*", parts[0]):
        return replace(_parse(parts[1], depth + 1), label=parts[0])
    return Node("ratio", text, tuple(_parse(part, depth + 1) for part in parts))


def _signs(text: str, depth: int) -> Node | None:
    """a ± b as the list of both."""
    if "\\pm" not in text:
        return None
    both = [_parse(text.replace("\\pm", sign).replace("\\mp", other), depth + 1)
            for sign, other in ("+-", "-+")]
    return Node("list", text, tuple(both), detail="±")
