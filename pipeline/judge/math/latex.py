"""LaTeX answers to one plain spelling. Words become ‹words›."""

from __future__ import annotations

import re
from functools import lru_cache

from pipeline.judge.math.forms.chinese import in_latex
from pipeline.judge.math.forms.languages import in_english
from pipeline.judge.math.forms.notations import plain_notation
from pipeline.judge.math.forms.wrappings import unwrap

MAX_ANSWER = 2000


_PLAIN = {
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "×": r"\cdot ", "·": r"\cdot ", "÷": "/", "−": "-", "–": "-",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "²": "^2", "³": "^3",
    "，": ",", "،": ",", "（": "(", "）": ")", "：": ":", "；": ";", "≈": r"\approx ", "±": r"\pm ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "∀": r"\forall ",
    "＞": ">", "＜": "<", "＝": "=", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
    "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "≡": r"\equiv ", "、": ",", "‹": "<", "›": ">",
    "<sup>": "^{", "</sup>": "}", "<sub>": "_{", "</sub>": "}", "**": "^",
    "√": r"\sqrt ", "p.m.": "pm", "a.m.": "am", "P.M.": "PM", "A.M.": "AM", "Ω": r"\Omega ",
    "①": "1,", "②": "2,", "③": "3,", "④": "4,", "⑤": "5,", "⑥": "6,"}
_PLAIN_RE = re.compile("|".join(map(re.escape, sorted(_PLAIN, key=len, reverse=True))))
_CURRENCIES = {"¤": "dollar", "€": "euro", "£": "quid", "¥": "yuan", "₹": "rupee", "₽": "ruble",
               "₩": "won"}
_CURRENCY = re.compile(r"(-?)\s*([¤€£¥₹₽₩])\s*(-?\d(?:[\d,]*\d)?(?:\.\d+)?)")
_CURRENCY_AFTER = re.compile(r"(?<=\d)\s*([¤€£¥₹₽₩])")
_CONTROL = {"\f": "\\f", "\b": "\\b", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\v": "\\v"}
_ESCAPED = re.compile("[\f\b\a\v]|\t(?=ext|imes|heta|an|o\\b)|\r(?=ight|ho|angle)")
"""LaTeX whose backslash was read as an escape: "\\frac" as form feed and "rac"."""
_TRIGONOMETRIC = {"tg": "tan", "ctg": "cot", "arctg": "arctan", "arcctg": "arccot", "cosec": "csc"}
_SAME = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le",
         "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "times": "cdot",
         "ast": "cdot", "div": "/", "lbrace": "⦃", "rbrace": "⦄", "colon": ":", "mid": "|",
         "vert": "|", "lvert": "|", "rvert": "|", "lVert": "|", "rVert": "|", "Vert": "|",
         **_TRIGONOMETRIC,
         "dots": "ldots", "cdots": "ldots", "dotsm": "ldots", "varphi": "phi",
         "dotsc": "ldots", "textcirc": "circ", "textdegree": "circ",
         "dotsb": "ldots", "land": "and", "lor": "or", "wedge": "and",
         "vee": "or", "lg": "log", "dbinom": "binom", "tbinom": "binom", "to": "rightarrow"}
_DROP = frozenset([
    "left", "right", "displaystyle", "textstyle", "quad", "qquad", "big", "Big", "bigg", "Bigg",
    "bigl", "bigr", "Bigl", "Bigr", "limits", "boxed", "fbox", "rm", "bf", "it", "mathstrut",
    "hspace", "vspace", "thinspace", "normalsize", "large"])
_WRAP = r"text|mbox|textbf|textit|textrm|texttt|hbox|textnormal|mathtext"
_FONT = r"mathrm|mathbf|mathit|mathcal|mathbb|operatorname\*?|boldsymbol|overrightarrow|vec|boxed" \
        r"|fbox|ensuremath|mathsf"
