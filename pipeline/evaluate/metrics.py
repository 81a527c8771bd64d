"""avg@k, pass@k and maj@k over problems and samples, with 95 % confidence intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import comb, sqrt


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


def paired_gain(rows: Sequence[dict], base: Sequence[dict]) -> tuple[float, float, float]:
    """(mean, low, high) of the problems' differences in mean score: `rows` minus `base`.

    Paired, so the 95 % interval is that of the gain itself. Problems judged for only one are left
    out; without any judged for both it is (0, -1, 1).
    """
    after, before = _problem_means(rows), _problem_means(base)
    gains = [after[name] - before[name] for name in after if name in before]
    if not gains:
        return 0.0, -1.0, 1.0
    return _interval(gains, -1.0, 1.0)


def _problem_means(rows: Sequence[dict]) -> dict[str, float]:
    return {name: sum(row["score"] for row in group) / len(group)
            for name, group in _judged_by_problem(rows).items()}


def _judged_by_problem(rows: Sequence[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        if row["score"] is not None:
            groups[row["problem_id"]].append(row)
    return groups
