"""Finds the shipped files (prompts, configs, the report's page) and renders prompt templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
"""Holds prompts/ and configs/: the checkout, or in an installed package a folder of its own."""
PAGE = PACKAGE / "evaluate" / "page.html.jinja"


def config_files(files: Iterable[Path] | None) -> list[Path]:
    """The config files named; one that is not there may be a shipped one, as configs/gsm8k.yaml."""
    return [ROOT / file if not file.exists() and (ROOT / file).is_file() else file
            for file in files or [ROOT / "configs" / "default.yaml"]]


def prompt_path(name: str) -> Path:
    """`name` if it has a suffix, else the shipped prompts/NAME.jinja."""
    path = Path(name)
    return path if path.suffix else ROOT / "prompts" / f"{name}.jinja"


def chat_template_path(name: str | None, model: str) -> Path | None:
    """The student's chat template, as `prompt_path`; None for its tokenizer's own."""
    name = name or ("tiny" if model == "tiny" else None)
    if name is None or Path(name).suffix:
        return Path(name) if name else None
    return ROOT / "prompts" / "chat_templates" / f"{name}.jinja"


@lru_cache(maxsize=32)
def _template(path: Path, changed: int) -> tuple[Any, set[str]]:
    """The template, and the variables that it names."""
    from jinja2 import StrictUndefined, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False,
                                                keep_trailing_newline=False)
    text = path.read_text(encoding="utf-8")
    return environment.from_string(text), meta.find_undeclared_variables(environment.parse(text))


def template_path(text: str) -> Path | None:
    """The template that `text` names, a name in prompts/ or a path; None if it is a text itself."""
    path = prompt_path(text) if len(text) < 200 and "\n" not in text else None
    return path if path and (path.suffix == ".jinja" and " " not in text) else None


def variables_of(name: str) -> set[str]:
    """The variables that the prompt template `name` uses. Raises UserError if it is not there."""
    return _read_template(name)[1]


def _read_template(name: str) -> tuple[Any, set[str]]:
    from jinja2 import TemplateError

    path = prompt_path(name)
    if not path.is_file():
        raise UserError(f"prompt template {path} does not exist; prompts/ lists those shipped")
    try:
        return _template(path, path.stat().st_mtime_ns)
    except TemplateError as error:
        raise UserError(f"prompt template {path} cannot be rendered: {error}") from None


def render(name: str, **variables: str) -> str:
    """The prompt template `name` (see `prompt_path`) filled with `variables`, as plain text."""
    from jinja2 import TemplateError

    path, (template, named) = prompt_path(name), _read_template(name)
    try:
        if unused := variables.keys() - named:
            # Every problem would be asked in the same words.
            raise UserError(f"prompt template {path} leaves out {', '.join(unused)}; write "
                            f"{{{{ {min(unused)} }}}} where it belongs")
        return template.render(**variables).strip()
    except TemplateError as error:
        raise UserError(f"prompt template {path} cannot be rendered: {error}") from None


def chats(name: str, problems: Iterable[Mapping[str, Any]],
          own: Mapping[str, str] | None = None) -> dict[str, list[dict[str, str]]]:
    """The chat of each problem row, by problem id; `own` holds prompts of sources, by name."""
    own = own or {}
    return {row["problem_id"]: messages(own.get(row.get("source", ""), name), row["problem"])
            for row in problems}


def asking_length(chat: Iterable[Mapping[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """`chat` whose last message asks for so many tokens of thinking (prompts/length.jinja)."""
    *before, last = map(dict, chat)
    asked = f"{last['content']}\n\n{render('length', tokens=str(tokens))}"
    return [*before, {**last, "content": asked}]


def messages(name: str, problem: str) -> list[dict[str, str]]:
    """The chat sent to teacher and student alike: one user message, as R1's authors advise."""
    return [{"role": "user", "content": render(name, problem=problem)}]