_TEXT = re.compile(rf"\\(?:{_WRAP})\s*\{{([^{{}}]*)\}}")
_FONTS = re.compile(rf"\\(?:{_FONT})\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}")
_MATRIX = re.compile(r"\\(begin|end)\s*\{([pbvBV]?(?:small)?matrix|array|[dr]?cases|aligned|"
                     r"gathered)\*?\}(?:\s*\{[lcr|@{} ]*\})?")
_BEGIN = {"vmatrix": "\\det ⟦", "cases": "⦃⟦", "dcases": "⦃⟦"}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SPACE = re.compile(r"\\[,;:!> ]|~|\s+|\\(?=\s|$)")
FUNCTIONS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh",
    "cosh", "tanh", "ln", "log", "exp", "sqrt", "cis"])
_WORD = re.compile(
    r"[\u3400-\u9fff]+|(?<![A-Za-z\\_])(?!(?:and|or|pi|in|to)\b|"
    + "|".join(rf"{name}\b" for name in sorted(FUNCTIONS))
    + r")[^\W\d_]{3,}(?:[ '’-]+[^\W\d_]+)*[!?]?")
_WORDS = re.compile(rf"‹[^›]*›|{_WORD.pattern}")
_UNIT2 = re.compile(r"(?<=[\d}])\s*(?<!\\)(cm|mm|km|kg|ft|in|hr|mi|pm|am|PM|AM)\s*(\^\{?[23]\}?)?$"
                    r"|(?<=\d)(?:\s*\^\s*\{?\s*)?‹?(?:th|st|nd|rd)\b›?[\s}]*")


_LAYOUT = {"\\$": "¤", "\\%": "%", "\\langle": "(", "\\rangle": ")", "\\mathbb{R}": "ℝ",
           "\\mathbb R": "ℝ", "\\R ": "ℝ"}
_LAYOUT_RE = re.compile("|".join(map(re.escape, _LAYOUT)))
_ROOT = re.compile(r"\\sqrt  *(\d{2,}|\(\d+\))")
_RUN_ON = re.compile(r"\\(le|ge|ne|in|lt|gt|cdot|times|cup)([a-pru-z])(?![A-Za-z])")
_STRAY = re.compile(r"(?<![\\_^])\{\s*\}|(?<!\.)\.(?=\s*[\])])")
"""Empty groups, and a full stop before a closing bracket."""
_OUTWARD = re.compile(r"([\]\[])(\s*[^\s\[\]()⦃⦄,][^\[\]()⦃⦄,]*,\s*[^\s\[\]()⦃⦄,][^\[\]()⦃⦄,]*)"
                      r"([\]\[])")
_MIXED = re.compile(r"(?<![\w.,/^])(\d{1,4}) +(\d{1,4})/(\d{1,4})(?![\w.,/^])")
_VECTOR = r"\\(?:mathbf|vec|boldsymbol|bm|overrightarrow)\s*(?:\{\s*[A-Za-z]\s*\}|[A-Za-z])"
_CROSS = re.compile(rf"((?:{_VECTOR}|\\nabla)\s*)\\times\s*({_VECTOR}|[A-Za-z])")
_UNIT_VECTOR = re.compile(
    r"\\(?:hat|mathbf|vec|boldsymbol)\s*(?:\{\s*(?:\\(?:mathbf|hat|rm|bf|mathrm|boldsymbol)\s*)?"
    r"\{?\s*\\?([ijk])(?:math)?\s*\}?\s*\}|\s([ijk])(?![A-Za-z]))")
UNIT_VECTORS = {"i": "ɩ", "j": "ɉ", "k": "ꝁ"}
_THOUSANDS = re.compile(r"\s*\{\s*,\s*\}|(?<=\d),\\!\s*(?=\d)|(?<=\d)\\[,!](?=\d{3})")
_DELIMITERS = re.compile(r"\\[()\[\]]")
_BLANKS = re.compile(r"[\s~]+")
_OHM, _MICRO = re.compile(r"(?<=\d)\s*\\Omega\b"), re.compile(r"\\mu\s*‹(?=[a-zA-Z]›)")
_RANGE = re.compile(r"(?<=\d)\s*‹?\s*\bto\b\s*›?\s*(?=\d)")


