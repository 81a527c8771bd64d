"""The embedded problems: countdown with three numbers, enumerated, so that splits are exact.

Reach a target with three numbers from 1 to 9, each used once, by +, - and *. Every intermediate
value lies in 0..99. All (numbers, target) pairs are listed, shuffled by the seed and cut into
held-out and train: disjoint by construction. (TinyZero made the task known as a test bed for RL.)
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
    """One problem: three numbers, sorted, and a target that they reach."""

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
    """The operations on two numbers; of a sum or product only one order."""
    low, high = sorted((a, b))
    return {(high, "+", low), (high, "*", low), (high, "-", low)}


def tries(numbers: tuple[int, int, int]) -> list[Try]:
    """Every distinct way to combine the numbers whose values stay within 0..99."""
    found: dict[str, Try] = {}
    for i, j in itertools.combinations(range(3), 2):
        rest = numbers[3 - i - j]
        for a, operator, b in sorted(_pairs(numbers[i], numbers[j])):
            middle = _apply(a, operator, b)
            if middle is not None:
                for one in _second_steps(f"{a}{operator}{b}", middle, rest):
                    found.setdefault(one.first + one.second, one)
    return list(found.values())


def _second_steps(first: str, middle: int, rest: int) -> list[Try]:
    out = []
    for a, operator, b in sorted(_pairs(middle, rest)):
        value = _apply(a, operator, b)
        if value is not None:
            left, right = (f"({first})", str(rest)) if a == middle else (str(rest), f"({first})")
            out.append(Try(f"{first}={middle}", f"{a}{operator}{b}={value}", value,
                           f"{left}{operator}{right}"))
    return out


def instances(seed: int) -> list[Instance]:
    """Every solvable (numbers, target) pair with a positive target, shuffled by `seed`."""
    pairs = [Instance(numbers, target)
             for numbers in itertools.combinations_with_replacement(range(1, 10), 3)
             for target in sorted({one.value for one in tries(numbers)}) if target > 0]
    random.Random(seed).shuffle(pairs)
    return pairs
