"""`limbeck view`, `export-reviews` and `import-reviews`: what to look at, and people's verdicts."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.experiment import Experiment
from pipeline.curate.reviews import import_reviews, read_reviews, reviews_path
from pipeline.errors import UserError
from pipeline.problems.files import read_rows
from pipeline.view.catalog import scan
from pipeline.view.server import announce, serve
from pipeline.view.workspace import Places, Workspace
from stages.graph import plans


def split_targets(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(paths, overrides) of the command's arguments. Raises UserError if a path is missing."""
    paths, overrides = [], []
    for text in given:
        path = Path(text).expanduser()
        if path.exists():
            paths.append(path)
        elif "=" in text and not text.startswith(("/", ".", "~")):
            overrides.append(text)
        else:
            raise UserError(f"{text} does not exist; name a file of traces, a folder of artifacts, "
                            "or nothing for those of this experiment")
    return paths, overrides


def view(experiment: Experiment, paths: Sequence[Path], port: int, browser: bool) -> None:
    """Serve the page over `paths`, or over the experiment's artifacts without any."""
    roots = [path for path in paths if path.is_dir()]
    files = [path for path in paths if not path.is_dir()]
    planned = {}
    if not paths:
        roots = experiment.runtime.folders()
        planned = {plan.folder.name: plan.ingredients
                   for plan in plans(experiment, "report").values()}
    for root in roots:
        if not scan(root, planned):
            raise UserError(f"{root} holds no artifact yet; run `limbeck generate`, or name a "
                            "folder of artifacts or a file of traces")
    workspace = Workspace(Places(roots, files, experiment.runtime.traces, cache_folder(), planned,
                                 (experiment.filter.language, *experiment.filter.languages),
                                 experiment.filter.reviews.need))
    for place in range(len(files)):
        workspace.table(f"file:{place}")        # what is wrong with a file is said at once
    workspace.said()

    def opened(address: str) -> None:
        announce(address)
        if browser:
            webbrowser.open(address)

    serve(workspace, port, opened)
    print("view: ended; every verdict is kept", file=sys.stderr)


def cache_folder() -> Path:
    """Where indices are kept that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "limbeck" / "view"


def export_reviews(experiment: Experiment, out: Path | None) -> None:
    """Write every verdict as JSON Lines to `out` or standard output."""
    lines = read_reviews(reviews_path(experiment.runtime.traces))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")
    where = f" → {out}" if out else ""
    print(f"export-reviews: {len(lines):,} verdicts{where}", file=sys.stderr)


def take_reviews(experiment: Experiment, source: str) -> None:
    """Add the verdicts of a JSON Lines file that are not there yet."""
    rows: list[dict[str, Any]] = read_rows(source)
    path = reviews_path(experiment.runtime.traces)
    new, known = import_reviews(path, rows)
    print(f"import-reviews: {new:,} new, {known:,} known already → {path}", file=sys.stderr)
