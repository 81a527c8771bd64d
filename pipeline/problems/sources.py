"""Loads problems: embedded countdown, reasoning-gym, a local file or a hub data set."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import time
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.config.problems import EMBEDDED, GYM, EvaluationSet, Source
from pipeline.errors import LackingError, UserError
from pipeline.problems.benchmarks import BENCHMARKS, benchmark_row, local_file
from pipeline.problems.columns import (
    NoColumnError,
    column,
    decoded,
    is_conversation,
    question_in,
)
from pipeline.progress import progress

ALONE = 2.0
"""Seconds of making problems after which several processes do."""
MAKERS = 16
"""Most of them."""


def evaluation_sets(entries: Sequence[str | EvaluationSet], key: str,
                    problem_column: str = "problem") -> dict[str, EvaluationSet]:
    """{name: set} of the entries of config key `key`; `problem_column` is for plain names."""
    sets: dict[str, EvaluationSet] = {}
    for entry in entries:
        if isinstance(entry, str):
            entry = EvaluationSet(problems=entry, problem_column=problem_column)
        name = "/".join(filter(None, (entry.problems, entry.subset)))
        name = f"{name}/{entry.split}" if name in sets and sets[name].split != entry.split else name
        if name in sets:
            raise UserError(f"{key} names {name} twice; name it once")
        sets[name] = entry
    return sets


def is_file(name: str) -> bool:
    """Whether `name` is meant as local files (a path, a pattern, a folder), not as a hub id."""
    from pipeline.problems.files import SUFFIXES, data_suffix, is_saved

    if name in (EMBEDDED, "heldout", *BENCHMARKS) or name.startswith(GYM):
        return False
    path = Path(name).expanduser()
    if name.startswith(("/", "~", "./", "../")) or set("*?[") & set(name):
        return True
    if path.is_dir():
        return is_saved(path) or any(data_suffix(file) in SUFFIXES for file in path.rglob("*"))
    return data_suffix(path) in SUFFIXES or (bool(path.suffix) and path.is_file())


def short_names(sets: Mapping[str, EvaluationSet]) -> dict[str, str]:
    """{name: the stem of its file or hub id}; the full name if two have the same stem."""
    stems = {name: Path(entry.problems).stem for name, entry in sets.items()}
    times = Counter(stems.values())
    return {name: stem if times[stem] == 1 else name for name, stem in stems.items()}


def benchmark_prompts(entries: Sequence[str | EvaluationSet], style: str,
                      usual: str) -> dict[str, str]:
    """{short name: prompt} of evaluate.benchmarks; `style` is evaluate.prompts."""
    sets = evaluation_sets(entries, "evaluate.benchmarks")
    return {short: _prompt(sets[name], style) or usual
            for name, short in short_names(sets).items()}


def _prompt(one: EvaluationSet, style: str) -> str | None:
    known = BENCHMARKS.get(one.problems)
    if one.prompt or known is None:
        return one.prompt
    return known.lm_eval[1] if style == "lm_eval" and known.lm_eval else known.prompt


def samples_of(entries: Sequence[str | EvaluationSet], samples: int | str) -> dict[str, int]:
    """{short name: samples a problem} of evaluate.benchmarks; `samples` may be "r1"."""
    sets = evaluation_sets(entries, "evaluate.benchmarks")
    known = {name: BENCHMARKS.get(one.problems) for name, one in sets.items()}
    return {short: samples if isinstance(samples, int) else
            one.samples if (one := known[name]) else 4
            for name, short in short_names(sets).items()}


def countdown_rows(seed: int) -> list[dict[str, str]]:
    """Every embedded problem as a tables.Problem row without its split, shuffled by `seed`."""
    from pipeline.problems.countdown import instances, tries

    rows = []
    for instance in instances(seed):
        numbers, target = instance.numbers, instance.target
        gold = next(found.expression for found in tries(numbers) if found.value == target)
        meta = {"task": "countdown", "numbers": list(numbers), "target": target}
        name = "-".join(map(str, numbers))
        rows.append({"problem_id": f"countdown-{name}-{target}", "problem": instance.text,
                     "answer": gold, "kind": "gym", "source": EMBEDDED, "meta": json.dumps(meta)})
    return rows


def gym_rows(source: Source, seed: int) -> list[dict[str, str]]:
    """Problems of a reasoning-gym task, generated from `seed`; the judge uses the task's scorer."""
    import reasoning_gym

    task = source.problems.removeprefix(GYM)
    try:
        made = _made(reasoning_gym.create_dataset(task, size=source.limit or 1000, seed=seed,
                                                  **source.options), source.problems)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"reasoning-gym makes no {task!r} problems: {error}; fix "
                        "prepare.problems or prepare.options") from None
    known = [{name: entry["metadata"][name] for name in ("numbers", "target")}
             if task == "countdown" else {} for entry in made]
    return [{"problem_id": f"{task}-{seed}-{index}", "problem": entry["question"],
             "answer": entry["answer"] or "", "kind": "gym", "source": source.problems,
             "meta": json.dumps({"task": task, "entry": entry, **more}, default=str)}
            for index, (entry, more) in enumerate(zip(made, known, strict=True))]


