"""Where problems come from and which of them are taught."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipeline.config.load import Config
from pipeline.errors import UserError

EMBEDDED, GYM = "countdown", "reasoning-gym/"
ROUTES: dict[str, tuple[str, ...]] = {
    "prompt": ("generate", "prompts"), "teacher": ("generate", "imports"),
    "keep": ("filter", "sources", "keep"), "rules": ("filter", "sources", "rules"),
    "count": ("filter", "sources", "count"), "share": ("filter", "sources", "share"),
    "thinking": ("pack", "thinking"), "rewards": ("rl", "source_rewards")}
"""Keys of an entry that another section holds, by the source's name: section, field and, if the
field holds more than one thing of a source, which. In prepare's key, changing a reward would
train anew what does not depend on it."""


def source_name(entry: Mapping[str, Any]) -> str:
    """An entry's name, else the stem of its file or hub id."""
    return str(entry.get("name") or Path(str(entry.get("problems", "countdown"))).stem)


class Source(Config):
    """Where problems come from and which columns hold what."""

    problems: str = EMBEDDED
    """`countdown` (embedded), `reasoning-gym/TASK` (`limit` of them, 1,000 by default), a JSONL,
    JSON, CSV, TSV, Parquet or Arrow file, a pattern or folder of such, a folder of datasets'
    save_to_disk, or a Hugging Face data set id."""
    options: dict[str, Any] = {}
    """Settings of a reasoning-gym task under its own names, e.g. {max_numbers: 4}."""
    subset: str | None = None
    """Configuration of a hub data set, e.g. `main`."""
    split: str = "train"
    """Split of a hub data set."""
    problem_column: str = "problem"
    """Column with the problem's text, or with a conversation that asks it; `a.b` is field b of
    column a."""
    answer_column: str = "answer"
    """Column with the gold answer, or with a list of spellings of it (kind math)."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the gold answer, e.g. `#### (.+)` for GSM8K."""
    answer_optional: bool = False
    """Keep problems whose answer is missing or empty: they are taught by filter.majority alone,
    never held out and never refined on."""
    kind: str = "math"
    """The judge's kind for rows that name none: math, choice, exact, text, code, gym, open (chat,
    writing: no answer is right), or path/to/file.py:function for your own verifier. Unset: code
    for rows that hold tests, math for others."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first N problems after shuffling."""

    @field_validator("answer_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and not re.compile(pattern).groups:
                raise ValueError("put the answer in parentheses, as in '#### (.+)'")
        except re.error as error:
            raise ValueError(f"give a regular expression ({error})") from None
        return pattern


class EvaluationSet(Source):
    """An evaluation set whose columns, subset or split are not the training set's."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"prompt"})

    problems: str
    """A benchmark's name (`limbeck benchmarks`), a file, or a hub id."""
    prompt: str | None = None
    """Name or path of its prompt; null: the benchmark's own, or generate.prompt."""
    split: str = "test"
    """Split of a hub data set."""


NameOrSet = Annotated[
    Annotated[str, Tag("name")] | Annotated[EvaluationSet, Tag("set")],
    Discriminator(lambda given: "name" if isinstance(given, str) else "set")]


class ProblemSet(Source):
    """One of several problem sets. An entry may also say what other sections do with it: prompt,
    teacher (a file of traces), keep, rules, count or share of what is kept, thinking (false trains
    on answers alone) and rewards; ROUTES says which section gets each."""

    name: str = ""
    """What tables, keys and reports call it; the stem of its file or hub id if unset."""
    held_out: int = Field(default=0, ge=0)
    """Problems of it kept out of training, for evaluation (heldout, and heldout/NAME alone)."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, entry: Any) -> Any:
        return {**entry, "name": source_name(entry)} if isinstance(entry, dict) else entry


class PrepareConfig(Source):
    """Which problems are taught, how many are held out, and what a bad gold answer does."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"sources"})
    sources: list[ProblemSet] = []
    """Several problem sets in the place of `problems`, each with the keys above it and name,
    held_out, prompt, teacher, keep, rules, count, share, thinking, rewards."""
    held_out: int = Field(default=600, ge=0)
    """Problems kept out of training, for evaluation."""
    bad_gold: Literal["stop", "drop"] = "stop"
    """What to do with a gold answer that fails its own check."""
    decontaminate: list[NameOrSet] = []
    """Evaluation sets that no training problem may hold: `heldout`, benchmarks by name (aime24,
    ...), files, or hub ids (their test split), or {problems: openai/gsm8k, subset: main,
    problem_column: question}. A shared run of eight words, a short problem whole, or a similar
    text counts."""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """How much of an evaluation problem shared words must cover; 0 takes any eight, as open-r1.
    Raise it for problems made from a template."""
    near_duplicates: float | None = Field(default=None, gt=0, le=1)
    """Drop a problem whose five-word runs are those of an earlier one to this share (Jaccard)."""

    @model_validator(mode="before")
    @classmethod
    def _sources_say_it_all(cls, tree: Any) -> Any:
        """Several sources leave nothing to say of one; what is held out is their sum."""
        sources = tree.get("sources") if isinstance(tree, dict) else None
        if not sources or not all(isinstance(one, dict) for one in sources):
            return tree
        if said := sorted(set(tree) & (set(Source.model_fields) | {"held_out"})):
            raise UserError(f"prepare.{said[0]} speaks of one problem set and prepare.sources of "
                            f"several; say {said[0]} in an entry of prepare.sources")
        names = Counter(map(source_name, sources))
        if (twice := names.most_common(1)[0])[1] > 1:
            raise UserError(f"prepare.sources has {twice[0]!r} twice; give each entry a name of "
                            "its own")
        return {**tree, "held_out": sum(int(one.get("held_out", 0)) for one in sources)}

    def sets(self) -> dict[str, Source]:
        """The problem sets by name; the one set of today has the name ""."""
        return {one.name: one for one in self.sources} if self.sources else {"": self}


def distribute(tree: Any) -> Any:
    """`tree` of an experiment with the entries' keys moved to their sections.

    What a section says itself stands: `filter.sources.chat.keep=…` overrides an entry's `keep`.
    """
    prepare = tree.get("prepare") if isinstance(tree, Mapping) else None
    entries = prepare.get("sources") if isinstance(prepare, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        return tree
    tree, left = dict(tree), []
    for entry in entries:
        left.append({key: value for key, value in entry.items() if key not in ROUTES})
        for key, value in entry.items():
            if key in ROUTES:
                section, field, *part = ROUTES[key]
                _put(tree, [section, field, source_name(entry), *part], value)
    tree["prepare"] = {**tree["prepare"], "sources": left}
    return tree


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set `path` of `tree` unless it is set, copying the mappings on the way."""
    for key in path[:-1]:
        tree[key] = dict(tree.get(key) or {})
        tree = tree[key]
    tree.setdefault(path[-1], value)


def check_names(experiment: Any) -> None:
    """Raise UserError if a section speaks of a source that prepare.sources does not have."""
    known = [one.name for one in experiment.prepare.sources]
    for section, field, *_ in dict.fromkeys(route[:2] for route in ROUTES.values()):
        for name in getattr(getattr(experiment, section), field):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else \
                    f"there are {', '.join(known) or 'none'}"
                raise UserError(f"{section}.{field} speaks of the source {name!r}, which "
                                f"prepare.sources does not have; {hint}")
