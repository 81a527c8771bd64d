"""Cleaned answers in other words: without remarks, congruences as expressions, |x| as x."""

from __future__ import annotations

import re

_ASIDE = re.compile(r"\s*,?\s*(?:‹(?:for|where|with|when|if)\b[^›\d]*›|\\forall\b"
                    r"|,\s*\(?\s*[a-z]\s*\\in\s*[ZNQℝ]\b)"
                    r"(?:[^\d=+]|(?:[<>]|\\(?:ge|le|ne)|[ZN] *[_^] *\{?) *0)*$")
_REMARK = re.compile(r"\s*‹(?:is|are|which|since|because)\b(?!.*\b(?:not|no|never)\b).*$")
_CONGRUENT = re.compile(r"(?:\(?[a-z]\)?\s*\\equiv|‹[^›]*\bcongruent to›)\s*([-\d\s,]+?)\s*\(?\s*"
                        r"(?:\\[pb]?mod\b|‹mod(?:ulo)?›)\s*\{?\s*(\d{1,9})\s*\}?\s*\)?")


def congruence(text: str) -> str:
    """n ≡ 2, 3 (mod 4) as "4k + 2, 4k + 3"; "" of anything else."""
    if not (match := _CONGRUENT.fullmatch(text)) or not (modulus := int(match[2])):
        return ""
    rests = [int(rest) % modulus for rest in re.findall(r"-?\d{1,18}", match[1])]
    return ", ".join(f"{modulus}k + {rest}" for rest in rests)


_DISTANCE = re.compile(r"\|\s*([a-z])\s*\|\s*(<|>|\\le|\\ge)\s*([^<>=|,\\]+)")


def distance(text: str) -> str:
    """|x| < a as "-a < x < a", |x| > a as both its rays; "" of anything else."""
    if not (match := _DISTANCE.fullmatch(text)):
        return ""
    name, sign, bound = match.groups()
    if sign in ("<", "\\le"):
        return f"-({bound}) {sign} {name} {sign} {bound}"
    turned = {">": "<", "\\ge": "\\le"}[sign]
    return f"{name} {turned} -({bound}) , {name} {sign} {bound}"


def without_aside(text: str) -> str:
    """A cleaned answer up to its first aside ("(n, 1) for all n, m" is (n, 1))."""
    return _ASIDE.sub("", text)


def without_remark(text: str) -> str:
    """A cleaned gold up to the words that say what it is ("x = 1 is the only solution")."""
    return _REMARK.sub("", text)
