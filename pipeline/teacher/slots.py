"""How many requests may be in flight: at the start, and at most."""

from __future__ import annotations

import contextlib
import resource

from pipeline.teacher.config import Teacher, TeacherRuntime

LOCAL = {"solver": 32, "vllm": 1024}
"""Local servers queue by themselves; others are felt out from START to CEILING."""
START, CEILING = 8, 2048


def slots(teacher: Teacher, runtime: TeacherRuntime) -> tuple[int, int]:
    """(at the start, at most), no more than files may be open."""
    given = runtime.concurrency or LOCAL.get(teacher.type)
    start, ceiling = given or START, given or CEILING
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < ceiling + 256:             # a connection is a file
        soft = min(hard, ceiling + 256)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = max(1, soft - 128)
    return min(start, most), min(ceiling, most)
