"""Time and memory of a divergence step beside its peers, and what top-k storage loses.

  python benchmarks/divergence.py [--tokens 8192 --vocabulary 151936 --hidden 1536 3584]
  python benchmarks/divergence.py --teacher FOLDER --student FOLDER --rows rows.parquet

The first prints milliseconds and peak GB of forward and backward over student states; peers that
are not installed are left out. The second prints, for stored outcomes by top_k and mass, outcomes
and bytes a token and the share of the dense KL(teacher, student) that is lost.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from pipeline.sft.divergence import Dense, LossWeights, TopK, distillation_loss
from pipeline.sft.target_store import TopKLogprobs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def steps(tokens: int, vocabulary: int, student: int, teacher: int,
          k: int) -> dict[str, Callable[[], torch.Tensor]]:
    """The losses measured, each over fresh gradients of the same states and matrices."""
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=DTYPE).div_(shape[-1] ** 0.5)

    hidden, weight = random(tokens, student), random(vocabulary, student)
    hidden.requires_grad_(), weight.requires_grad_()
    states, matrix = random(tokens, teacher) * 8, random(vocabulary, teacher)
    labels = torch.randint(vocabulary, (tokens,), device=DEVICE)
    ids = torch.stack([torch.randperm(vocabulary, device=DEVICE)[:k] for _ in range(16)])
    ids = ids.repeat(tokens // 16 + 1, 1)[:tokens]
    logps = torch.log_softmax(torch.randn(tokens, k + 1, device=DEVICE) * 3, -1)
    top, dense = TopK(ids, logps[:, :k], logps[:, k]), Dense(states, matrix)

    def ours(signal: TopK | Dense | None, mix: LossWeights) -> Callable[[], torch.Tensor]:
        return lambda: distillation_loss(hidden, weight, None, labels, signal, mix)[0]

    found = {"limbeck top-k KL": ours(top, LossWeights()),
             "limbeck top-k JSD(0.5)": ours(top, LossWeights(0.5)),
             "limbeck dense KL": ours(dense, LossWeights()),
             "limbeck dense JSD(0.5)": ours(dense, LossWeights(0.5)),
             "limbeck cross-entropy": ours(None, LossWeights()),
             "torch cross-entropy": lambda: torch.nn.functional.cross_entropy(
                 (hidden @ weight.T).float(), labels, reduction="sum")}
    found |= _peers(hidden, weight, states, matrix)
    return {name: _fresh(step, [hidden, weight]) for name, step in found.items()}


def _fresh(step: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable:
    """`step` with the gradients of the last one dropped, as an optimizer does."""
    def run() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        return step()

    return run


def _peers(hidden: torch.Tensor, weight: torch.Tensor, states: torch.Tensor,
           matrix: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def trl(beta: float) -> Callable[[], torch.Tensor]:
        return lambda: ChunkedDivergenceFunction.apply(hidden, weight, None, states, matrix, None,
                                                       beta)[0].sum()

    found = {"TRL dense KL": trl(0.0), "TRL dense JSD(0.5)": trl(0.5)}
    if find_spec("liger_kernel") and DEVICE == "cuda":
        from liger_kernel.transformers import LigerFusedLinearJSD

        liger = LigerFusedLinearJSD(jsd_beta=0.5)
        found["Liger fused JSD(0.5)"] = lambda: liger(hidden, weight, states, matrix, None)
    return found


def measure(step: Callable[[], torch.Tensor], repeats: int) -> tuple[float, float]:
    """(median milliseconds, peak GB) of forward and backward."""
    times = []
    for _ in range(repeats + 1):
        _synchronise(reset=True)
        began = time.perf_counter()
        step().backward()
        _synchronise()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else 0.0
    return 1e3 * sorted(times[1:])[repeats // 2], peak


def _synchronise(reset: bool = False) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def products(tokens: int, vocabulary: int, student: int, teacher: int) -> Callable:
    """The bare matrix products of a dense step: the teacher's one and the student's three."""
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=DTYPE)

    h, w, s, m = (random(tokens, student), random(vocabulary, student), random(tokens, teacher),
                  random(vocabulary, teacher))
    one = torch.zeros(1, device=DEVICE, requires_grad=True)

    def run() -> torch.Tensor:
        for chunk in range(0, tokens, 4096):
            part = slice(chunk, chunk + 4096)
            logits = h[part] @ w.T
            torch.mm(s[part], m.T, out=logits)
            torch.mm(logits, w), torch.mm(logits.T, h[part])
        return one.sum()

    return run


def storage_error(teacher: str, student: str, rows_path: Path, limit: int) -> None:
    """Print outcomes, bytes and lost divergence for a grid of top_k and mass."""
    from pipeline.config.sft import LogitsConfig
    from pipeline.sft.target_store import TargetStore, score_rows
    from pipeline.sft.teacher_scorer import (
        TransformersScorer,
        hidden_states,
        load_teacher,
        output_layer,
    )
    from pipeline.student.token_rows import IGNORED, Rows, read_rows

    rows = Rows(*(column[:limit] for column in vars(read_rows(rows_path)).values()))
    models = [load_teacher(name, "auto") for name in (teacher, student)]
    weights = [output_layer(model)[0].float() for model in models]
    states = []
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        trained = torch.tensor(labels[1:] != IGNORED, device=DEVICE)
        fed = {"input_ids": torch.tensor(ids, device=DEVICE)[None]}
        with torch.no_grad():
            states.append([hidden_states(m, fed)[0, :-1][trained].float() for m in models])

    def divergence_of(targets: TargetStore | None) -> float:
        """The KL summed over all rows, dense or over stored outcomes."""
        signals = [Dense(t, weights[0]) if targets is None else _on_device(targets.of_row(i))
                   for i, (t, _) in enumerate(states)]
        return sum(distillation_loss(s, weights[1], None, s.new_zeros(len(s), dtype=torch.long),
                                     signal, LossWeights())[1].item()
                   for signal, (_, s) in zip(signals, states, strict=True))

    dense, most = divergence_of(None), 64
    tokens = sum(len(s) for _, s in states)
    print(json.dumps({"tokens": tokens, "dense KL a token": round(dense / tokens, 4)}))
    scorer = TransformersScorer(LogitsConfig(teacher=teacher, top_k=most), len(weights[1]))
    whole = functools.cache(lambda: scorer(samples))
    samples: list = []
    for k, mass in itertools.product((8, 16, 32, most), (0.98, 0.99, 0.995, 0.999, 1.0)):
        def cut(given: list, k: int = k) -> list:
            samples[:] = given
            return [_first(scored, k) for scored in whole()]

        with tempfile.TemporaryDirectory() as folder:
            counts = score_rows(rows, cut, mass, limit, Path(folder), {}, lambda n: None)
            lost = 1 - divergence_of(TargetStore.read(Path(folder), rows)) / dense
        print(json.dumps({"top_k": k, "mass": mass, "lost": round(lost, 5), **counts}), flush=True)


def _on_device(top: TopK) -> TopK:
    return TopK(top.ids.to(DEVICE), top.logps.to(DEVICE), top.tail_logprob.to(DEVICE))


def _first(scored: TopKLogprobs, k: int) -> TopKLogprobs:
    """The k likeliest outcomes; the others join the rest."""
    dropped = np.logaddexp.reduce(scored.logps[:, k:], 1, initial=-np.inf)
    return TopKLogprobs(scored.ids[:, :k], scored.logps[:, :k],
                        np.logaddexp(scored.tail_logprob, dropped))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, nargs=2, default=(1536, 3584))
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--limit", type=int, default=64, help="token rows that are measured")
    given = parser.parse_args()
    if given.teacher:
        return storage_error(given.teacher, given.student, given.rows, given.limit)
    sizes = (given.tokens, given.vocabulary, *given.hidden)
    measured = {"bare products": products(*sizes), **steps(*sizes, given.top_k)}
    for name, step in measured.items():
        milliseconds, peak = measure(step, given.repeats)
        print(json.dumps({"step": name, "ms": round(milliseconds, 2), "peak_gb": round(peak, 2)}))
    return None


if __name__ == "__main__":
    main()
