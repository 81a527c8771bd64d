"""Words round a number: which are harmless, which name a thing, which change the number.

Harmless is what is known to be: units, words that only state, names of quantities, and things
counted (plural nouns). Every other word makes the number another answer, or none that is known.
"""

from __future__ import annotations

import re

from pipeline.judge.math.forms.number_words import NUMBER_WORDS
from pipeline.judge.math.units import unit_of

_STATING = frozenset(["approximately", "approx",
    "the", "a", "an", "is", "are", "be", "was", "were", "equals", "equal", "to", "exactly",
    "only", "just", "precisely", "of", "in", "total", "answer", "answers", "final", "value",
    "values", "result", "solution", "there", "so", "thus", "therefore", "hence", "then", "we",
    "get", "obtain", "have", "has", "it", "its", "that", "which", "all", "altogether", "must",
    "should", "will", "our", "this", "these", "and", "i", "n"])
_QUANTITIES = frozenset([
    "area", "perimeter", "circumference", "length", "width", "height", "depth", "radius",
    "diameter", "volume", "distance", "speed", "velocity", "acceleration", "force", "energy",
    "power", "slope", "gradient", "intercept", "mean", "average", "median", "mode", "range",
    "variance", "deviation", "probability", "number", "count", "amount", "price", "cost", "age",
    "angle", "measure", "size", "weight", "mass", "time", "temperature", "maximum", "minimum",
    "max", "min", "remainder", "quotient", "coefficient", "rate", "profit", "loss", "salary",
    "income", "score", "side", "sides", "base", "hypotenuse", "diagonal", "period", "frequency",
    "amplitude", "wavelength", "pressure", "current", "voltage", "resistance", "density",
    "charge", "population", "percentage", "percent", "fraction", "ratio", "difference", "sum",
    "product", "discriminant", "determinant", "largest", "smallest", "greatest", "maximal",
    "minimal", "possible", "required", "desired", "correct"])
_OPERATIONS = frozenset(["of", "difference", "sum", "product", "ratio", "fraction", "percent",
                         "percentage", "power", "quotient"])
"""Before "of" a number these take something from it."""
_CLOSED = frozenset([
    "about", "above", "across", "after", "against", "almost", "along", "although", "among",
    "and", "any", "anything", "around", "as", "at", "before", "behind", "below", "beneath",
    "beside", "besides", "between", "beyond", "both", "but", "by", "can", "cannot", "could",
    "despite", "down", "during", "each", "either", "else", "every", "everything",
    "except", "fewer", "few", "for", "from", "greater", "hardly", "if", "in", "inside",
    "instead", "into", "it", "larger", "least", "less", "like", "many", "may", "maybe", "might",
    "minus", "modulo", "more", "most", "much", "must", "near", "nearly", "neither", "never",
    "no", "nobody", "non", "none", "nor", "not", "nothing", "off", "on", "once", "one", "ones",
    "only", "onto", "or", "other", "others", "otherwise", "out", "outside", "over", "past",
    "perhaps", "plus", "possibly", "probably", "rather", "roughly", "same", "several", "should",
    "since", "smaller", "some", "something", "sometimes", "squared", "cubed", "factorial",
    "than", "that", "their", "then", "though", "through", "throughout", "till", "to", "toward",
    "under", "unless", "unlike", "until", "unknown", "up", "upon", "very", "via", "wait", "was",
    "what", "when", "where", "whether", "which", "while", "who", "whose", "why", "with",
    "within", "without", "would", "wrong", "yet", "always", "unless", "times",
    "equals", "exceeds", "is", "are", "does", "has", "plus", "minus", "versus",
    "this", "thus", "sines", "cosines", "cotangents", "cosecants", "logarithms", "factorials",
    "reciprocals", "exponentials"]) | NUMBER_WORDS
_AFTER = frozenset(["total", "altogether", "each", "long", "old", "wide", "tall", "high", "deep",
                    "apart", "away", "exactly", "respectively", "approximately", "approx"])
_PLURALS = frozenset([
    "people", "children", "men", "women", "feet", "teeth", "geese", "mice", "fish", "sheep",
    "deer", "students", "dice", "vertices", "indices", "matrices", "axes", "bases", "radii",
    "loci", "foci", "formulae", "maxima", "minima", "series", "species", "data", "criteria",
    "money", "water", "food", "rice", "sugar", "milk", "paper", "time", "work", "credit",
    "homework", "salt", "ways"])


