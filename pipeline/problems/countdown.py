"""The embedded problems: countdown with three numbers, as TinyZero made known for RL.

Reach a target with three numbers from 1 to 9, each used once, by +, - and *, with every
intermediate value in 0..99. All problems are enumerated, so that splits are disjoint.
"""

import itertools
import random
from dataclasses import dataclass

LIMIT = 99


@dataclass(frozen=True)
class Try:
    """Two steps over three numbers: the narrated arithmetic, its value, the whole expression."""

    first: str
    second: str
    value: int
    expression: str


@dataclass(frozen=True)
class Instance:
    """One problem: three sorted numbers and a target that they can make."""

    numbers: tuple[int, int, int]
    target: int

    @property
    def text(self) -> str:
        a, b, c = self.numbers
        return f"Use each of {a}, {b} and {c} exactly once, with +, - and *, to make {self.target}."


def _apply(a: int, operator: str, b: int) -> int | None:
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return value if 0 <= value <= LIMIT else None


def _pairs(a: int, b: int) -> set[tuple[int, str, int]]:
    """The operations on two numbers; sums and products in one order only."""
    low, high = sorted((a, b))
    return {(high, "+", low), (high, "*", low), (high, "-", low)}


def tries(numbers: tuple[int, int, int]) -> list[Try]:
    """Every distinct way to combine the numbers within 0..99."""
    found: dict[str, Try] = {}
    for i, j in itertools.combinations(range(3), 2):
        last = numbers[3 - i - j]
        for a, operator, b in sorted(_pairs(numbers[i], numbers[j])):
            middle = _apply(a, operator, b)
            if middle is not None:
                for step in _second_steps(f"{a}{operator}{b}", middle, last):
                    found.setdefault(step.first + step.second, step)
    return list(found.values())


def _second_steps(first: str, middle: int, last: int) -> list[Try]:
    out = []
    for a, operator, b in sorted(_pairs(middle, last)):
        value = _apply(a, operator, b)
        if value is not None:
            left, right = (f"({first})", str(last)) if a == middle else (str(last), f"({first})")
            out.append(Try(f"{first}={middle}", f"{a}{operator}{b}={value}", value,
                           f"{left}{operator}{right}"))
    return out


def instances(seed: int) -> list[Instance]:
    """Every solvable (numbers, target) pair with a positive target, shuffled by `seed`."""
    pairs = [Instance(numbers, target)
             for numbers in itertools.combinations_with_replacement(range(1, 10), 3)
             for target in sorted({found.value for found in tries(numbers)}) if target > 0]
    random.Random(seed).shuffle(pairs)
    return pairs
