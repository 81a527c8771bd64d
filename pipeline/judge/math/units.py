"""Units of measurement: what each is in base units, and which words are the same unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

from pipeline.judge.math.forms.number_words import MAGNITUDES, PARTS

Size = str | int | Fraction
_M, _S, _G = {"m": 1}, {"s": 1}, {"g": 1}
_SIZES: tuple[tuple[dict[str, int], Mapping[str, Size]], ...] = (
    (_M, {"m": 1, "meter": 1, "metre": 1, "mètre": 1, "in": "0.0254", "inch": "0.0254",
          "ft": "0.3048", "foot": "0.3048", "feet": "0.3048", "yd": "0.9144", "yard": "0.9144",
          "mi": "1609.344", "mile": "1609.344", "nmi": 1852, "furlong": "201.168",
          "lightyear": 9460730472580800, "angstrom": "1e-10", "Å": "1e-10",
          "fathom": "1.8288", "parsec": 30856775814913673,
          "pc": 30856775814913673, "AU": 149597870700,
          "micron": "1e-6"}),
    ({"m": 2}, {"hectare": 10000, "ha": 10000, "acre": "4046.8564224"}),
    ({"m": 3}, {"l": "0.001", "L": "0.001", "liter": "0.001", "litre": "0.001", "ℓ": "0.001",
                "gallon": "0.003785411784", "gal": "0.003785411784", "quart": "0.000946352946",
                "pint": "0.000473176473", "cc": "0.000001",
                "cup": "0.0002365882365", "tablespoon": "0.00001478676478125",
                "tbsp": "0.00001478676478125", "teaspoon": "0.00000492892159375",
                "tsp": "0.00000492892159375", "barrel": "0.158987294928"}),
    (_S, {"s": 1, "sec": 1, "second": 1, "sekunde": 1, "min": 60, "minute": 60, "h": 3600,
          "hr": 3600, "hour": 3600, "stunde": 3600, "day": 86400, "week": 604800,
          "fortnight": 1209600}),
    ({"month": 1}, {"month": 1, "year": 12, "yr": 12, "decade": 120, "century": 1200}),
    (_G, {"g": 1, "gram": 1, "gramme": 1, "gramm": 1, "lb": "453.59237", "pound": "453.59237",
          "oz": "28.349523125", "ounce": "28.349523125", "ton": 10**6, "tonne": 10**6,
          "carat": "0.2", "quintal": 100000}),
    ({"dollar": 1}, {"dollar": 1, "usd": 1, "cent": "0.01", "¢": "0.01", "buck": 1}),
    *(({name: 1}, {name: 1, code: 1}) for name, code in (
        ("euro", "EUR"), ("yuan", "RMB"), ("quid", "GBP"), ("rupee", "INR"), ("ruble", "RUB"),
        ("won", "KRW"), ("yen", "JPY"), ("peso", "MXN"), ("franc", "CHF"),
        ("krona", "SEK"), ("krone", "NOK"), ("lira", "TRY"), ("zloty", "PLN"), ("baht", "THB"),
        ("shekel", "ILS"), ("dinar", "KWD"), ("dirham", "AED"), ("riyal", "SAR"),
        ("rupiah", "IDR"), ("ringgit", "MYR"), ("forint", "HUF"))),
    ({"g": 1, "m": 2, "s": -2}, {"J": 1000, "joule": 1000, "Wh": 3600000, "cal": 4184,
                                 "erg": "0.0001",
                                 "calorie": 4184, "eV": "1.602176634e-16",
                                 "electronvolt": "1.602176634e-16"}),
    ({"g": 1, "m": 1, "s": -2}, {"N": 1000, "newton": 1000, "dyn": "0.01"}),
    ({"g": 1, "m": 2, "s": -3}, {"W": 1000, "watt": 1000, "VA": 1000, "hp": "745699.87158227"}),
    ({"g": 1, "m": -1, "s": -2}, {"Pa": 1000, "pascal": 1000, "bar": 10**8, "atm": 101325000,
                                  "mmHg": "133322.387415", "torr": Fraction(101325000, 760),
                                  "psi": "6894757.293168"}),
    ({"s": -1}, {"Hz": 1, "hertz": 1}),
    ({"A": 1}, {"A": 1, "amp": 1, "ampere": 1}), ({"A": 1, "s": 1}, {"C": 1, "coulomb": 1}),
    ({"g": 1, "m": 2, "s": -3, "A": -1}, {"V": 1000, "volt": 1000}),
    ({"g": 1, "m": 2, "s": -3, "A": -2}, {"ohm": 1000, "Ω": 1000}),
    ({"g": -1, "m": -2, "s": 4, "A": 2}, {"F": "0.001", "farad": "0.001"}),
    ({"g": 1, "s": -2, "A": -1}, {"T": 1000, "tesla": 1000, "gauss": "0.1"}),
    ({"g": 1, "m": 2, "s": -2, "A": -1}, {"Wb": 1000, "weber": 1000}),
    ({"g": 1, "m": 2, "s": -2, "A": -2}, {"H": 1000, "henry": 1000}),
    ({"g": -1, "m": -2, "s": 3, "A": 2}, {"S": "0.001", "siemens": "0.001"}),
    ({"cd": 1}, {"cd": 1, "candela": 1, "lm": 1, "lumen": 1}),
    ({"cd": 1, "m": -2}, {"lx": 1, "lux": 1}), ({"Bq": 1}, {"Bq": 1, "becquerel": 1}),
    ({"m": 2, "s": -2}, {"Gy": 1, "gray": 1}), ({"Sv": 1}, {"Sv": 1, "sievert": 1}),
    ({"K": 1}, {"K": 1, "kelvin": 1}), ({"mol": 1}, {"mol": 1, "mole": 1}),
    ({"mol": 1, "m": -3}, {"M": 1000, "molar": 1000}),
    ({"m": 1, "s": -1}, {"mph": "0.44704", "kph": Fraction(5, 18), "kmh": Fraction(5, 18),
                         "knot": Fraction(1852, 3600)}),
    ({"rad": 1}, {"rad": 1, "radian": 1}), ({"°": 1}, {"°": 1, "degree": 1, "deg": 1}),
    ({"°C": 1}, {"°C": 1, "celsius": 1}), ({"°F": 1}, {"°F": 1, "fahrenheit": 1}),
    ({"bit": 1}, {"bit": 1, "byte": 8, "KB": 8000, "MB": 8 * 10**6, "GB": 8 * 10**9}),
    ({"dB": 1}, {"dB": 1, "decibel": 1}),
    ({}, {**MAGNITUDES, **{name: Fraction(1, size) for name, size in PARTS.items()
                           if name.endswith("s") and name not in ("seconds",)}}))
_UNITS = {name: (powers, Fraction(size)) for powers, sizes in _SIZES
          for name, size in sizes.items()}
_PREFIXED = frozenset(["m", "g", "s", "l", "L", "J", "N", "W", "Pa", "Hz", "V", "ohm", "C", "A",
                       "F", "T", "K", "mol", "eV", "Wh", "cal", "bit", "byte", "meter", "metre",
                       "gram", "gramm", "liter", "litre", "second", "joule", "newton", "watt",
                       "volt", "calorie", "pascal", "hertz", "ampere", "coulomb", "Ω", "ton",
                       "mètre", "bar", "Wb", "weber", "H", "henry", "S", "siemens", "lm", "Bq",
                       "Gy", "Sv",
                       "farad", "tesla", "mole", "M", "sec", "amp", "electronvolt", "kelvin",
                       "pc", "parsec", "tonne", "rad", "lx"])
_PREFIXES = {"p": -12, "pico": -12, "f": -15, "femto": -15, "T": 12, "tera": 12,
             "h": 2, "hecto": 2, "deca": 1, "peta": 15,
             "n": -9, "μ": -6, "µ": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9,
             "nano": -9, "micro": -6, "milli": -3, "centi": -2, "zenti": -2, "deci": -1,
             "dezi": -1, "kilo": 3, "mega": 6, "giga": 9}
_POWERS = {"square": 2, "squared": 2, "sq": 2, "cubic": 3, "cubed": 3, "cu": 3}
_TOKEN = re.compile(r"°[CF]?|[^\W\d_]+|¢|-?\d|/|\^")
_PER = re.compile(r"\bper\b")
_DEGREES = re.compile(r"\b(?:degrees?|deg) (celsius|fahrenheit)\b", re.I)
_WATT_HOURS = re.compile(r"\b(kilo|mega)?watt[- ]hours?\b", re.I)
_LAYOUT = re.compile(r"[\s‹›(){}.,*·-]|\\cdot")
Unit = tuple[dict[str, int], Fraction]


@lru_cache(maxsize=5_000)
def unit_of(text: str) -> Unit | None:
    """(powers of base units, size in them) of a unit as amount() leaves it; None if not known."""
    plain = _PER.sub("/", text.replace("\\cdot", " "))
    plain = _DEGREES.sub(r"\1", plain)
    plain = _WATT_HOURS.sub(lambda m: (
        {"kilo": "k", "mega": "M"}.get((m[1] or "").lower(), "") + "Wh"), plain)
    tokens = _TOKEN.findall(plain)
    if _LAYOUT.sub("", plain) != "".join(tokens).replace("-", ""):
        return None
    powers: dict[str, int] = {}
    size, sign, waiting = Fraction(1), 1, 1
    last: tuple[dict[str, int], Fraction, int] = ({}, Fraction(1), 0)
    for token in tokens:
        if token == "/":
            sign = -1
        elif token in _POWERS and not token.endswith("d"):
            waiting = _POWERS[token]
        elif token in _POWERS or re.fullmatch(r"-?\d", token):
            base, one, before = last
            if token in _POWERS and abs(before) != 1:
                return None     # square feet squared
            change = (_POWERS.get(token) or int(token)) * (1 if before > 0 else -1) - before
            _multiply(powers, base, change)
            size *= one ** change
        elif token != "^":
            if (named := _named(token)) is None:
                return None
            last = (*named, sign * waiting)
            _multiply(powers, named[0], last[2])
            size *= named[1] ** last[2]
            waiting = 1
    return ({base: n for base, n in powers.items() if n}, size) if last[2] else None


def _multiply(powers: dict[str, int], base: dict[str, int], times: int) -> None:
    for name, power in base.items():
        powers[name] = powers.get(name, 0) + power * times


def _named(token: str) -> Unit | None:
    """Base units and size of one name: km, kilometers, Hours. Short names keep their case."""
    names = [token]
    if len(token) > 2:
        lower = token.lower()
        names += [lower, lower.removesuffix("s"), lower.removesuffix("es"), lower.removesuffix("n"),
                  re.sub("ies$", "y", lower)]
    for name in names:
        if name in _UNITS:
            return _UNITS[name]
    for prefix, power in _PREFIXES.items():
        for name in names:
            if name.startswith(prefix) and name.removeprefix(prefix) in _PREFIXED:
                base, size = _UNITS[name.removeprefix(prefix)]
                return base, size * Fraction(10) ** power
    return None
