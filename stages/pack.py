"""pack: kept traces as token rows with a loss mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.completion import Messages
from pipeline.config.experiment import Experiment
from pipeline.config.student import BestFitPacking
from pipeline.problems.chats import student_chats
from pipeline.progress import progress
from pipeline.prompts import chat_template_path, messages
from pipeline.stage import Counts
from pipeline.student.models import known_template, without_tokenizer
from pipeline.student.packing import Packer, block_tables, table
from pipeline.student.positions import rows_beyond, say
from pipeline.student.template import check_template
from pipeline.student.tiny import resolve
from pipeline.student.tokenizer import load_tokenizer, on_every_core


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write rows.parquet (token rows, or blocks of them) and a data set card."""
    packing = experiment.pack.packing
    block = packing.block if isinstance(packing, BestFitPacking) else None
    packer = Packer(min(experiment.pack.max_tokens, block or experiment.pack.max_tokens),
                    experiment.pack.name_length)
    shape: dict[str, Any] = {}
    schema = tables.Block if block else tables.TokenRow
    with tables.writer(schema, out / "rows.parquet") as writer:
        batches = _rows(experiment, inputs, packer)
        rows = (row for batch in batches for row in batch)
        for frame in block_tables(rows, block, shape) if block else _tables(batches):
            writer.write(frame)
    say("pack", rows_beyond(out / "rows.parquet", resolve(inputs["student"]),
                            experiment.sft.trainer.get("model_init_kwargs")))
    counts = {**packer.counts(), **shape}
    (out / "README.md").write_text(_card(experiment, counts, bool(block)), encoding="utf-8")
    return counts


def _rows(experiment: Experiment, inputs: Mapping[str, Path], packer: Packer) -> Iterator[list]:
    """Token rows, a batch of traces at a time."""
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    asked = student_chats(experiment.generate, problems.iter_rows(named=True))
    tokenizer = load_tokenizer(inputs["student"] / "tokenizer")
    judged = inputs["filter"] / "judged.parquet"
    with progress("packing", tables.count(judged)) as advance:
        for batch in tables.batches(tables.Judged, judged):
            kept = batch.filter(batch["kept"])
            advance(len(batch) - len(kept))
            bare = [name for name, thinks in experiment.pack.thinking.items() if not thinks]
            kept = kept.with_columns(thinking=pl.when(pl.col("source").is_in(bare)).then(None)
                                     .otherwise("thinking")) if bare else kept
            with on_every_core():
                rows = list(packer.rows_of(kept.iter_rows(named=True), asked, tokenizer,
                                           experiment.pack.too_long, advance))
            yield rows


def _tables(batches: Iterator[list]) -> Iterator[Any]:
    return (table(batch) for batch in batches if batch)


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: rows.parquet
---
# {title}: token rows

Teacher traces as training rows of `{student}`, made by limbeck; `manifest.json` beside this card
holds the whole configuration. Prompts follow the template `{prompt}`.

| column | what |
|---|---|
| `problem_id`, `sample` | the trace a row comes from; of a block, a list of them |
| `input_ids` | token ids of prompt and completion |
| `completion_mask` | 1 where the loss counts: the completion and its end of turn |
{more}
| | |
|---|---|
{counts}

Open it with `datasets.load_dataset("FOLDER")`. The texts belong to their sources: see the
licences of the problem set ({problems}) and of the teacher ({teacher}).
"""
BLOCK_COLUMNS = """| `seq_lengths` | lengths of a block's rows; positions start again with each |
"""


def _card(experiment: Experiment, counts: Counts, packed: bool) -> str:
    """The data set card; its head is what `datasets` reads."""
    teacher = experiment.generate.teacher
    return CARD.format(
        title=experiment.name, student=experiment.student.model,
        prompt=experiment.generate.prompt,
        problems=", ".join(one.problems for one in experiment.prepare.sets().values()),
        teacher=getattr(teacher, "model", None) or teacher.type,
        more=BLOCK_COLUMNS if packed else "",
        counts="\n".join(f"| {key.replace('_', ' ')} | {value:,} |"
                         for key, value in counts.items()))


def check(experiment: Experiment) -> None:
    """Refuse a chat template that loses the thinking, if it can be known without a tokenizer."""
    if template := known_template(experiment.student):
        check_template(without_tokenizer(template), _conversation(experiment))


def check_fully(experiment: Experiment) -> None:
    """Refuse the chat template that the model of the hub comes with, if it loses the thinking."""
    config = experiment.student
    if config.model != "tiny":
        path = chat_template_path(config.chat_template, config.model)
        check_template(load_tokenizer(config.model, path), _conversation(experiment))


def _conversation(experiment: Experiment) -> Messages:
    return messages(experiment.generate.prompt, "What is 6 times 7?")


def summary(counts: Counts) -> str:
    """Rows, tokens, and what did not fit."""
    blocks = f" in {counts['blocks']:,} blocks ({counts['fill']:.1%} full)" \
        if "blocks" in counts else ""
    long = f"{counts['too_long']:,} too long" + (" and split" if counts["pieces"] else "")
    if counts["without_answer"]:
        long += f", {counts['without_answer']:,} without an answer"
    return (f"{counts['rows']:,} rows{blocks}, {counts['tokens']:,} tokens "
            f"({counts['loss_tokens'] / counts['tokens']:.0%} trained), {long}")
