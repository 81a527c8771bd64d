"""Near misses: mechanical changes of a gold answer, each of which makes another answer of it.

A digit, a sign, an operator, a bracket, an order, a unit, a word. Where a rule leaves the value as
it was (0 negated, a palindrome turned) the change is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_NUMBER = re.compile(r"(?<![\d.])\d+(?:\.\d+)?(?![\d.])")
_OPERATORS = re.compile(r"\\cdot|\\times|\\div|[-+/^!]")
_LETTER = re.compile(r"(?<![\\A-Za-z{])([a-zA-Z])(?![A-Za-z])")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
Mutate = Callable[[str], Iterator[str]]


def _each(pattern: re.Pattern[str], change: Callable[[str], list[str]]) -> Mutate:
    """The rule that changes one match of `pattern` after the other."""
    def mutate(gold: str) -> Iterator[str]:
        for match in list(pattern.finditer(gold))[:6]:
            for new in change(match[0]):
                yield gold[:match.start()] + new + gold[match.end():]
    return mutate


def _whole(change: Callable[[str], list[str]]) -> Mutate:
    return lambda gold: iter(change(gold))


def _digits(text: str) -> list[str]:
    """A number with one digit more, one less, another, or two exchanged."""
    out = [text[:-1] + str((int(text[-1]) + 1) % 10), text[:-1] + str((int(text[-1]) + 7) % 10),
           str((int(text[0]) % 9) + 1) + text[1:], text + "0" if "." not in text else text + "1",
           "1" + text]
    if len(text) > 1 and text[-1] != text[-2] and "." not in text[-2:]:
        out.append(text[:-2] + text[-1] + text[-2])
    if len(text) > 1 and text[-1] != "0" and "." not in text[-2:]:
        out.append(text[:-1])
    return [one for one in out if float(one) != float(text)]


def _signs(gold: str) -> list[str]:
    if gold in ("0", "-0") or "\\pm" in gold or re.search(r"[=<>,]|\\(?:le|ge|in|text)", gold):
        return []
    return [gold[1:] if gold.startswith("-") and not re.search(r"(?<=.)[+-]", gold)
            else f"-({gold})"]


def _decimals(gold: str) -> list[str]:
    """A decimal cut off, rounded, or longer; an exact value to three digits."""
    if re.fullmatch(r"-?\d*\.\d{2,}", gold):
        return [gold[:-1], gold + "4", f"{float(gold):.1f}"] if gold[-1] != "0" else [gold + "4"]
    if match := re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold):
        value = int(match[2]) / int(match[3])
        near = [f"{value:.{places}f}" for places in (1, 2, 3)]
        return [match[1] + one for one in [*near, f"{value + 0.0004:.4f}"]
                if abs(float(one) - value) > 1e-9 and len(one.replace(".", "").lstrip("0")) < 4] \
            + [f"{match[1]}{value + 0.0004:.4f}"]
    if match := re.fullmatch(r"(\d*)\\sqrt\{(\d+)\}", gold):
        value = int(match[1] or 1) * int(match[2]) ** 0.5
        return [f"{value:.1f}", f"{value:.2f}"[:-1] + "9", f"{value + 0.002:.3f}"]
    return [f"{gold}.4", f"{gold}.001", f"{int(gold) - 0.004:.3f}"] if gold.isdecimal() else []


def _order(gold: str) -> list[str]:
    """The parts of a tuple turned, one left out, one added."""
    match = re.fullmatch(r"(\\left)?([(\[])(.*)(\\right)?([)\]])", gold)
    inner = (match[3] if match else gold).removesuffix("\\right")
    parts = [part.strip() for part in inner.split(",")]
    if len(parts) < 2 or re.search(r"[{}(\[]", re.sub(r"\\frac\{[^{}]*\}\{[^{}]*\}", "", inner)) \
            or re.fullmatch(r"-?\d{1,3}(,\\?!?\d{3})+", gold):
        return []
    left, right = (match[2], match[5]) if match else ("", "")
    out = [parts[:-1], [*parts, "97"], [*parts[:-1], "97"]]
    if match and parts != parts[::-1]:
        out.append(parts[::-1])
    return [left + ", ".join(one) + right for one in out]


def _brackets(gold: str) -> list[str]:
    if "," not in gold or not re.search(r"[(\[]", gold) or "pmatrix" in gold:
        return []
    turned = {"(": "[", "[": "("}
    place = next(i for i, char in enumerate(gold) if char in turned)
    return [gold[:place] + turned[gold[place]] + gold[place + 1:]] if "infty" not in \
        gold[place:place + 10] else []


def _structure(gold: str) -> list[str]:
    out = [gold.replace("\\sqrt", "", 1), gold.replace("\\sqrt", "\\sqrt[3]", 1),
           gold.replace("\\pi", "", 1), gold.replace("\\pi", "\\pi^2", 1),
           gold.replace("\\frac", "\\binom", 1), gold.replace("\\pm", "+", 1),
           gold.replace("\\infty", "9", 1), gold.replace("\\cup", "\\cap", 1),
           re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", gold, count=1),
           re.sub(r"(?<=\d)i\b", "", gold, count=1), re.sub(r"_\{?\d+\}?", "_{7}", gold, count=1),
           re.sub(r"\{pmatrix\}(.*?)&(.*?)\\\\", r"{pmatrix}\2&\1\\\\", gold, count=1)]
    same = re.match(r"\\frac\{(.*)\}\{\1\}$", gold)
    return [] if same else [one for one in out if one.strip() and one != gold]


def _words(gold: str) -> list[str]:
    """Words and conditions that make another answer of it, or two answers."""
    wrong = "96" if "97" in gold else "97"
    if re.search(r"\\text|[=<>]|\\(?:le|ge|in)\b", gold):
        return [f"{gold} \\text{{ or }} {wrong}"]
    if gold == "0":
        return [f"0 \\text{{ or }} {wrong}", "\\text{not } 0"]
    return [f"\\text{{at least }} {gold}", f"\\text{{not }} {gold}", f"{gold} \\text{{ squared}}",
            f"{gold} \\text{{ or }} {wrong}", f"{wrong} = {gold}", f"{gold}, {wrong}",
            f"{gold} \\text{{ if }} n \\text{{ is odd}}", f"\\text{{half of }} {gold}",
            f"{gold} \\text{{ thousand}}", f"\\text{{the square root of }} {gold}",
            f"{wrong} \\to {gold}", f"{gold} \\star {wrong}", f"\\phantom{{{gold}}}",
            f"{gold} \\text{{ more than }} x", f"x + {gold}", f"{gold} \\ne {wrong}"]


def _units(gold: str) -> list[str]:
    if "\\circ" in gold:
        return [re.sub(r"\^\{?\\circ\}?", "\\\\text{ rad}", gold),
                re.sub(r"\^\{?\\circ\}?", "\\\\text{ meters}", gold)]
    swaps = (("cm", "mm"), ("inches", "feet"), ("\\$", "€"), ("^2", "^3"), ("minutes", "hours"),
             ("east", "west"), ("even", "odd"))
    return [gold.replace(old, new) for old, new in swaps if old in gold]


_OTHER = {"+": "-", "-": "+", "^": "_"}
RULES: dict[str, Mutate] = {
    "digit": _each(_NUMBER, _digits), "sign": _whole(_signs),
    "operator left out": _each(_OPERATORS, lambda _: [" "]),
    "operator exchanged": _each(_OPERATORS, lambda one: [_OTHER.get(one, "+")]),
    "number left out": _each(_NUMBER, lambda _: [""]),
    "number squared": _each(_NUMBER, lambda n: [f"{{{n}}}^2"] if float(n) > 1 else []),
    "letter exchanged": _each(_LETTER, lambda one: ["w" if one != "w" else "u", one.swapcase()]),
    "decimal": _whole(_decimals), "order": _whole(_order), "brackets": _whole(_brackets),
    "structure": _whole(_structure), "words": _whole(_words), "units": _whole(_units)}


def squeezed(text: str) -> str:
    """`text` without layout, to leave out changes that change nothing."""
    return re.sub(r"[\s{}]|\\(?:left|right|[,!;])", "", text)


def near_misses(gold: str) -> Iterator[tuple[str, str]]:
    """(rule, changed gold), each text once."""
    seen = {squeezed(gold)}
    for name, rule in RULES.items():
        for text in rule(gold):
            if text.strip() and (bare := squeezed(text)) not in seen:
                seen.add(bare)
                yield name, text