_IN_ALL = (["in", "total"], ["in", "all"])


def _words(text: str) -> list[str]:
    return re.sub(r"[‹›.,:;!()'’\\{}^-]+", " ", text).casefold().split()


def harmless_after(text: str, statement: str = "", single: bool = False) -> bool:
    """Whether `text` after a number is a unit or things counted; `single` after 1."""
    words = _words(text)
    while words and (words[-1] in _AFTER or words[-2:] in _IN_ALL):
        words = words[:-2] if words[-2:] in _IN_ALL else words[:-1]
    if not words or unit_of(" ".join(re.sub(r"[‹›.]", " ", text).split())) is not None \
            or unit_of(" ".join(words)) is not None:
        return True
    if len(words) > 4 or any(word in _CLOSED or word.isdigit() for word in words):
        return False
    head = words[words.index("of") - 1] if "of" in words[1:] else words[-1]
    plural = (head.endswith("s") and not head.endswith(("ss", "us", "is"))) or head in _PLURALS
    return plural or (single and head.isascii()) or (bool(statement) and bool(
        re.search(rf"\b{re.escape(head)}s?\b", statement, re.I)))


def harmless_before(text: str, statement: str = "") -> bool:
    """Whether `text` before a number only states it or names the quantity."""
    words = _words(text)
    if words[-1:] == ["of"] and set(words[-2:-1]) & _OPERATIONS:
        return False
    known = _STATING | _QUANTITIES
    if all(word in known for word in words):
        return True
    said = set(_words(statement)) if statement and "of" not in words else set()
    return all(word in known or (word in said and word not in _CLOSED) for word in words)


def only_states(text: str) -> bool:
    """Whether `text` says no more than that an answer follows: "the answer is"."""
    return all(word in _STATING for word in _words(text))


def is_name(text: str) -> bool:
    """Whether `text` names something without a word that bounds, denies or counts."""
    return not any(word in _CLOSED - {"in", "each", "for", "by"} for word in _words(text))


def content(text: str) -> list[str]:
    """The words of `text` that do more than state; a capital A inside is a name."""
    text = re.sub(r"(?<=[a-z] )A\b", "A_", text)
    return [word.removesuffix("s") if len(word) > 3 else word for word in _words(text)
            if word not in _STATING]


_COPULAS = frozenset([
    "is", "are", "be", "must", "must", "should", "was", "were", "a", "an", "the", "that", "it",
    "has", "to", "of"])
_MARKERS = re.compile(r"^\s*,?\s*(?:for(?: all| any| every| each)?|where|when(?:ever)?|if|with"
                      r"|provided(?: that)?|given(?: that)?|such that|assuming(?: that)?"
                      r"|as long as)\b\s*", re.I)
_DOMAIN = re.compile(r"\\in\s*(?:\\mathbb\s*)?\{?\s*[ZNRQCℝℤℕ]\s*\}?"
                     r"(?:\s*[_^]\s*\{?\s*(?:[>*+]|\\ge)?\s*0?\s*\}?)?")
_UNIVERSAL = re.compile(r"(?:for )?(?:all|any|every|each|arbitrary|some)\b|\bintegers?\b|\breals?\b"
                        r"|\bconstants?\b|\barbitrary\b|\bparameters?\b", re.I)


def comparable(text: str) -> str:
    """A text without the words that only link: "n must be even" says what "n is even" says."""
    return " ".join(word for word in _words(re.sub(r"\\[A-Za-z]+", " ", text))
                    if word not in _COPULAS)


def bare_condition(text: str) -> str:
    """A condition without the word that begins it."""
    return _MARKERS.sub("", text.replace("‹", " ").replace("›", " ")).strip(" ,.")


def is_universal(text: str, alone: bool = False) -> bool:
    """Whether a condition only says what its letters stand for: "k an integer", "for all n".

    `alone`: the other answer has none, so "for all positive integers" adds nothing either.
    """
    plain = _DOMAIN.sub(" integer ", text)
    plain = plain.replace("\\forall", " for all ")
    return bool(_UNIVERSAL.search(plain)) and not re.search(
        r"\d|[=<>]|\\(?:le|ge|ne)\b|\b(?:even|odd|prime|not|except|" + (
            "but" if alone else r"positive|negative|non\w*") + r")\b", plain)
