"""Other notations of the same thing in one spelling: transposes, binomials, periods, rows."""

from __future__ import annotations

import re

from pipeline.judge.math.units import unit_of

_T = r"(?:\\(?:mathsf|mathrm|mathtt|mathit|mathbf|text|textsf|textrm|rm|sf)\s*\{?\s*T\s*\}?" \
     r"|\\(?:top|intercal|transpose|mathsf\s+T)(?![A-Za-z]))"
_TRANSPOSED = re.compile(rf"\^\s*(?:\{{\s*{_T}\s*\}}|{_T})|(?<=[A-Z])\s*\^\s*\{{?\s*T\s*\}}?"
                         r"(?![A-Za-z])")
_COLUMN = re.compile(r"[(\[]([^()\[\]=]+,[^()\[\]=]+)[)\]]\s*\^\s*\{?\s*(?:T|\\top)\s*\}?")
_ROWS = re.compile(r"\[\s*((?:\[[^\[\]]+\]\s*,\s*)+\[[^\[\]]+\])\s*\]")
_DIAGONAL = re.compile(r"\\(?:operatorname|mathrm|text)\s*\{\s*diag\s*\}\s*\(([^()=]+)\)")
_CHOOSE = re.compile(r"(?<![\w)}\]])(?:\{\s*\}\s*)?[_^]\s*\{?\s*(\d{1,3})\s*\}?\s*([CP])"
                     r"\s*_\s*\{?\s*(\d{1,3})\s*\}?|(?<![A-Za-z\\])([CP])\s*\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)(?=\s*=)")
_COMBINATIONS = re.compile(r"\s*(?:\\(?:mathrm|text|rm)\s*\{\s*C\s*\}|C)\s*(?:"
                           r"_\s*\{?\s*(\d{1,3})\s*\}?\s*\^\s*\{?\s*(\d{1,3})\s*\}?"
                           r"|\^\s*\{?\s*(\d{1,3})\s*\}?\s*_\s*\{?\s*(\d{1,3})\s*\}?)\s*")
"""C_5^2 and C^2_5, of 5 things 2."""
_PERIOD = re.compile(r"(\.\d*)\\dot\s*\{?\s*(\d)\s*\}?(?:(\d*)\\dot\s*\{?\s*(\d)\s*\}?)?")
_DECIMAL_COMMA = re.compile(r"(?<![\d,}.])(\d+)\s*\{\s*,\s*\}\s*(\d{1,2}|\d{4,})(?![\d{])")
_ZERO_COMMA = re.compile(r"(?<![\d,}.])0\s*\{\s*,\s*\}\s*(\d+)(?![\d{])")
_ABOUT = r"(?:‹?\s*)(?:about|approx(?:imately)?\.?|roughly)\b"
_APPROXIMATELY = re.compile(
    rf"(?<=[^\s(=<>,])\s*[,;]?\s*\(\s*(?:\\approx|\\text\s*\{{\s*(?:or )?{_ABOUT}\s*\}})"
    r"\s*([\d.,]+)\s*\)$"
    rf"|(?<=[^\s(=<>,])\s*,?\s*\\text\s*\{{\s*,?\s*(?:\(|or |which is |i\.e\. )\s*{_ABOUT}\s*\}}"
    r"\s*([\d.,]+)\s*\)?$")
_NEARLY = re.compile(r"\\(?:simeq|doteq|approxeq|thickapprox|cong(?=\s*-?[\d.]))(?![A-Za-z])")
_BARE_VECTOR = re.compile(r"\\(vec|mathbf|boldsymbol|overrightarrow)\s+([A-Za-z])(?![A-Za-z])")
_IF = r"\\text\s*\{\s*,?\s*(?:if|for|when)\s*\}"
_TWO_CASES = re.compile(rf"\s*([^,;&]+?),?\s*{_IF}([^,;&]+?)\s*"
                        r"(?:[,;]|\\text\s*\{\s*,?\s*and\s*\})\s*"
                        rf"(?:\\(?:quad|qquad)\s*)?([^,;&]+?),?\s*"
                        rf"(?:{_IF}([^,;&]+)|\\text\s*\{{\s*(otherwise|else)\.?\s*\}})\.?\s*")
