"""How many requests may be in flight: at the start, and at most."""

from __future__ import annotations

import contextlib
import math
import resource

from pipeline.serve import engines
from pipeline.teacher.config import Teacher, TeacherRuntime

LOCAL = {"solver": 32, "vllm": 1024}
"""For each server: local ones queue by themselves; others are felt out from START to CEILING."""
AHEAD = 1.25
"""Samples in flight for each that a vLLM engine runs at once: its queue never runs empty."""
START, CEILING = 8, 2048


def slots(teacher: Teacher, runtime: TeacherRuntime, samples: int) -> tuple[int, int]:
    """(at the start, at most) requests of `samples` or more, no more than files may be open."""
    given = runtime.concurrency or local(teacher, samples) * len(runtime.addresses())
    start, ceiling = given or START, given or CEILING
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < ceiling + 256:             # a connection is a file
        soft = min(hard, ceiling + 256)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(1, soft - 128)
    return min(start, most), min(ceiling, most)


def local(teacher: Teacher, samples: int) -> int:
    """Requests for one local server; 0 where the teacher is none."""
    if teacher.type == "vllm" and isinstance(running := teacher.vllm.get("max_num_seqs"), int):
        return math.ceil(AHEAD * running * engines(teacher.vllm) / samples)
    return LOCAL.get(teacher.type, 0)
