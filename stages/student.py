"""student: the model before training, either built tiny or named by hub id or folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline import tables
from pipeline.config.experiment import Experiment
from pipeline.problems.chats import student_chats
from pipeline.prompts import chat_template_path, messages
from pipeline.stage import Counts
from pipeline.student.models import check_folder, known_template, without_tokenizer
from pipeline.student.template import render_prompt
from pipeline.student.tiny import save_tiny
from pipeline.student.tokenizer import load_tokenizer


def run(experiment: Experiment, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/ (tiny) or model.txt (a name), and the tokenizer with its template."""
    config = experiment.student
    template = chat_template_path(config.chat_template, config.model)
    if config.model == "tiny":
        assert template is not None
        counts = save_tiny(_corpus(experiment, inputs), config.tiny,
                           template.read_text(encoding="utf-8"), experiment.seed, out / "model")
        load_tokenizer(out / "model").save_pretrained(out / "tokenizer")
        return counts
    tokenizer = load_tokenizer(config.model, template)
    tokenizer.save_pretrained(out / "tokenizer")
    (out / "model.txt").write_text(config.model, encoding="utf-8")
    return {"vocabulary": len(tokenizer)}


def _corpus(experiment: Experiment, inputs: Mapping[str, Path]) -> list[str]:
    """Prompts and kept traces: what the tiny tokenizer must spell in few tokens."""
    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    judged = tables.read(tables.Judged, inputs["filter"] / "judged.parquet")
    kept = judged.filter(judged["kept"])
    asked = student_chats(experiment.generate, problems.iter_rows(named=True))
    texts = [chat[0]["content"] for chat in asked.values()]
    return texts + [f"<think>\n{row['thinking']}\n</think>\n{row['answer']}"
                    for row in kept.iter_rows(named=True)]


def check(experiment: Experiment) -> None:
    """Refuse a folder without weights, and a chat template that renders no prompt."""
    config = experiment.student
    if config.model != "tiny":
        check_folder("student.model", config.model)
    if template := known_template(config):
        render_prompt(without_tokenizer(template), messages(experiment.generate.prompt, "1+1?"))


def check_fully(experiment: Experiment) -> None:
    """Refuse a model without a tokenizer, of the hub too."""
    config = experiment.student
    if config.model != "tiny":
        load_tokenizer(config.model, chat_template_path(config.chat_template, config.model))


def summary(counts: Counts) -> str:
    return ", ".join(f"{value:,} {key}" for key, value in counts.items())
