"""How far people agree: Cohen's kappa, Krippendorff's alpha, and a sign test of preferences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

from pipeline.curate.reviews import Line, consensus, latest


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960); None where chance alone agrees."""
    if not pairs:
        return None
    seen = sum(one == other for one, other in pairs) / len(pairs)
    first, second = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    chance = sum(first[name] * second[name] for name in first) / len(pairs) ** 2
    return None if chance == 1 else (seen - chance) / (1 - chance)


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Agreement of any number of raters, nominal, units with gaps allowed (Krippendorff 2011)."""
    units = [unit for unit in units if len(unit) > 1]
    values = Counter(value for unit in units for value in unit)
    total = sum(values.values())
    expected = sum(values[one] * (total - values[one]) for one in values)
    if not expected:
        return None
    observed = sum(sum(count * (len(unit) - count) for count in Counter(unit).values())
                   / (len(unit) - 1) for unit in units)
    return 1 - (total - 1) * observed / expected


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact probability of so uneven a result if both were equally good."""
    n, few = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2 ** n)


def summarise_reviews(lines: Sequence[Line]) -> dict[str, Any]:
    """People, traces and verdicts, and how far the people agree on traces that several saw."""
    by_key = {key: {who: line["verdict"] for who, line in by.items() if line["verdict"]}
              for key, by in latest(lines).items()}
    people = Counter(who for by in by_key.values() for who in by)
    kappas = [{"one": one, "other": other, "traces": len(pairs), "kappa": cohen_kappa(pairs)}
              for one, other in combinations(sorted(people), 2)
              if (pairs := [(by[one], by[other]) for by in by_key.values()
                            if one in by and other in by])]
    return {"people": dict(people.most_common()), "traces": sum(bool(by) for by in by_key.values()),
            "verdicts": dict(Counter(v for by in by_key.values() for v in by.values())),
            "shared": sum(len(by) > 1 for by in by_key.values()), "kappas": kappas,
            "alpha": krippendorff_alpha([list(by.values()) for by in by_key.values()]),
            "preferences": preferences(lines)}


def preferences(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Of each two models compared blind: wins, ties and the sign test."""
    newest = {(*sorted(line["pair"]), line["reviewer"]): line for line in lines
              if line.get("pair") is not None}
    found: dict[tuple[str, str], Counter[str]] = {}
    for line in newest.values():
        one, other = sorted(line["models"])
        won = {"a": line["models"][0], "b": line["models"][1]}.get(line["prefer"], "")
        found.setdefault((one, other), Counter())[won] += 1
    return [{"one": one, "other": other, "one_wins": wins[one], "other_wins": wins[other],
             "ties": wins[""], "p": sign_test(wins[one], wins[other])}
            for (one, other), wins in found.items()]


def against_judge(by_key: Mapping[str, Mapping[str, Line]],
                  scores: Mapping[str, float | None]) -> dict[str, int]:
    """Of the traces seen by people, on how many a verdict meets a score, and how often they differ.
    """
    said = {key: consensus(by_key[key]) for key in by_key if key in scores}
    both = [key for key, word in said.items()
            if word in ("good", "bad") and scores[key] is not None]
    return {"seen": sum(bool(word) for word in said.values()), "compared": len(both),
            "differ": sum((said[key] == "good") != (scores[key] == 1.0) for key in both)}