@lru_cache(maxsize=50_000)
def clean(text: str) -> str:
    """`text` without layout: fonts, spacing, dollars and synonyms gone, words as ‹words›."""
    if text.isascii() and text.isdecimal():
        return text[:MAX_ANSWER]
    text = plain_notation(unwrap(text))
    if _ESCAPED.search(text):
        text = _ESCAPED.sub(lambda m: _CONTROL[m[0]], text)
    text = in_english(_PLAIN_RE.sub(lambda m: _PLAIN[m[0]], text[:MAX_ANSWER].strip(" \n~")))
    if not text.isascii():
        text = in_latex(text)
    text = _LAYOUT_RE.sub(lambda m: _LAYOUT[m[0]], text).replace("$", " ")
    text = _STRAY.sub("", text)
    if "\\" in text and "begin{" not in text:
        text = _DELIMITERS.sub(" ", text)
    if "," in text or "\\!" in text:
        text = _THOUSANDS.sub("", text)
    if "'" in text:
        text = re.sub(r"(?<=\d)'(?=\d{3}(?!\d))", "", text)
    if "\\" in text:
        text = _CROSS.sub(r"\1\\cross \2", _UNIT_VECTOR.sub(_unit_vector, text))
        text = _ROOT.sub(r"\\sqrt{\1}", _RUN_ON.sub(r"\\\1 \2", text))
    text = _commands(text) if "\\" in text else _BLANKS.sub(" ", text)
    text = _WORDS.sub(lambda m: m[0] if m[0][0] == "‹" else f"‹{m[0]}›", _outside(text))
    if not text.isascii():
        text = _CURRENCY.sub(lambda m: f"{m[1]}{m[3]}‹{_CURRENCIES[m[2]]}›", text)
        text = _CURRENCY_AFTER.sub(lambda m: f"‹{_CURRENCIES[m[1]]}›", text)
    text = _RANGE.sub(":", text)
    if "]" in text or "[" in text:
        text = _OUTWARD.sub(lambda m: "[("[m[1] == "]"] + m[2] + "])"[m[3] == "["], text)
    if "\\" in text:
        text = _OHM.sub("‹ohm›", text)
        text = _MICRO.sub("‹μ", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _UNIT2.sub(lambda m: f"‹{m[1] or 'th'}{m[2] or ''}›", _trim(text))
    return _trim(text)


def _unit_vector(match: re.Match[str]) -> str:
    return f" {UNIT_VECTORS[match[1] or match[2]]} "


def _trim(text: str) -> str:
    return text.lstrip(" ,;:").rstrip(" .,;:^")


_JOINED = re.compile(r"‹([^›]*)›|\s*,?\s+(?:and|or|oder|ou|und|et|или)\s+"
                     r"|(?<=[)\]\d])or(?=[(\[\d\\A-Z-])"
                     r"|\\(?:and|or)\b")


_JOINERS = ("and", "or", "oder", "ou", "und", "et", "или", "y", "o", "и")
_JOINER_AT_END = re.compile(rf",?\s*(?:{'|'.join(_JOINERS)})\s+(.*)"
                            rf"|(.*?),?\s+(?:{'|'.join(_JOINERS)})")
_LETTER_UNITS = frozenset("msghLJNWVCKAFT")


def _outside(text: str) -> str:
    """Joining words as separators, also where they stood inside \\text{}."""
    def joined(match: re.Match[str]) -> str:
        if match[1] is None:
            return " , "
        return f"‹{match[1].strip()}›" if _is_unit(match[1], match) else _word(match[1])

    return _JOINED.sub(joined, text)


def _word(text: str) -> str:
    """The content of \\text{}: an expression if it reads as one, else ‹words›."""
    text = text.strip()
    if text in ("m", "s", "g", "h", "L", "J", "N", "W", "V"):
        return f"‹{text}›"
    if re.fullmatch(r"\(?[A-Za-z]\)?|[\d\s./,:+*()=-]*", text):
        return f" {text} "
    if text in _JOINERS:
        return " , "
    if match := _JOINER_AT_END.fullmatch(text):
        return f" , {_word(match[1])}" if match[1] else f"{_word(match[2])} , "
    if text in FUNCTIONS:
        return f"\\{text} "
    if counted := re.fullmatch(r"(-?\d[\d,.]*)\s+([^\W\d_].*)", text):
        return f" {counted[1]} ‹{counted[2]}›"
    return f"‹{text}›" if " " in text or not _WORD.fullmatch(text) else f" {text} "


def _commands(text: str) -> str:
    """LaTeX commands to their one spelling."""
    if "\\begin" in text:
        text = re.sub(r"\\\\\s*(?:\[[^\]]*\])?|\\(?=[\d-])", "⏎", text)
        text = _MATRIX.sub(lambda m: _BEGIN.get(m[2], "⟦") if m[1] == "begin" else "⟧", text)
    else:
        text = text.replace("\\\\", "\\")  # escaped twice on its way here
    for _ in range(3):
        shown = _TEXT.sub(lambda m: m[1] if _QUOTED.fullmatch(m[1]) else f"‹{m[1]}›", text)
        shown = _FONTS.sub(lambda m: f" {_font(m)} ", shown)
        if shown == text:
            break
        text = shown
    if "." in text:
        text = _REPEATING.sub(_repeating, text)
        text = text.replace("\\left.", "").replace("\\right.", "")
    text = _COMMAND.sub(_command, text)
    text = text.replace("\\{", "⦃").replace("\\}", "⦄").replace("\\|", "|")
    return _BLANK.sub(" ", _SPACE.sub(" ", text))


_BLANK = re.compile(r"\s+")
_QUOTED = re.compile(r"\s*‹[^‹›]*›\s*")
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\s*\\(?:overline|bar)\s*\{?(\d{1,9})\}?")


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} as the fraction that it is."""
    whole, fixed, period = match.groups()
    whole = whole or "0"
    bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
    top = int(whole + fixed + period) - int(whole + fixed)
    return f"\\frac{{{top}}}{{{bottom}}}"


_MEASURE = re.compile(r"[A-Za-zμ]{1,3}(?:(?:\\[, ]|\s|/|\\cdot)+[A-Za-z]{1,3}"
                      r"|\^\s*\{?-?\d\}?)+")


def _font(match: re.Match[str]) -> str:
    """The content of \\mathrm{} and its like: a unit or a word as ‹words›, else as it stands."""
    text = match[1]
    if text in _TRIGONOMETRIC:
        return f"\\{_TRIGONOMETRIC[text]} "
    if text in ("gcd", "lcm", "det", "max", "min"):
        return f"\\{text} "
    if _MEASURE.fullmatch(text):
        return "‹" + re.sub(r"[{}]|\\(?:cdot|[, ])", " ", text).replace("^ ", "^") + "›"
    if text.strip("~ ") in ("m", "s", "g", "h") or _is_unit(text, match):
        return f"‹{text}›"
    return f"‹{text}›" if re.fullmatch(r"[^\W\d_][^\W\d_ ^-]+(\s*\^\{?\d\}?)?", text) \
        and text not in FUNCTIONS else text


def _is_unit(name: str, match: re.Match[str]) -> bool:
    """Whether a letter that stands at `match`, right after a number, is its unit."""
    before = re.sub(r"(?:\\[,; ]|[\s~])+$", "", match.string[:match.start()])
    return name.strip() in _LETTER_UNITS and bool(re.search(r"[\d})]$", before)) \
        and not match.string.startswith("_", match.end())


def _command(match: re.Match[str]) -> str:
    name = _SAME.get(match[1], match[1])
    if name in _DROP:
        return " "
    if name in "<>|/:⦃⦄":
        return name
    return f"\\{name} "


