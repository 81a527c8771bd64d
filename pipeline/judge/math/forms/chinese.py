"""Chinese answers in LaTeX and English: numerals, set words, units, joining words."""

from __future__ import annotations

import re

from pipeline.judge.math.forms.number_words import CHINESE, chinese

_WORDS = {
    "空集": r"\emptyset ", "实数集": r"\mathbb{R}", "全体实数": r"\mathbb{R}",
    "无解": "no solution", "不存在": "does not exist", "偶数": "even", "奇数": "odd",
    "质数": "prime", "合数": "composite", "素数": "prime", "正确": "correct", "错误": "incorrect",
    "对": "correct", "错": "incorrect", "有理数": "rational", "无理数": "irrational",
    "整数": "integer", "东": "east", "西": "west", "南": "south", "北": "north", "是": "yes",
    "是的": "yes", "否": "no", "不是": "no", "正无穷": r"\infty ", "无穷大": r"\infty ",
    "无穷": r"\infty ", "无数": "infinitely many", "上午": "am", "下午": "pm"}
_UNITS = {
    "毫米": "mm", "厘米": "cm", "分米": "dm", "米": "m", "千米": "km", "公里": "km", "克": "g",
    "千克": "kg", "公斤": "kg", "吨": "ton", "毫升": "mL", "升": "L", "秒": "s", "分": "min",
    "分钟": "min", "小时": "h", "时": "h", "天": "day", "周": "week", "月": "month",
    "个月": "month", "年": "year", "元": "yuan", "美元": "dollar", "度": "degree",
    "牛": "N", "焦": "J", "瓦": "W",
    **dict.fromkeys("个只本人名件条张次种颗组位台辆棵间道题", "things")}
_JOINING = {"或": " or ", "或者": " or ", "和": " and ", "且": " and ", "并且": " and ",
            "与": " and ", "及": " and "}
_RUN = re.compile(r"[〇\u3400-\u9fff]+")
_FORMAL = str.maketrans("壹贰貳叁參肆伍陆陸柒捌玖拾佰仟萬億兩負",
                        "一二二三三四五六六七八九十百千万亿两负")
_NUMBER = re.compile(rf"负?(?:[{CHINESE}]+分之)?(?:\d+(?:\.\d+)?(?:[十百千]?[万亿]+|[百千])"
                     rf"|[{CHINESE}]+(?:点[零〇一二三四五六七八九]+)?)")
_MIXED = re.compile(rf"([{CHINESE}]+)又([{CHINESE}]+分之[{CHINESE}]+)")


def in_latex(text: str) -> str:
    """`text` with the Chinese that is known put in LaTeX; other Chinese stays, as words."""
    if not _RUN.search(text):
        return text
    text = re.sub("(?<=[米克升里元])每(?=小时|分钟|秒|时|天)", "/", text)
    text = _RUN.sub(_word, text.translate(_FORMAL))  # 千克 is a unit before 千 is a thousand
    text = _MIXED.sub(lambda m: chinese(m[1]) + chinese(m[2]), text)
    text = _NUMBER.sub(lambda m: chinese(m[0]) or m[0], text)
    return _RUN.sub(_word, text)


def _word(match: re.Match[str]) -> str:
    run, before = match[0], match.string[:match.start()].rstrip()
    if run in _JOINING:
        return _JOINING[run]
    if run in _WORDS:
        found = _WORDS[run]
        return found if found.startswith("\\") else f"\\text{{{found}}}"
    if before[-1:].isdigit() or before[-1:] in ("}", ")", "/"):
        power = {"平方": "square ", "立方": "cubic "}.get(run[:2], "")
        if unit := _UNITS.get(run[2:] if power else run):
            return f"\\text{{ {power}{unit}}}"
    if not before and _STATING.fullmatch(run):
        return ""
    return run


_STATING = re.compile(r"[^不非没无未多少超大小倍约除减加乘开根反倒]*(?:为|是|等于|共有?|有)")
"""A sentence up to its value, without a word that denies, bounds or reckons."""