_LOW, _HIGH = r"(>|\\geq?(?![A-Za-z])|\\geqslant)", r"(<|\\leq?(?![A-Za-z])|\\leqslant)"
_AND = r"\s*(?:\\text\s*\{\s*and\s*\}|\\land(?![A-Za-z]))\s*"
_BETWEEN = tuple(re.compile(rf"\s*([a-z])\s*{one}\s*([^<>=,\\]+?){_AND}\1\s*{other}\s*([^<>=,\\]+)")
                 for one, other in ((_HIGH, _LOW), (_LOW, _HIGH)))
_REAL = re.compile(r"^\s*([a-z])\s*\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*[,:|]?\s*"
                   r"(?:\\text\s*\{\s*(?:and|where|with)\s*\})?\s*(?=\1\s*\\neq?(?![A-Za-z]))")
_INTEGRATION = re.compile(r"\+\s*\\(?:text|mathrm)\s*\{\s*(?:an? |some )?"
                          r"(?:arbitrary )?const(?:ant|\.)?\s*\}\s*$")
_UNITS = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]+)\}\s*(?:\\cdot|\\times)\s*"
                    r"\\(?:text|mathrm)\s*\{([^{}]+)\}")
_SIGNS = re.compile(r"^\s*(?:\\(?:therefore|Rightarrow|implies|Longrightarrow)(?![A-Za-z])|∴|⇒)"
                    r"|(?:\\(?:checkmark|qed|blacksquare|Box|square|qedhere)(?![A-Za-z])|[✓✔∎□■])\s*$")
_DEFINED = re.compile(r"\\(?:coloneqq|triangleq|eqqcolon)(?![A-Za-z])|:=|≜|≔")
_OUT_OF = re.compile(r"\s*\\text\s*\{\s*(\d+) (to|in|out of) (\d+)\s*\}\s*"
                     r"|\s*(\d+) (in|out of) (\d+)\s*")
_HALF_LINE = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\s*([+-])\s*\}?"
                        r"|_\s*\{\s*([<>])\s*0\s*\})(?!\w)")
_CODE = re.compile(r"(?<![A-Za-z])(USD|EUR|GBP|CHF|JPY|CNY|RMB|INR|SEK|NOK|PLN|BRL|MXN|RUB|KRW)\s*"
                   r"(\d(?:[\d,]*\d)?(?:\.\d+)?)$")
_ROW_END = re.compile(r"\\cr(?![A-Za-z])")
_COMMA = re.compile(r"\\(?:text|mathord|mathpunct|mathinner)\s*\{\s*,\s*\}")
_SHORT = 300
"""Characters of a text that patterns of quadratic time may see."""


_MARK = re.compile(r"[^\d\sa-z.,+*/(){}^\\-]|\{\s*,|\d (?:in|out of) \d"
                   r"|\\(?!(?:[dt]?frac|sqrt|pi|left|right|cdot|infty)(?![A-Za-z]))")
"""What each of these notations has: most answers have none, and are not looked at further."""


