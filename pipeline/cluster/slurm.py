"""Slurm: a batch job that runs a limbeck command, is queued again when stopped, and its records.

The job's script becomes limbeck by `exec`, so that the signal before the time limit reaches one
process: it saves, ends with 130, and asks for its requeue after that and not while it saves.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

DEFAULTS = {"open-mode": "append", "requeue": True, "signal": "B:USR1@120"}
"""Options of sbatch that an interrupted recipe needs: 120 s to save before the time limit."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE",
         "OUT_OF_MEMORY", "PREEMPTED", "gone"}
"""States after which a job that is to be queued again would be PENDING."""
POLL_SECONDS = 5.0
"""Between two questions to the controller, which every user of a cluster asks."""


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options of sbatch under its long names; a switch is true."""
    return [f"--{name}" if value is True else f"--{name}={value}"
            for name, value in options.items() if value is not False and value is not None]


def script(module: str, arguments: Sequence[str], setup: str) -> str:
    """Return the job's script: `setup`, then `python -m module arguments` in this folder."""
    line = shlex.join([sys.executable, "-m", module, *arguments])
    return f"#!/bin/bash\nset -e\ncd {shlex.quote(str(Path.cwd()))}\n{setup}\nexec {line}\n"


def submit(text: str, options: Mapping[str, Any], name: str, folder: Path, command: str) -> str:
    """Hand the script `text` to sbatch and record it in `folder`; returns the job's id.

    Raises UserError if Slurm is not there or refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on this machine's path; submit from a login node of the "
                        "cluster, or run the command itself")
    folder.mkdir(parents=True, exist_ok=True)
    given = {**DEFAULTS, "job-name": f"limbeck-{name}",
             "output": str(folder.resolve() / "%j.log"),
             **{key.replace("_", "-"): value for key, value in options.items()}}
    asked = subprocess.run(["sbatch", "--parsable", *flags(given)], input=text, text=True,
                           capture_output=True, check=False)
    if asked.returncode:
        raise UserError(f"sbatch refused the job ({_reason(asked.stderr)}); change "
                        "runtime.slurm, whose keys are sbatch's long options")
    job = asked.stdout.strip().partition(";")[0]
    record = {"job": job, "command": command, "submitted": int(time.time()),
              "log": str(given["output"]).replace("%j", job)}
    (folder / f"{job}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return job


def _reason(stderr: str) -> str:
    return (stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("sbatch: ")


def requeue() -> None:
    """Queue this job again, unless Slurm itself is ending it (a user's scancel)."""
    job = os.environ["SLURM_JOB_ID"]
    if state_of([job]).get(job) == "RUNNING":
        subprocess.run(["scontrol", "requeue", job], check=False)


def state_of(jobs: Sequence[str]) -> dict[str, str]:
    """Return the state of each job that Slurm still knows, e.g. PENDING."""
    known = (_states() if jobs else None) or {}
    return {job: known[job] for job in jobs if job in known}


def _states() -> dict[str, str] | None:
    """The state of every job that Slurm knows; None if it does not answer."""
    if shutil.which("squeue") is None:
        return None
    listed = subprocess.run(["squeue", "--noheader", "--states=all", "--format=%i %T"], text=True,
                            capture_output=True, check=False)
    return None if listed.returncode else dict(line.split() for line in listed.stdout.splitlines())


def wait_for(job: str, folder: Path, say: Callable[[str], None]) -> int:
    """Wait until Slurm runs `job` no more and return its exit code; `say` is told of each state."""
    said = None
    while True:
        states = _states()
        # A controller that restarts says nothing for a while.
        state = "Slurm does not answer" if states is None else states.get(job, "gone")
        if state != said:
            say(state)
        elif state in ENDED:        # twice: one that is queued again may pass through such a state
            ends = _ends(folder / f"{job}.ends")
            last = int(ends[-1]) if ends else 1
            return {"COMPLETED": 0, "gone": last}.get(state, last or 1)
        said = state
        time.sleep(POLL_SECONDS)


def records(folder: Path) -> list[dict[str, Any]]:
    """Return what was submitted from `folder`, oldest first, with `state` and `attempts`."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    states = state_of([one["job"] for one in found])
    for one in found:
        ends = _ends(folder / f"{one['job']}.ends")
        one["attempts"] = len(ends)
        one["state"] = states.get(one["job"]) or (f"ended with {ends[-1]}" if ends else "gone")
    return sorted(found, key=lambda one: (one["submitted"], one["job"]))


def note_end(folder: Path, code: int) -> None:
    """Add the exit code of this attempt to the job's record."""
    with (folder / f"{os.environ['SLURM_JOB_ID']}.ends").open("a", encoding="utf-8") as file:
        file.write(f"{code}\n")


def _ends(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.is_file() else []
