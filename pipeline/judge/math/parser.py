"""A cleaned answer to a small expression tree.

The tree is nested tuples: ("n", Fraction), ("v", name), ("c", "pi"|"e"|"i"|"oo"),
("f", name, arguments…) and ("+", "*", "/", "^") with operands. Nothing is ever evaluated as code.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipeline.judge.math.latex import FUNCTIONS

MAX_DEPTH = 40
MAX_FACTORS = 60
"""In one product, whose tree is as deep as it is long."""
Tree = tuple[Any, ...]


class UnreadableError(ValueError):
    """The text is no expression that this reader knows."""


TOKEN = re.compile(r"\\[A-Za-z]+|‹[^›]*›|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?|[A-Za-z]+|\S")
_GREEK = frozenset([
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "phi", "psi",
    "omega", "rho", "sigma", "tau", "Delta", "Omega", "Gamma", "ell", "varepsilon", "eta",
    "zeta", "kappa", "nu", "xi", "chi", "prime", "ldots"])
_OF_SEVERAL = ("gcd", "lcm", "max", "min")
_CLOSE = {"(": ")", "[": "]", "{": "}", "⦃": "⦄"}


@lru_cache(maxsize=50_000)
def read(text: str) -> Tree:
    """Read one expression in clean() spelling. Raises UnreadableError if it is none."""
    reader = _Reader(_letters(TOKEN.findall(text)))
    tree = reader.sum()
    if reader.peek():
        raise UnreadableError(f"{reader.peek()!r} is left over")
    return tree


def has_symbol(tree: Tree) -> bool:
    return tree[0] == "v" or any(has_symbol(part) for part in tree[1:] if isinstance(part, tuple))


def _letters(tokens: list[str]) -> list[str]:
    """Split runs of letters into function names and single letters ("2ab" is 2·a·b)."""
    out: list[str] = []
    for token in tokens:
        if token.isalpha() and token.isascii() and len(token) > 1 and token[0] != "\\":
            known = token in FUNCTIONS or token == "pi"
            out += ["\\" + token] if known else list(token)
        else:
            out.append(token)
    return out


class _Reader:
    """Recursive descent over tokens; depth bounded, so that no text can exhaust the stack."""

    def __init__(self, tokens: list[str]) -> None:
        if len(tokens) > 500:
            raise UnreadableError("more than 500 tokens")
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def take(self, token: str) -> bool:
        if self.peek() == token:
            self.at += 1
            return True
        return False

    def sum(self) -> Tree:
        terms = [self.signed()]
        while self.peek() in ("+", "-"):
            terms.append(self.signed())
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def signed(self) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.next() == "-"
        tree = self.product()
        return ("*", ("n", Fraction(-1)), tree) if negative else tree

    def product(self) -> Tree:
        tree = self.power()
        for _ in range(MAX_FACTORS):
            token = self.peek()
            if token in ("\\cdot", "*"):
                self.next()
                tree = ("*", tree, self.signed() if self.peek() in ("+", "-") else self.power())
            elif token == "/":
                self.next()
                tree = ("/", tree, self.power())
            elif token and (token[0] in "\\([{" or token[0].isalnum()) and self.starts(token):
                if tree[0] == "n" and token[0].isdigit():
                    return self.fail()
                mixed = tree[0] == "n" and token == "\\frac" and tree[1].denominator == 1
                right = self.power()
                if (right[0] == "n" and token[0].isdigit()) or ("n", Fraction(0)) in (tree, right):
                    raise UnreadableError("two numbers without an operator")
                whole = mixed and right[0] == "/" and right[1][0] == right[2][0] == "n"
                tree = ("+" if whole else "*", tree, right)
            else:
                return tree
        raise UnreadableError("too many factors")

    @staticmethod
    def starts(token: str) -> bool:
        name = token[1:]
        return token[0] != "\\" or name in FUNCTIONS or name in _GREEK or name in (
            "frac", "pi", "infty", "binom", "lfloor", "lceil", "overline", *_OF_SEVERAL)

    def power(self) -> Tree:
        base = self.atom()
        for _ in range(MAX_FACTORS):
            if self.take("!"):
                base = ("f", "double factorial" if self.take("!") else "factorial", base)
            elif self.take("^"):
                exponent = self.argument()
                if exponent != ("v", "\\circ"):
                    return ("^", base, exponent)
                base = ("f", "degree", base)
            elif self.take("'") or self.take("\\prime"):
                base = ("v", f"{base[1]}'") if base[0] == "v" else self.fail()
            else:
                return base
        raise UnreadableError("too many powers")

    def fail(self) -> Any:
        raise UnreadableError(f"unexpected {self.peek()!r}")

    def argument(self) -> Tree:
        """A braced group, one digit, one letter or one command, as TeX reads an argument."""
        token = self.peek()
        if token == "{":
            return self.group()
        if token == "\\circ":
            return ("v", self.next())
        if token.isdecimal() and len(token) > 1:
            self.tokens[self.at:self.at + 1] = list(token)
        if token == "-":
            return self.signed()
        return self.atom()

    def group(self) -> Tree:
        close = _CLOSE[self.next()]
        if close == "}" and self.take("\\circ"):
            tree: Tree = ("v", "\\circ")
        else:
            tree = self.sum()
        return tree if self.take(close) else self.fail()

    def atom(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("nested too deep")
        tree = self._atom()
        self.depth -= 1
        return tree

    def _atom(self) -> Tree:
        token = self.peek()
        if token in _CLOSE and token != "⦃":
            return self.group()
        if token == "|":
            self.next()
            tree = self.sum()
            return ("f", "abs", tree) if self.take("|") else self.fail()
        self.next()
        if token[:1].isdecimal() or (token[:1] == "." and len(token) > 1):
            return self.number(token)
        if len(token) == 1 and token.isalpha():
            return self.symbol(token)
        if token[:1] == "\\":
            return self.command(token[1:])
        raise UnreadableError(f"unexpected {token!r}")

    def number(self, token: str) -> Tree:
        exponent = re.split("[eE]", token)[1:]
        if len(token) > 400 or (exponent and abs(int(exponent[0])) > 300):
            raise UnreadableError("number too long")
        if self.take("_"):
            return ("v", f"{token}_{self.subscript()}")
        return ("n", Fraction(token))

    def symbol(self, token: str) -> Tree:
        if self.take("_"):
            return ("v", f"{token}_{self.subscript()}")
        return ("c", token) if token in "ei" else ("v", token)

    def subscript(self) -> str:
        if not self.take("{"):
            return self.next()
        start = self.at
        while self.peek() not in ("}", ""):
            self.next()
        self.next()
        return "".join(self.tokens[start:self.at - 1])

    def command(self, name: str) -> Tree:
        if name in ("pi", "infty"):
            return ("c", "pi" if name == "pi" else "oo")
        if name == "frac":
            return ("/", self.argument(), self.argument())
        if name == "binom":
            return ("f", "binom", self.argument(), self.argument())
        if name in ("overline", "bar"):
            return self.conjugate()
        if name in _OF_SEVERAL:
            return self.of_several(name)
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return self.symbol("\\" + name) if name != "ldots" else ("v", "…")
        if name in ("lfloor", "lceil"):
            tree = self.sum()
            return ("f", name[1:], tree) if self.take("\\r" + name[1:]) else self.fail()
        raise UnreadableError(f"unknown command {name!r}")

    def conjugate(self) -> Tree:
        """The complex conjugate of a number; of a symbol it could be anything."""
        tree = self.argument()
        return ("f", "conj", tree) if not has_symbol(tree) else self.fail()

    def of_several(self, name: str) -> Tree:
        """gcd(12, 18), max{3, 5}."""
        close = _CLOSE.get(self.next(), "")
        items = [self.sum()]
        while self.take(","):
            items.append(self.sum())
        return ("f", name, *items) if self.take(close) else self.fail()

    def root(self) -> Tree:
        index: Tree = ("n", Fraction(2))
        if self.peek() == "[":
            index = self.group()
        return ("^", self.argument(), ("/", ("n", Fraction(1)), index))

    def function(self, name: str) -> Tree:
        base, power = None, None
        if name == "log" and self.take("_"):
            base = self.argument()
        if self.take("^"):
            power = self.argument()
            if power in (("n", Fraction(-1)), ("*", ("n", Fraction(-1)), ("n", Fraction(1)))):
                name, power = "arc" + name, None
        argument = self.operand()
        tree: Tree = ("f", name, argument)
        if base:
            tree = ("/", ("f", "ln", argument), ("f", "ln", base))
        return ("^", tree, power) if power else tree

    def operand(self) -> Tree:
        """What a function without brackets applies to: a product up to the next sign."""
        if self.peek() in _CLOSE:
            tree = self.group()
            return ("^", tree, self.argument()) if self.take("^") else tree
        tree = self.power()
        for _ in range(MAX_FACTORS):
            if not (token := self.peek()) or not (
                    token[0].isalnum() or token in ("\\pi", "\\frac", "(")
                    or token[1:] in _GREEK):
                return tree
            tree = ("*", tree, self.power())
        raise UnreadableError("too many factors")
