"""Measures students of `sft.method: cross_tokenizer` on traces that they did not learn from.

    python -m benchmarks.alignment traces.jsonl TEACHER STUDENT...

traces.jsonl holds `problem` and `completion`. One JSON line: the share of trained tokens that both
tokenizers end at the same byte, with the least of a trace; and by student its cross-entropy a token
and its divergence from the teacher an aligned token, in nats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.sft import CrossTokenizerMethod
from pipeline.progress import quiet_libraries
from pipeline.prompts import messages
from pipeline.sft.cross_tokenizer import CrossTokenizerLoss
from pipeline.student.template import training_row
from pipeline.student.token_rows import IGNORED


def rows(traces: Path, tokenizer: Any, prompt: str) -> Iterator[dict[str, torch.Tensor]]:
    """A trace as the trainer's inputs, one to a batch."""
    for line in traces.read_text("utf-8").splitlines():
        trace = json.loads(line)
        chat = messages(prompt, trace["problem"])
        ids, mask = map(torch.tensor, training_row(tokenizer, chat, None, trace["completion"]))
        yield {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None],
               "labels": torch.where(mask == 1, ids, IGNORED)[None]}


@torch.no_grad()
def distances(folder: str, teacher: str, given: argparse.Namespace) -> dict[str, Any]:
    """What the student in `folder` is away from the traces and from the teacher, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    method = CrossTokenizerMethod(teacher=teacher, cross_entropy=0.5, dtype=given.dtype)
    loss = CrossTokenizerLoss(method, tokenizer)
    sums, shares = torch.zeros(4), []
    for inputs in rows(given.traces, tokenizer, given.prompt):
        trained = int((inputs["labels"] != IGNORED).sum())
        found = loss(model, inputs)[1]
        shares.append(float(found["aligned"]) / trained)
        sums += torch.stack([found["cross_entropy"], found["divergence"], found["aligned"],
                             torch.tensor(float(trained))])
    nll, gap, aligned, trained = sums.tolist()
    return {"cross_entropy": nll / trained, "divergence": gap / aligned,
            "aligned": aligned / trained, "least_aligned": min(shares), "tokens": int(trained)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("teacher")
    parser.add_argument("students", nargs="+")
    parser.add_argument("--prompt", default="boxed", help="a name in prompts/")
    parser.add_argument("--dtype", default="bfloat16", help="of the teacher's weights")
    given = parser.parse_args()
    quiet_libraries()
    print(json.dumps({student: distances(student, given.teacher, given)
                      for student in given.students}))


if __name__ == "__main__":
    main()
