"""What only colours, sizes, spaces or encodes an answer is taken off; what it shows stays.

Text for text what a reader sees: invisible characters, HTML entities, digits of other scripts,
colour and size commands, siunitx and chemistry macros.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache

_INVISIBLE = re.compile("[\u00ad\u061c\u115f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
                        "\ufe00-\ufe0f\ufeff]")
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,6}|#x[0-9A-Fa-f]{1,5});")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎]+")
_SHOWN = {"textcolor": 1, "colorbox": 1, "underline": 0, "uline": 0, "bbox": 0, "centering": 0,
          "fcolorbox": 2, "mathstrut": 0, "smash": 0, "emph": 0, "textsf": 0, "textsc": 0,
          "mathnormal": 0, "bm": 0, "pmb": 0, "scalebox": 1, "rlap": 0, "llap": 0, "textup": 0,
          "mathcolor": 1, "textmd": 0, "textsl": 0, "uuline": 0, "uwave": 0, "framebox": 0,
          "makebox": 0, "mathord": 0, "mathinner": 0, "mathtt": 0, "Aboxed": 0,
          "clap": 0, "resizebox": 2}
"""Commands that show their last argument as it is; how many arguments stand before it."""
_FONTS = ("mathbf", "boldsymbol", "mathit", "mathsf")
_HIDDEN = {"phantom": 1, "hphantom": 1, "vphantom": 1, "hspace": 1, "vspace": 1, "color": 1,
           "mspace": 1, "fontsize": 2, "hskip": 0, "definecolor": 3, "label": 1, "addvspace": 1}
"""Commands that show nothing, with how many arguments."""
_MACRO = re.compile(r"\\(" + "|".join(sorted({*_SHOWN, *_HIDDEN, *_FONTS} | {
    "SI", "qty", "num", "si", "unit", "ang", "ce"}, key=len, reverse=True)) + r")\*?(?![A-Za-z])")
_SIZES = re.compile(r"\\(?:tiny|scriptsize|footnotesize|small|large|Large|LARGE|huge|Huge|"
                    r"scriptstyle|bfseries|itshape|sffamily|normalcolor|nobreak|allowbreak|"
                    r"noindent|enspace|enskip|medspace|thickspace|negthinspace|strut|null|"
                    r"newline|linebreak|nonumber|notag|break|par|medskip|smallskip|upshape|mdseries|"
                    r"rmfamily|ttfamily|slshape|scshape|crampedscriptstyle|scriptscriptstyle|"
                    r"textstyle|displaystyle|normalfont|mathstrut|relax|protect|unskip|hfil|vfill|hss|hfill|bigskip|sf|tt|sl|mathsurround)(?![A-Za-z])")


_ENVIRONMENT = re.compile(
    r"\s*\\begin\{(aligned|gathered|align|gather|equation|displaymath|math|center|split|multline|"
    r"flushleft|flushright|quote)(\*?)\}((?:(?!&|\\\\|\\begin).)*)\\end\{\1\2\}\s*", re.S)
_MARKUP = re.compile(r"\s*(?:\*\*([^*]+)\*\*|__([^_]+)__|`+([^`]+)`+|"
                     r"<(b|i|u|em|strong|span|mark|code|big|small|center|font|p|div|tt)"
                     r"(?: [^<>]*)?>(.+)</\4>)\s*", re.S)
_STRETCH = re.compile(r"\\(?:mskip|hskip|kern|mkern|vskip)\s*-?[\d.]+\s*"
                      r"(?:mu|em|ex|pt|mm|cm|in|bp)")


@lru_cache(maxsize=20_000)
def unwrap(text: str) -> str:
    """`text` without wrappings."""
    for _ in range(3):
        if match := _MARKUP.fullmatch(text):
            text = match[1] or match[2] or match[3] or match[5]
        if match := _ENVIRONMENT.fullmatch(text):
            text = match[3]
    if "\\" in text:
        text = _STRETCH.sub(" ", text)
    if "\\" in text:
        text = _SIZES.sub(" ", _macros(text)) if _MACRO.search(text) else _SIZES.sub(" ", text)
    if "&" in text:
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
    return text if text.isascii() else _plain_characters(text)


def _plain_characters(text: str) -> str:
    """Digits of every script, full-width and mathematical letters as ASCII; raised ones as ^{}."""
    text = _INVISIBLE.sub("", text)
    text = _RAISED_RUN.sub(lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda m: f"_{{{m[0].translate(_LOWERED)}}}", text)
    return "".join(char if char < "\x80" else _plain_character(char) for char in text)


def _plain_character(char: str) -> str:
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    if "！" <= char <= "～" or "𝐀" <= char <= "𝟿":
        return unicodedata.normalize("NFKC", char)
    if unicodedata.category(char) == "No" and "⁄" in (form := unicodedata.normalize("NFKC", char)):
        top, _, bottom = form.partition("⁄")
        return f"\\frac{{{top}}}{{{bottom}}}"
    return " " if char.isspace() else char


def _macros(text: str) -> str:
    """Each macro of the tables above replaced by what it shows."""
    out, at = [], 0
    while match := _MACRO.search(text, at):
        out.append(text[at:match.start()])
        name, at = match[1], match.end()
        wanted = _HIDDEN[name] if name in _HIDDEN else _SHOWN.get(name, 0) + 1
        wanted += name in ("SI", "qty")
        found: list[str] = []
        while len(found) < wanted and (end := _argument_end(text, at)):
            found.append(text[at:end].strip()[1:-1])
            at = end
        if len(found) < wanted:
            out.append(match[0])
        else:
            out.append(_shown(name, [_macros(one) for one in found], "".join(out)[-1:]))
    return "".join([*out, text[at:]])


def _argument_end(text: str, at: int) -> int:
    """Where the braces that open at `at` are closed; 0 if none open there."""
    while at < len(text) and text[at] in " \n":
        at += 1
    if at < len(text) and text[at] == "[":
        at = text.find("]", at) + 1
    if at >= len(text) or text[at] != "{":
        return 0
    depth = 0
    for place in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if depth == 0:
            return place + 1
    return 0


def _shown(name: str, found: list[str], before: str) -> str:
    if name in _HIDDEN:
        return " "
    if name in ("SI", "qty"):
        if (unit := _unit_macros(found[1])).startswith("°"):
            return f"{found[0]}^\\circ\\text{{{unit[1:]}}}"
        return f"{found[0]}\\text{{ {_unit_macros(found[1])}}}"
    if name in ("si", "unit"):
        return f"\\text{{ {_unit_macros(found[0])}}}"
    if name == "ang":
        return found[0] + "^\\circ"
    if name == "ce":
        return "\\mathrm{" + re.sub(r"(?<=[A-Za-z)\]])(\d+)", r"_{\1}", found[0]) + "}"
    if name in _FONTS and (len(found[-1]) < 4 or "\\" not in found[-1]):
        return f"\\{name}{{{found[-1]}}}"  # a letter may be a vector, a word a unit
    return f"{{{found[-1]}}}" if before in ("^", "_") else found[-1]


_UNIT_MACRO = {"per": "/", "squared": "^2", "cubed": "^3", "square": "square ", "cubic": "cubic ",
               "percent": "%", "degreeCelsius": "°C", "celsius": "°C", "degree": "°",
               "kg": "kg", "litre": "liter", "ohm": "ohm", "micro": "micro", "tothe": "^"}


def _unit_macros(text: str) -> str:
    """\\kilo\\meter\\per\\hour as "kilometer/hour"."""
    names = re.sub(r"\\([A-Za-z]+)\s*", lambda m: _UNIT_MACRO.get(m[1], m[1]) + (
        "" if m[1] in ("per", "squared", "cubed", "square", "cubic") or m[1] in _PREFIX else " "),
                   text)
    return re.sub(r"\s+(?=[\^/])", "", names).strip()


_PREFIX = frozenset(["nano", "micro", "milli", "centi", "deci", "kilo", "mega", "giga"])