def plain_notation(text: str) -> str:
    """`text`, still LaTeX, with these notations in their one spelling."""
    if not _MARK.search(text):
        return text
    text = _CODE.sub(r"\2\\text{ \1}", _DEFINED.sub("=", _SIGNS.sub("", text)))
    if "[" in text:
        text = _ROWS.sub(_matrix_of_rows, text)
    if "^" in text:
        text = _COLUMN.sub(_column, _TRANSPOSED.sub(r"^{\\top}", text))
    if "_" in text or "=" in text:
        text = _CHOOSE.sub(_chosen, text)
        if match := _COMBINATIONS.fullmatch(text):
            n, k = sorted(map(int, filter(None, match.groups())), reverse=True)
            text = f"\\binom{{{n}}}{{{k}}}"
    if "\\" in text:
        text = _DIAGONAL.sub(_diagonal, _PERIOD.sub(_overlined, text))
        text = _NEARLY.sub(r"\\approx ", _BARE_VECTOR.sub(r"\\\1{\2}", text))
        if len(text) <= _SHORT:
            text = _APPROXIMATELY.sub(lambda m: f" \\approx {m[1] or m[2]}", text)
        text = _REAL.sub("", _INTEGRATION.sub("+ C", _UNITS.sub(_product_of_units, text)))
        text = _HALF_LINE.sub(lambda m: r"(0, \infty)" if (m[1] or m[2]) in "+>" else
                              r"(-\infty, 0)", text)
        text = _between(_in_cases(text)) if len(text) <= _SHORT else text
        text = _COMMA.sub("{,}", _ROW_END.sub(r"\\\\", text))
    if match := _OUT_OF.fullmatch(text):
        part, said, whole = filter(None, match.groups())
        text = f"{part}:{whole}" if said == "to" else f"\\frac{{{part}}}{{{whole}}}"
    if "{" in text:
        text = _DECIMAL_COMMA.sub(r"\1.\2", _ZERO_COMMA.sub(r"0.\1", text))
    return text


def _in_cases(text: str) -> str:
    """"2x if x < 1, 3 if x ≥ 1" as a function by cases."""
    if not (match := _TWO_CASES.fullmatch(text)) or match[2].count("=") == match[3].count("=") == 1:
        return text
    first, when, second, then, other = match.groups()
    then = then or rf"\text{{{other}}}"
    return rf"\begin{{cases}} {first} & {when} \\ {second} & {then}\end{{cases}}"


def _between(text: str) -> str:
    """"x < 1 and x > -1" as -1 < x < 1."""
    for at, pattern in enumerate(_BETWEEN):
        if match := pattern.fullmatch(text):
            name, *sides = match.groups()
            over, high, under, low = sides if at == 0 else (*sides[2:], *sides[:2])
            turned = "<" if under == ">" else "\\le"
            return f"{low} {turned} {name} {over} {high}"
    return text


def _product_of_units(match: re.Match[str]) -> str:
    known = unit_of(match[1].strip()) and unit_of(match[2].strip())
    return f"\\text{{{match[1]} {match[2]}}}" if known else match[0]


def _matrix_of_rows(match: re.Match[str]) -> str:
    """[[1, 2], [3, 4]] as a matrix; rows of different lengths stay as they are."""
    rows = [row.split(",") for row in re.findall(r"\[([^\[\]]+)\]", match[1])]
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return match[0]
    return _matrix(rows)


def _matrix(rows: list[list[str]]) -> str:
    return r"\begin{pmatrix}" + r" \\ ".join("&".join(row) for row in rows) + r"\end{pmatrix}"


def _column(match: re.Match[str]) -> str:
    return _matrix([[cell] for cell in match[1].split(",")])


def _diagonal(match: re.Match[str]) -> str:
    cells = match[1].split(",")
    return _matrix([[cell if i == j else "0" for j in range(len(cells))]
                    for i, cell in enumerate(cells)])


def _chosen(match: re.Match[str]) -> str:
    """nCk and C(n, k) as binomials, nPk as a quotient of factorials."""
    n, kind, k = match[1] or match[5], match[2] or match[4], match[3] or match[6]
    if int(k) > int(n):
        return match[0]
    return f"\\binom{{{n}}}{{{k}}}" if kind == "C" else f"\\frac{{{n}!}}{{{int(n) - int(k)}!}}"


def _overlined(match: re.Match[str]) -> str:
    return f"{match[1]}\\overline{{{match[2]}{match[3] or ''}{match[4] or ''}}}"
