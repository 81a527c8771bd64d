"""Dedup, decontamination, packing and filter beside their peers, in one run.

    python benchmarks/data.py [--scale 1.0] [--problems FOLDER] [--out results/data.json]

FOLDER holds problem sets as JSON lines (math_train, gsm8k_train, math500, ...); without it texts
are made up. Peers: datasketch (optional), rensa fed with Python shingles, the eight-gram method
of open-r1 as its description says (lower case, white space, one pass a set), TRL's pack_dataset.
One process; each time is the better of two (datasketch: of one).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.filter_memory import filter_memory

SETS = ("math500", "gsm8k_test", "aime2024", "aime2025", "amc2023", "minerva_math",
        "olympiadbench_math_en")
TRAIN = ("math_train", "gsm8k_train", "deepscaler_train_aime")


def best(function: Callable[[], Any], times: int = 2) -> tuple[float, Any]:
    """(seconds of the fastest call, what the last returned)."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        value = function()
        spent.append(time.perf_counter() - began)
    return min(spent), value


def sentences(folder: Path | None, rng: random.Random) -> list[str]:
    """What traces are strung together of: real ones' sentences, or made-up ones."""
    if folder and (path := folder / "traces_math500_mixed.jsonl").is_file():
        texts = [json.loads(line)["meta"]["response"] for line in path.open(encoding="utf-8")]
        return [s for text in texts for s in text.split(". ") if s.strip()]
    return [" ".join(f"word{rng.randrange(5000)}" for _ in range(12)) for _ in range(20000)]


def dedup(scale: float, folder: Path | None) -> dict[str, dict[str, float]]:
    """Near-duplicates among traces of 12 kB; a fifth are copies with one sentence changed."""
    rng = random.Random(0)
    pool = sentences(folder, rng)
    whole = int(1800 * scale)
    stories = [[rng.choice(pool) for _ in range(120)] for _ in range(whole)]
    copies = [list(stories[i]) for i in rng.sample(range(whole), whole // 5)]
    for copy in copies:
        copy[rng.randrange(120)] = rng.choice(pool)
    texts = [". ".join(story) for story in stories + copies]
    size = sum(map(len, texts)) / 1e6
    out = {}
    for name, method in (("limbeck", _ours), ("rensa", _rensa), ("datasketch", _datasketch)):
        try:
            seconds, flags = best(lambda run=method: run(texts), 1 if name == "datasketch" else 2)
        except ImportError:
            continue
        out[name] = {"seconds": seconds, "MB/s": size / seconds,
                     "copies found": float(np.mean(flags[whole:])),
                     "first texts flagged": float(np.sum(flags[:whole]))}
    return out


def _ours(texts: list[str]) -> np.ndarray:
    from pipeline.curate.near_duplicates import near_duplicates, signatures

    return near_duplicates(signatures(texts), 0.8) >= 0


def _shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[i:i + 5]) for i in range(max(1, len(words) - 4))]


def _rensa(texts: list[str]) -> np.ndarray:
    """Its matrix pipeline; its flags mark both texts of a pair."""
    from rensa import RMinHash, RMinHashLSH

    matrix = RMinHash.digest_matrix_from_token_sets([_shingles(text) for text in texts], 128, 1)
    index = RMinHashLSH(threshold=0.8, num_perm=128, num_bands=16)
    return np.array(index.query_duplicate_flags_matrix_one_shot(matrix))


def _datasketch(texts: list[str]) -> list[bool]:
    from datasketch import MinHash, MinHashLSH

    index, flags = MinHashLSH(threshold=0.8, num_perm=128), []
    for name, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in set(_shingles(text))])
        near = index.query(sketch)
        flags.append(bool(near))
        if not near:
            index.insert(str(name), sketch)
    return flags


