"""Clock times and dates: a kind of answer of their own, never arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september",
           "october", "november", "december"]
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTH = "|".join(f"{name}|{name[:3]}\\.?|{name[:4]}\\.?" for name in _MONTHS)
_DAY = "|".join(f"{name}|{name[:3]}\\.?|{name[:4]}\\.?" for name in _DAYS)
_LAYOUT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|textit|textrm|rm)(?![A-Za-z])"
                     r"|\\[!,;:> ]|[{}$~]")
_HALF = r"(?P<half>a\.?\s*m\.?|p\.?\s*m\.?|noon|midnight)"
_CLOCK = re.compile(rf"(?:at )?(?P<hour>\d{{1,2}})(?:\s*:\s*(?P<minute>\d\d)"
                    rf"(?:\s*:\s*(?P<second>\d\d))?|\s*o'?\s*clock)?\s*{_HALF}?\.?", re.I)
_NAMED = re.compile(r"(?:at )?(?:12 )?(noon|midnight)\.?", re.I)
_ORDINAL = r"(\d{1,2})(?:\s*(?:st|nd|rd|th))?"
_DATES = (
    (re.compile(r"(\d{4})-(\d\d)-(\d\d)"), "ymd"),
    (re.compile(rf"({_MONTH}) {_ORDINAL}(?:,? (\d{{4}}))?", re.I), "mdy"),
    (re.compile(rf"{_ORDINAL}(?: of)? ({_MONTH}),?(?: (\d{{4}}))?", re.I), "dmy"),
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


@lru_cache(maxsize=5_000)
def moment(text: str, statement: str = "", timed: bool = False) -> Moment | None:
    """The time or date that the whole `text` is. A bare 3:15 is one only if `statement` asks for
    a time, or if it is compared with a time (`timed`)."""
    if len(text) > 80 or not re.search(r"[A-Za-z:-]", text):
        return None
    plain = " ".join(_LAYOUT.sub(" ", text).split()).strip(" .")
    plain = re.sub(r"\s*:\s*", ":", plain)
    return _clock(plain, timed or bool(_ABOUT_TIME.search(statement))) or _date(plain)


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
