"""Clock times and dates: a kind of answer of their own, never arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pipeline.judge.math.forms.languages import calendar
from pipeline.judge.math.forms.number_words import in_words

_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september",
           "october", "november", "december"]
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTH = "|".join(f"{name}|{name[:3]}\\.?|{name[:4]}\\.?" for name in _MONTHS)
_DAY = "|".join(f"{name}|{name[:3]}\\.?|{name[:4]}\\.?" for name in _DAYS)
_LAYOUT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|textit|textrm|rm)(?![A-Za-z])"
                     r"|\\[!,;:> ]|[{}$~]")
_HALF = r"(?P<half>a\.?\s*m\.?|p\.?\s*m\.?|noon|midnight)"
_CLOCK = re.compile(rf"(?:at )?(?P<hour>\d{{1,2}})(?:\s*:\s*(?P<minute>\d\d)"
                    rf"(?:\s*:\s*(?P<second>\d\d))?)?(?:\s*o'?\s*clock)?\s*{_HALF}?\.?", re.I)
_NAMED = re.compile(r"(?:at )?(?:12 )?(noon|midnight)\.?", re.I)
_ORDINAL = r"(\d{1,2})(?:\s*(?:st|nd|rd|th))?"
_DATES = (
    (re.compile(r"(\d{4})-(\d\d)-(\d\d)"), "ymd"),
    (re.compile(rf"({_MONTH}) {_ORDINAL}(?:,? (\d{{4}}))?", re.I), "mdy"),
    (re.compile(rf"(?:the )?{_ORDINAL}(?: of)? ({_MONTH}),?(?: (\d{{4}}))?", re.I), "dmy"),
    (re.compile(rf"({_MONTH}),? (\d{{4}})", re.I), "my"),
    (re.compile(rf"({_MONTH})", re.I), "m"))
_WEEKDAY = re.compile(rf"(?:on )?(?:the )?({_DAY})s?(?:, (.*))?\.?", re.I)
_ABOUT_TIME = re.compile(r"\b(?:time|clock|o'clock|when|a\.?m|p\.?m|hours?)\b", re.I)


@dataclass(frozen=True)
class Moment:
    """A clock time in minutes (`half` says whether am or pm is known), or parts of a date."""

    minutes: float | None = None
    half: bool = False
    year: int | None = None
    month: int | None = None
    day: int | None = None
    weekday: int | None = None


_SIGNS = re.compile(r"[A-Za-z:/-]|[日月点时周期拜]")
_FOREIGN = re.compile(r"[\\=+*^_<>()\[\]|&!%]")
"""Signs of no time and no date."""


@lru_cache(maxsize=5_000)
def moment(text: str, statement: str = "", timed: bool = False) -> Moment | None:
    """The time or date that the whole `text` is. A bare 3:15 is one only if `statement` asks for
    a time, or if it is compared with a time (`timed`)."""
    if len(text) > 80 or not _SIGNS.search(text):
        return None
    plain = " ".join(_LAYOUT.sub(" ", text).split()).strip(" .")
    if _FOREIGN.search(plain):
        return None
    plain = _as_clock(calendar(_in_digits(re.sub(r"\s*:\s*", ":", plain))))
    return _clock(plain, timed or bool(_ABOUT_TIME.search(statement))) or _date(plain)


_YEAR_FIRST = re.compile(r"(\d{4})[/.](\d{1,2})[/.](\d{1,2})")
_YEAR_LAST = re.compile(r"(\d{1,2})[/.](\d{1,2})[/.](\d{4})")
_CHINESE_DATE = re.compile(r"(?:(\d{4})年)?(\d{1,2})月(\d{1,2})[日号]")
_CHINESE_CLOCK = re.compile(
    r"(上午|下午|晚上|早上|凌晨|中午)?\s*(\d{1,2})[点时](?:(半)|(\d{1,2})分)?整?")
_CHINESE_HALF = {"上午": "am", "早上": "am", "凌晨": "am", "下午": "pm", "晚上": "pm", "中午": "pm"}


def _in_digits(text: str) -> str:
    """Chinese dates and times, and 2022/3/5, in digits."""
    if date := _CHINESE_DATE.fullmatch(text):
        return f"{date[1]}-{date[2]:0>2}-{date[3]:0>2}" if date[1] else \
            f"{_MONTHS[(int(date[2]) - 1) % 12]} {date[3]}"
    if time := _CHINESE_CLOCK.fullmatch(text):
        minute = "30" if time[3] else f"{time[4] or 0:0>2}"
        half = _CHINESE_HALF.get(time[1] or "")
        return f"{time[2]}:{minute} {half}" if half else f"{time[2]}:{minute} o'clock"
    if date := _YEAR_FIRST.fullmatch(text):
        return f"{date[1]}-{date[2]:0>2}-{date[3]:0>2}"
    if date := _YEAR_LAST.fullmatch(text):
        first, second = sorted((int(date[1]), int(date[2])))
        if second > 12 >= first or first == second:  # else day and month could change places
            return f"{date[3]}-{first:02}-{second:02}"
    return text


_SPOKEN = re.compile(r"(?:at )?(?:(half|(?:a )?quarter|[a-z-]+|\d{1,2})(?: minutes?)? (past|to) )?"
                     r"([a-z]+|\d{1,2})(?: o'? ?clock)?(?: (am|pm))?", re.I)
_TIME_OF_DAY = re.compile(r"\s*\bin the (morning|afternoon|evening)\.?$", re.I)
_WITH_H = re.compile(r"(\d{1,2})\s*(?:h|Uhr)\s*(\d\d)?(?:\s*Uhr)?|(\d{1,2}:\d\d)\s*(?:h|Uhr)")


def _as_clock(text: str) -> str:
    """Half past three, ten o'clock, 6 in the evening, 14h30, 14 Uhr as 3:30 o'clock and so on."""
    text = _TIME_OF_DAY.sub(lambda m: " am" if m[1].lower() == "morning" else " pm", text)
    if (match := _WITH_H.fullmatch(text)) and (match[2] or match[3] or "Uhr" in text):
        return (match[3] or f"{match[1]}:{match[2] or '00'}") + " o'clock" * ("Uhr" in text)
    match = _SPOKEN.fullmatch(text)
    if not match or not (match[2] or "clock" in text.lower()):
        return text
    hour, past = _number(match[3]), _number(match[1] or "")
    if not 1 <= hour <= 12 or not 0 <= past < 60 or (past == 30 and match[2] == "to"):
        return text
    minutes = hour * 60 + (past if (match[2] or "").lower() != "to" else -past)
    surely = not match[2] or "clock" in text.lower() or re.match("(?:at )?(?:half|(?:a )?quarter) ",
                                                                 text, re.I)
    half = match[4] or ("o'clock" if surely else "")  # "ten to one" may be a ratio
    return f"{(minutes // 60 - 1) % 12 + 1}:{minutes % 60:02} {half}"


def _number(word: str) -> int:
    """The whole number of digits or words, "half" of an hour too; -1 of others, 0 of ""."""
    word = word.lower().removeprefix("a ")
    value = {"": 0, "half": 30, "quarter": 15}.get(word, int(word) if word.isdecimal() else None)
    spelt = in_words(word) if value is None else value
    return -1 if spelt is None or spelt != int(spelt) else int(spelt)


def _clock(text: str, timed: bool) -> Moment | None:
    if named := _NAMED.fullmatch(text):
        return Moment(720 if named[1].lower() == "noon" else 0, True)
    match = _CLOCK.fullmatch(text)
    if not match or not (match["half"] or (match["minute"] and timed) or "clock" in text):
        return None
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    half = (match["half"] or "").lower().replace(" ", "").replace(".", "")
    if hour > 24 or minute > 59 or int(match["second"] or 0) > 59:
        return None
    if half in ("noon", "midnight"):
        return Moment(720 if half == "noon" else 0, True) if (hour, minute) == (12, 0) else None
    if half and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (half == "pm")
    elif half and half != ("pm" if hour >= 12 else "am"):
        return None
    known = bool(half) or hour > 12 or hour == 0
    return Moment(hour % 24 * 60 + minute + int(match["second"] or 0) / 60, known)


def _date(text: str) -> Moment | None:
    weekday = None
    if match := _WEEKDAY.fullmatch(text):
        weekday = next(i for i, name in enumerate(_DAYS) if name.startswith(match[1][:3].lower()))
        if match[2] is None:
            return Moment(weekday=weekday)
        text = match[2]
    for pattern, order in _DATES:
        if match := pattern.fullmatch(text):
            parts = dict(zip(order, match.groups(), strict=True))
            month = parts["m"]
            number = int(month) if month.isdecimal() else 1 + next(
                i for i, name in enumerate(_MONTHS) if name.startswith(month[:3].lower()))
            year, day = parts.get("y"), parts.get("d")
            if not 1 <= number <= 12 or not 1 <= int(day or 1) <= 31:
                return None
            return Moment(year=int(year) if year else None, month=number,
                          day=int(day) if day else None, weekday=weekday)
    return None


def same_moment(gold: Moment, answer: Moment) -> bool | None:
    """Equal, not, or None if the answer says more than the gold."""
    if (gold.minutes is None) != (answer.minutes is None):
        return False
    if gold.minutes is not None and answer.minutes is not None:
        apart = gold.minutes - answer.minutes
        return apart == 0 if gold.half and answer.half else apart % 720 == 0
    extra = False
    for name in ("year", "month", "day", "weekday"):
        one, other = getattr(gold, name), getattr(answer, name)
        if one is not None and one != other:
            return False
        extra |= one is None and other is not None
    return None if extra else True