def decontamination(scale: float, folder: Path | None) -> dict[str, dict[str, float]]:
    """Training problems against seven evaluation sets of which 300 are planted, in disguises."""
    rng = random.Random(1)
    sets = {name: _problems(folder, name, rng) for name in SETS}
    train = [text for name in TRAIN for text in _problems(folder, name, rng)]
    train = train[:int(32000 * scale)]
    hidden = [_disguise(text, i) for i, text in
              enumerate(rng.choice(sets[rng.choice(SETS)]) for _ in range(300))]
    texts, size = train + hidden, sum(map(len, train + hidden)) / 1e6
    methods = {"limbeck, runs of words": lambda: _hits(texts, sets, 2.0),
               "limbeck, and likeness": lambda: _hits(texts, sets, 0.8),
               "open-r1's method": lambda: _eight_grams(texts, sets)}
    out = {}
    for name, method in methods.items():
        seconds, rows = best(method)
        found = sum(row >= len(train) for row in rows)
        out[name] = {"seconds": seconds, "MB/s": size / seconds, "planted found": found / 300,
                     "share of training set hit": (len(rows) - found) / len(train)}
    return out


def _problems(folder: Path | None, name: str, rng: random.Random) -> list[str]:
    if folder:
        path = folder / f"{name}.jsonl"
        return [json.loads(line)["problem"] for line in path.open(encoding="utf-8")]
    return [" ".join(f"word{rng.randrange(3000)}" for _ in range(rng.randint(4, 80)))
            for _ in range(600)]


def _disguise(text: str, kind: int) -> str:
    dressed = (text, "Solve: " + text + " Show all work.", text.replace("(", "\\left("),
               text.replace("\\frac", "\\dfrac").replace("$", "").upper())
    return dressed[kind % 4]


def _hits(texts: list[str], sets: dict[str, list[str]], fuzzy: float) -> list[int]:
    from pipeline.curate.contamination import Evaluation, contamination

    names = {f"{name}/{i}": text for name, rows in sets.items() for i, text in enumerate(rows)}
    return [hit.row for hit in contamination(texts, Evaluation(names), fuzzy)]


def _eight_grams(texts: list[str], sets: dict[str, list[str]]) -> list[int]:
    def grams(text: str) -> list[str]:
        words = " ".join(text.lower().split()).split()
        return [" ".join(words[i:i + 8]) for i in range(len(words) - 7)]

    hits: set[int] = set()
    for rows in sets.values():
        known = {gram for text in rows for gram in grams(text)}
        hits |= {row for row, text in enumerate(texts) if any(g in known for g in grams(text))}
    return sorted(hits)


def packing(scale: float) -> dict[str, dict[str, float]]:
    """Rows of trace-like lengths (lognormal, mean 6.7k tokens) into blocks of 16,384."""
    import datasets
    from trl import pack_dataset

    from pipeline.student.packing import block_tables

    datasets.disable_progress_bars()
    datasets.disable_caching()
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(8.55, 0.7, int(20000 * scale)).astype(int), 64, 16384)
    rows = [("p", i, np.full(n, i % 1000, np.int32), np.ones(n, np.int8))
            for i, n in enumerate(lengths.tolist())]
    table = datasets.Dataset.from_dict({"input_ids": [row[2] for row in rows],
                                        "completion_mask": [row[3] for row in rows]})

    def measure(blocks: int, seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "rows/s": len(rows) / seconds,
                "fill": float(lengths.sum() / (blocks * 16384))}

    out = {}
    seconds, shape = best(lambda: _blocks(block_tables, rows))
    out["limbeck"] = {**measure(shape["blocks"], seconds), "balance": shape["attention_balance"]}
    for name, size in (("TRL bfd, batches of 1,000", 1000), ("TRL bfd, one batch", None)):
        seconds, packed = best(lambda size=size: pack_dataset(
            table, 16384, "bfd", {"batch_size": size}))
        out[name] = measure(len(packed), seconds)
    return out


def _blocks(block_tables: Callable[..., Any], rows: list[Any]) -> dict[str, Any]:
    shape: dict[str, Any] = {}
    for _ in block_tables(rows, 16384, shape):
        pass
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--problems", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/data.json"))
    given = parser.parse_args()
    results = {"dedup": dedup(given.scale, given.problems),
               "decontamination": decontamination(given.scale, given.problems),
               "packing": packing(given.scale), "filter": filter_memory(given.scale)}
    for part, rows in results.items():
        for name, values in rows.items():
            shown = "  ".join(f"{key} {value:,.4g}" for key, value in values.items())
            print(f"{part:16} {name:28} {shown}")
    command = f"python benchmarks/data.py --scale {given.scale}"
    text = json.dumps({"command": command, "scale": given.scale, **results}, indent=1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
