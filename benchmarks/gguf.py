"""Exports a checkpoint in several formats and prints size, KL and score of each file.

    python -m benchmarks.gguf FOLDER --problems gsm8k.jsonl --formats bf16 q8_0 q5_k_m q4_k_m
    python -m benchmarks.gguf FOLDER --limit 0          # sizes and KL alone

The files, their Modelfile and gguf.json stay in --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.config.evaluate import ExportConfig, StudentSampling
from pipeline.config.problems import EvaluationSet
from pipeline.evaluate.numbers import machine
from pipeline.export.export_files import check_extra, described, export
from pipeline.judge import needs_answer
from pipeline.problems.sources import evaluation_sets, load_rows
from pipeline.prompts import chats


def rows_of(args: argparse.Namespace) -> list[dict]:
    """The problems of --problems: a file, a hub id, or `countdown`."""
    given = EvaluationSet(problems=args.problems, subset=args.subset, split=args.split,
                          problem_column=args.problem_column, answer_column=args.answer_column,
                          answer_pattern=args.answer_pattern)
    [(_, one)] = evaluation_sets([given], "--problems").items()
    return load_rows(one, 0, needs_answer)[:max(args.limit, args.prompts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--formats", nargs="+",
                        default=["bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"])
    parser.add_argument("--problems", default="countdown")
    parser.add_argument("--subset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--problem-column", default="problem")
    parser.add_argument("--answer-column", default="answer")
    parser.add_argument("--answer-pattern")
    parser.add_argument("--prompt", default="boxed", help="a name in prompts/")
    parser.add_argument("--limit", type=int, default=200, help="problems scored; 0: none")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=20, help="problems of the proof")
    parser.add_argument("--tokens", type=int, default=64, help="of each of its answers")
    parser.add_argument("--workers", type=int, default=4, help="processes that judge")
    parser.add_argument("--out", type=Path, default=Path("gguf"))
    args = parser.parse_args()
    check_extra(args.formats)
    sampling = StudentSampling(temperature=args.temperature, top_p=args.top_p,
                               max_tokens=args.max_tokens)
    # The figures are the aim: a file far from its checkpoint is shown, not refused.
    config = ExportConfig(model=args.checkpoint, formats=args.formats, problems=args.prompts,
                          tokens=args.tokens, limit=args.limit, samples=args.samples,
                          sampling=sampling, max_kl=100.0)
    rows = rows_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    found = export(args.checkpoint, args.checkpoint, config, args.out,
                   name=Path(args.checkpoint).resolve().name.lower(), rows=rows,
                   chats=chats(args.prompt, rows), lineage={"checkpoint": args.checkpoint},
                   workers=args.workers)
    report = {"checkpoint": args.checkpoint, "problems": args.problems, "prompt": args.prompt,
              "sampling": sampling.model_dump(), "machine": machine(), "files": found}
    (args.out / "gguf.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join(described(form, one) for form, one in found.items()))


if __name__ == "__main__":
    main()
