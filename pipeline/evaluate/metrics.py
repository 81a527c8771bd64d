"""avg@k, pass@k and maj@k over problems and samples, with 95 % confidence intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from math import comb, sqrt
from typing import Any

Seeds = Mapping[int | None, Sequence[dict]]
"""The judged samples of a model by training seed; None: it was trained with one."""
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantile of Student's t for 1 to 9 degrees of freedom."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of `values`, one per problem: 95 % normal interval, clipped to [0, 1].

    Problems, not samples, are the independent draws: average a problem's samples first.
    """
    return _interval(values, 0.0, 1.0)


def _interval(values: Sequence[float], lowest: float,
              highest: float) -> tuple[float, float, float]:
    """(mean, low, high) of `values`, which lie between `lowest` and `highest`."""
    n = len(values)
    mean = sum(values) / n
    if max(values) - min(values) < 1e-9:
        # Equal values, or one: the normal interval would have no width. Wilson's bound on the share
        # of problems that none of n looked like; those may have any value.
        unseen = 1.96 ** 2 / (n + 1.96 ** 2)
        return mean, mean - unseen * (mean - lowest), mean + unseen * (highest - mean)
    half = 1.96 * sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, max(lowest, mean - half), min(highest, mean + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that one of k draws from n samples is right (arXiv 2107.03374, eq. 1).

    Raises ValueError if n < k: then the samples do not say.
    """
    if n < k:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    return 1.0 if n - right < k else 1.0 - comb(n - right, k) / comb(n, k)


def majority(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """Score of the most frequent answer (self-consistency, arXiv 2203.11171), the mean of ties."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == most]
    right = {answer for answer, score in zip(answers, scores, strict=True) if score == 1.0}
    return sum(answer in right for answer in winners) / len(winners)


def summarise(rows: Sequence[dict]) -> dict[str, float | int]:
    """Metrics of one model on one benchmark, as fractions of 1.

    Each row has problem_id, score (None: left out as unjudged), vote (its answer in maj@k),
    cut_off and completion_tokens, and may have `restated`.
    """
    groups = _judged_by_problem(rows)
    scores = [[r["score"] for r in group] for group in groups.values()]
    k = min((len(group) for group in scores), default=0)
    if not k:
        return {"problems": 0, "samples": 0, "unjudged": len(rows)}
    means = [sum(group) / len(group) for group in scores]
    average, low, high = mean_interval(means)
    out: dict[str, float | int] = {
        "avg": average, "ci_low": low, "ci_high": high, "problems": len(groups), "samples": k,
        "cut_off": sum(r["cut_off"] for r in rows) / len(rows),
        "mean_tokens": sum(r["completion_tokens"] for r in rows) / len(rows),
        "unjudged": sum(r["score"] is None for r in rows),
        "restated": sum(r.get("restated", False) for r in rows)}
    at_k = [pass_at_k(len(g), sum(s == 1.0 for s in g), k) for g in scores]
    majorities = [majority([r["vote"] for r in g], [r["score"] for r in g])
                  for g in groups.values()]
    for name, values in (("pass", at_k), ("maj", majorities)):
        out[name], out[f"{name}_low"], out[f"{name}_high"] = mean_interval(values)
    return out


def summarise_seeds(by_seed: Seeds) -> dict[str, Any]:
    """`summarise` of one seed; of several their mean, each seed, and an interval over training.

    `training_low` to `training_high` is mean ± sqrt(1.96² s_p²/P + t² s_s²/S): s_p is the deviation
    of P problems' means over S seeds, s_s that of the seeds' means, t of S - 1 degrees of freedom.
    """
    each = {seed: summarise(rows) for seed, rows in by_seed.items()}
    first = next(iter(each.values()))
    if len(each) == 1 or any("avg" not in found for found in each.values()):
        return first
    out: dict[str, Any] = {key: sum(found[key] for found in each.values()) / len(each)
                           for key in first}
    out |= {key: first[key] for key in ("problems", "samples")}
    out["unjudged"], out["restated"] = (sum(found[key] for found in each.values())
                                        for key in ("unjudged", "restated"))
    means = {seed: _problem_means(rows) for seed, rows in by_seed.items()}
    found = _over_seeds(list(means.values()), 0.0, 1.0)
    out["avg"], out["ci_low"], out["ci_high"] = found["interval"]
    return {**out, **{key: found[key] for key in ("training_low", "training_high")},
            "seeds": {str(seed): one for seed, one in each.items()}}


def _over_seeds(by_seed: Sequence[Mapping[str, float]], lowest: float,
                highest: float) -> dict[str, Any]:
    """The interval of problems' means over seeds, and with several the one over training too."""
    problems = [name for name in (by_seed[0] if by_seed else ())
                if all(name in means for means in by_seed)]
    if not problems:
        return {"interval": (0.0, lowest, highest)}
    seeds = len(by_seed)
    mean, low, high = _interval([sum(means[name] for means in by_seed) / seeds
                                 for name in problems], lowest, highest)
    found: dict[str, Any] = {"interval": (mean, low, high)}
    if seeds > 1:
        each = [sum(means[name] for name in problems) / len(problems) for means in by_seed]
        spread = sum((value - mean) ** 2 for value in each) / (seeds - 1) / seeds
        trained = STUDENT_T[min(seeds - 1, len(STUDENT_T)) - 1] ** 2 * spread
        found |= {"each": each,
                  "training_low": max(lowest, mean - sqrt((mean - low) ** 2 + trained)),
                  "training_high": min(highest, mean + sqrt((high - mean) ** 2 + trained))}
    return found


def difference(after: Seeds, before: Seeds) -> dict[str, Any]:
    """`interval` (mean, low, high) of the problems' differences in mean score, `after` - `before`.

    Paired by problem and, where both have several, by seed; then as in `summarise_seeds`.
    Problems judged for only one are left out; without any judged for both it is (0, -1, 1).
    """
    both = len(after) > 1 and len(before) > 1
    seeds = [seed for seed in after if seed in before] if both else \
        list(after if len(after) > 1 else before)
    gains = []
    for seed in seeds:
        now, then = (_problem_means(_one(rows, seed)) for rows in (after, before))
        gains.append({name: now[name] - then[name] for name in now if name in then})
    return _over_seeds(gains, -1.0, 1.0)


def _one(by_seed: Seeds, seed: int | None) -> Sequence[dict]:
    return by_seed[seed] if seed in by_seed else next(iter(by_seed.values()))


def differences(models: Mapping[str, Seeds]) -> dict[str, dict[str, Any]]:
    """{model: {other: `difference`}} of any two models."""
    out: dict[str, dict[str, Any]] = {name: {} for name in models}
    for model, other in permutations(models, 2):
        out[model][other] = difference(models[model], models[other])
    return out


def paired_gain(rows: Sequence[dict], base: Sequence[dict]) -> tuple[float, float, float]:
    """(mean, low, high) of the problems' differences in mean score: `rows` minus `base`.

    Paired, so the 95 % interval is that of the gain itself.
    """
    return difference({None: rows}, {None: base})["interval"]


def _problem_means(rows: Sequence[dict]) -> dict[str, float]:
    return {name: sum(row["score"] for row in group) / len(group)
            for name, group in _judged_by_problem(rows).items()}


def _judged_by_problem(rows: Sequence[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        if row["score"] is not None:
            groups[row["problem_id"]].append(row)
    return groups