def _made(dataset: Any, name: str) -> list[dict[str, Any]]:
    """The entries of a reasoning-gym `dataset`, in processes if that takes longer than ALONE."""
    size, made, begun = len(dataset), list[dict[str, Any]](), time.monotonic()
    with progress(f"making {name}", size) as advance:
        while len(made) < size and time.monotonic() - begun < ALONE:
            made.append(dataset[len(made)])
            advance(1)
        if len(made) < size:
            # Ctrl-C is for this process, which then ends those.
            with get_context("spawn").Pool(min(MAKERS, os.cpu_count() or 1), signal.signal,
                                           (signal.SIGINT, signal.SIG_IGN)) as pool:
                # An entry depends on the seed and its own number alone.
                for entry in pool.imap(dataset.__getitem__, range(len(made), size), chunksize=20):
                    made.append(entry)
                    advance(1)
    return made


def load_rows(source: Source, seed: int, needs_answer: Callable[[str], bool] = bool,
              folder: Path | None = None) -> list[dict[str, str]]:
    """Problem rows (without `split`), shuffled by `seed` and cut to `source.limit`.

    A benchmark by name is read from its file in `folder`, if one is given, else from the hub.
    Raises UserError if a row has no answer and its kind `needs_answer` (as any kind by default).
    """
    if source.problems == EMBEDDED:
        rows = countdown_rows(seed)
    elif source.problems.startswith(GYM):
        rows = gym_rows(source, seed)
    else:
        by_name = source.problems in BENCHMARKS
        raw = benchmark_rows(source.problems, seed, folder) if by_name else \
            raw_rows(source.problems, source.subset, source.split)
        source = Source(problems=source.problems, limit=source.limit) if by_name else source
        rows = [_to_row(row, index, source, needs_answer) for index, row in enumerate(raw, start=1)]
        random.Random(seed).shuffle(rows)
    if not rows:
        raise UserError(f"{source.problems} holds no problems; check prepare.problems")
    return rows[:source.limit]


def benchmark_rows(name: str, seed: int, folder: Path | None) -> list[dict[str, Any]]:
    """The rows of a benchmark by name in our columns."""
    from pipeline.problems.files import read_rows

    one, file = BENCHMARKS[name], local_file(name, folder)
    if file:
        raw: Iterable[dict[str, Any]] = read_rows(file)
    elif one.files:
        raw = chain.from_iterable(read_rows(_downloaded(one.hub, file)) for file in one.files)
    else:
        raw = raw_rows(one.hub, one.subset, one.split)
    return [benchmark_row(name, row, index, seed)
            for index, row in enumerate(row for row in raw if one.wanted(row))]


def _downloaded(hub: str, file: str) -> str:
    """The path of a file of a hub data set, downloaded once."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return hf_hub_download(hub, file, repo_type="dataset")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise LackingError(f"{file} of data set {hub!r} cannot be loaded "
                           f"({str(error).splitlines()[0]}); give runtime.benchmarks, or check "
                           "the network") from None


def raw_rows(name: str, subset: str | None, split: str) -> Iterable[dict[str, Any]]:
    """The rows of local files, or of a split of a saved or a hub data set, which stay on disk."""
    from pipeline.problems.files import is_saved, read_rows

    if is_file(name):
        saved = is_saved(Path(name).expanduser())
        return _saved_rows(name, split) if saved else read_rows(name, split)
    from datasets import load_dataset
    from huggingface_hub import constants

    try:
        return load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        lacking = constants.HF_HUB_OFFLINE or isinstance(error, ConnectionError)
        raise (LackingError if lacking else UserError)(
            f"data set {name!r} cannot be loaded ({first}); give a local .jsonl, .csv or .parquet "
            "file, or check the network") from None


def _saved_rows(name: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of a folder that datasets' save_to_disk wrote."""
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(Path(name).expanduser()))
    except (OSError, ValueError) as error:
        raise UserError(f"{name} is not a whole saved data set ({error}); save it again") from None
    if isinstance(found, Dataset):
        return found
    if split not in found:
        raise UserError(f"{name} has no split {split!r}, only {', '.join(found)}; set split")
    return found[split]


