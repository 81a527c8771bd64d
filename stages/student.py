"""student: the model before training, either built tiny or named by hub id or folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.student import StudentConfig
from pipeline.errors import UserError
from pipeline.prompts import ROOT, chats, prompt_path
from pipeline.stage import Counts, Stage

TEMPLATES = ROOT / "prompts" / "chat_templates"


def template_path(config: StudentConfig) -> Path | None:
    """The chat template file the student uses, or None for its tokenizer's own."""
    name = config.chat_template or ("tiny" if config.model == "tiny" else None)
    if name is None or Path(name).suffix:
        return Path(name) if name else None
    return TEMPLATES / f"{name}.jinja"


def run(experiment: Any, inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write model/ (tiny) or model.txt (a name), and the tokenizer with its template."""
    from pipeline.student.tokenizer import load_tokenizer

    config = experiment.student
    template = template_path(config)
    if config.model == "tiny":
        from pipeline.student.tiny import save_tiny

        assert template is not None
        counts = save_tiny(_corpus(experiment, inputs), config.tiny,
                           template.read_text(encoding="utf-8"), experiment.seed, out / "model")
        load_tokenizer(out / "model").save_pretrained(out / "tokenizer")
        return counts
    tokenizer = load_tokenizer(config.model, template)
    tokenizer.save_pretrained(out / "tokenizer")
    (out / "model.txt").write_text(config.model, encoding="utf-8")
    return {"vocabulary": len(tokenizer)}


def _corpus(experiment: Any, inputs: Mapping[str, Path]) -> list[str]:
    """Prompts and kept traces: what the tiny tokenizer must spell in few tokens."""
    from pipeline import tables

    problems = tables.read(tables.Problem, inputs["prepare"] / "problems.parquet")
    judged = tables.read(tables.Judged, inputs["filter"] / "judged.parquet")
    kept = judged.filter(judged["kept"])
    asked = chats(experiment.generate.prompt, problems.iter_rows(named=True))
    texts = [chat[0]["content"] for chat in asked.values()]
    return texts + [f"<think>\n{row['thinking']}\n</think>\n{row['answer']}"
                    for row in kept.iter_rows(named=True)]


def files(experiment: Any) -> tuple[Path, ...]:
    template = template_path(experiment.student)
    return (prompt_path(experiment.generate.prompt), *([template] if template else []))


def check(experiment: Any) -> None:
    """Refuse a folder without weights before the teacher is asked; a hub id is left to the hub."""
    model = experiment.student.model
    folder = Path(model)
    if model == "tiny" or not (folder.is_dir() or model.startswith(("/", ".", "~"))):
        return
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.glob("*")):
        raise UserError(f"student.model={model} is no folder with a checkpoint's weights "
                        "(.safetensors or .bin); name one that holds model and tokenizer, or a "
                        "hub id")


STAGE = Stage(name="student", run=run, files=files, check=check,
              needs=lambda e: ("prepare", "filter") if e.student.model == "tiny" else (),
              summary=lambda c: ", ".join(f"{v:,} {k}" for k, v in c.items()))
