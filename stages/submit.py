"""submit and jobs: the same command as a batch job, and what became of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.cluster import slurm
from pipeline.config.experiment import Experiment
from pipeline.errors import StoppedError, UserError
from stages.graph import STAGES
from stages.make import check_targets, goals, stage_targets


def submit_command(experiment: Experiment, target: str, step: str | None, given: Sequence[str],
                   wait: bool) -> int:
    """Submit `limbeck target given` to Slurm, print its id and log, and return 0.

    With `wait` the exit code of the job, once it has ended; raises StoppedError on Ctrl-C.
    """
    check_targets(experiment, goals(experiment) if target == "all"
                  else stage_targets(experiment, target, step))
    folder = _folder(experiment)
    runtime = experiment.runtime
    # What another job makes is waited for; of its own attempt on a lost node, the lock too.
    text = slurm.script("stages.job", [str(folder.resolve()), target, "--wait", *given],
                        runtime.slurm_setup)
    job = slurm.submit(text, runtime.slurm, experiment.name, folder,
                       shlex.join(["limbeck", target, *given]))
    print(f"job {job}; its log: {folder / f'{job}.log'}; `limbeck jobs` says how it stands",
          flush=True)
    if not wait:
        return 0
    try:
        return slurm.wait_for(job, folder, lambda state: print(
            f"job {job}: {state}", file=sys.stderr))
    except KeyboardInterrupt:
        raise StoppedError(f"not waiting any more, job {job} goes on; `limbeck jobs` says how it "
                           f"stands, `scancel {job}` ends it") from None


def show_jobs(experiment: Experiment, as_json: bool) -> None:
    """Print each job submitted from this artifacts folder, its state and where its log is."""
    folder = _folder(experiment)
    rows = slurm.records(folder)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("job", "state", "ended", "submitted", "command", box=None, pad_edge=False)
    for row in rows:
        when = datetime.fromtimestamp(row["submitted"]).strftime("%Y-%m-%d %H:%M")
        table.add_row(row["job"], row["state"], str(row["attempts"]), when, row["command"])
    Console().print(table)
    print(f"logs: {folder / 'JOB.log'}" if rows else f"no job was submitted from {folder}")


def _folder(experiment: Experiment) -> Path:
    return experiment.runtime.folders()[0] / "jobs"


def check_request(target: str, scheduler: str, step: str | None) -> None:
    """Raise UserError if `target` is no command that a job can run, or `scheduler` unknown."""
    if target == "all" and step:
        raise UserError(f"all makes every step; name a stage to make of step {step} alone")
    if target not in (*STAGES, "all"):
        raise UserError(f"a job runs a stage or all, not {target!r}; the stages are "
                        f"{', '.join(STAGES)}")
    if scheduler != "slurm":
        raise UserError(f"limbeck submits to slurm, not to {scheduler!r}")