def _to_row(row: dict[str, Any], index: int, source: Source,
            needs_answer: Callable[[str], bool]) -> dict[str, str]:
    """Row `index`, from 1, as a tables.Problem row without its split."""
    # Null counts as absent, and so does NaN, which pandas writes for it.
    row = {name: None if _is_nan(value) else value for name, value in row.items()}
    where = f"row {index} of {source.problems}"
    kind, tests = _kind(row, source, where)
    text, golds = _texts(row, where, source, kind, needs_answer(kind))
    if not text.strip():
        raise UserError(f"{where} has nothing in "
                        f"{source.problem_column!r}; add the problem or remove the row")
    name = row.get("id")
    name = f"{Path(source.problems).stem}-{index - 1}" if name in (None, "") else name
    golds = list(dict.fromkeys(filter(None, (_gold(gold, where, source) for gold in golds))))
    return {"problem_id": str(name), "problem": text, "kind": kind,
            "answer": golds[0] if golds else "",
            "source": str(row.get("source") or source.problems),
            "meta": _meta(row.get("meta") or {}, where, golds, tests)}


def _kind(row: Mapping[str, Any], source: Source, where: str) -> tuple[str, dict[str, Any]]:
    """The kind of a row, by its tests if neither it nor the config names one; and these tests."""
    from pipeline.problems.kind_of_row import (
        refuse_option_number,
        refuse_unlike_math,
        tests_in,
    )

    if ":" in str(row.get("kind") or "") and row["kind"] != source.kind:
        raise UserError(f"{where} has kind {row['kind']!r}, which would run a file of that name; "
                        "name it in the config (kind of the problem set), or change the row")
    named = row.get("kind") or (source.kind if "kind" in source.model_fields_set else None)
    if named not in (None, "code"):
        return str(named), {}
    tests = tests_in(row)
    if named is None and not tests:
        refuse_unlike_math(row, where)
        refuse_option_number(_value(row, source.problem_column), _value(row, source.answer_column),
                             where)
    return ("code" if named or tests else source.kind), tests


def _value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, also one field of it, or a conversation as JSON; None if absent."""
    try:
        found = column(row, name)
    except NoColumnError:
        return None
    return read if is_conversation(read := decoded(found)) else found


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _texts(row: dict[str, Any], where: str, source: Source, kind: str,
           needs_answer: bool) -> tuple[str, list[str]]:
    """The problem and the spellings of its gold: none, one, or for math several."""
    text, gold = (_value(row, name) for name in (source.problem_column, source.answer_column))
    text = question_in(text) if is_conversation(text) else text
    if kind == "math" and isinstance(gold, str) and gold.startswith(("['", '["')):
        with suppress(SyntaxError, ValueError):     # a list as CSV holds it
            gold = literal_eval(gold)
    golds = [value for value in (gold if isinstance(gold, list) else [gold])
             if value is not None and not _is_nan(value)]
    optional = source.answer_optional or not needs_answer
    for name, present in ((source.problem_column, text is not None),
                            (source.answer_column, golds or optional)):
        if not present:
            raise UserError(f"{where} has no {name!r}; set prepare.problem_column and "
                            "prepare.answer_column, or for an evaluation set {problems: FILE, "
                            f"problem_column: NAME}} (its columns: {', '.join(row)})")
    for value in (text, *golds):
        if not isinstance(value, str | int | float):
            raise UserError(f"{where} holds {value!r:.60} instead of a text or a number; name "
                            "another column, or a field of it as COLUMN.FIELD")
        if half := re.search("[\ud800-\udfff]", str(value)):
            raise UserError(f"{where} holds {half[0]!r}, half a character; fix the text")
    if len(golds) > 1 and kind != "math":
        raise UserError(f"{where} has {len(golds)} answers; only kind math takes several "
                        "spellings of one answer")
    return str(text), list(map(str, golds))


def _meta(meta: Any, where: str, golds: list[str], tests: Mapping[str, Any]) -> str:
    """`meta` as JSON with `tests`, without nulls, which Parquet adds for fields of other rows."""
    try:
        meta = json.loads(meta) if isinstance(meta, str) else meta
        known = {key: value for key, value in meta.items() if value is not None}
    except (AttributeError, ValueError):
        raise UserError(f"meta of {where} is not a JSON object: {meta!r:.60}") from None
    if len(golds) > 1:
        known["spellings"] = golds
    return json.dumps({**known, **tests}, default=str)


def _gold(text: str, where: str, source: Source) -> str:
    if source.answer_pattern is None or (source.answer_optional and not text.strip()):
        return text.strip()
    found = re.search(source.answer_pattern, text)
    if found is None or found[1] is None:
        raise UserError(f"{where}: prepare.answer_pattern "
                        f"{source.answer_pattern!r} finds no answer in {text[-60:]!r}")
    return found[1].strip()
