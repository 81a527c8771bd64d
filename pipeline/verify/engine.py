"""What runs inside a worker: math-verify, and reasoning-gym's scorers. Never called in the parent.

math-verify's own timeouts are off (they need signals, and a main thread); the worker is killed.
"""

from __future__ import annotations

import logging
import time
from typing import Any

logging.disable(logging.CRITICAL)


def same(gold: str, answer: str, order: bool) -> bool | None:
    """math-verify's opinion of two boxed answers, None where it cannot read one of them."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    left, right = [parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None,
                         fallback_mode="no_fallback") for text in (gold, answer)]
    if not left or not right:
        return None
    return bool(verify(left, right, timeout_seconds=None, strict=True))


def gym_score(task: str, entry: dict[str, Any], answer: str) -> float:
    """reasoning-gym's own score of `answer` for `entry`."""
    import reasoning_gym

    return float(reasoning_gym.get_score_answer_fn(task)(answer, entry))


def sleep(seconds: float) -> bool:
    """Wait, so that a test can see a worker killed."""
    time.sleep(seconds)
    return True


def allocate(megabytes: int) -> bool:
    """Take memory, so that a test can see the limit hold."""
    return len(bytearray(megabytes << 20)) > 0
