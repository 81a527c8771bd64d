"""Starts a training job on several GPUs or nodes through `accelerate launch`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.recipe import SftJob


def command(options: Mapping[str, Any], arguments: list[str]) -> list[str]:
    """The accelerate command line: `options` under accelerate's own names, true ones bare."""
    flags = []
    for name, value in options.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False and value is not None:
            flags += [f"--{name}", str(value)]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, *arguments]


def launch(job: SftJob, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run `job` in the processes accelerate starts; returns its counts.

    Every node of several runs the same command with its own machine_rank. A UserError repeats
    what a process complained of.
    """
    path, failure, counts = (job.out / name for name in ("job.json", "failure.txt", "counts.json"))
    path.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    for old in (failure, counts):
        old.unlink(missing_ok=True)
    line = command(options, ["-m", "pipeline.sft", str(path)])
    code = subprocess.run(line, check=False).returncode
    if failure.is_file():
        raise UserError(failure.read_text(encoding="utf-8"))
    if code or not counts.is_file():
        raise UserError(f"sft: accelerate launch ended with code {code}; its messages are above "
                        "(`accelerate launch --help` lists what runtime.launch may hold)")
    return json.loads(counts.read_text(encoding="utf-8"))
