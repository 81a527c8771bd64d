"""The worker process: reads one JSON request a line, answers one JSON line.

Started as `python -m pipeline.judge.worker MEGABYTES`; holds no secret and imports no torch. It
ends with its input; an alarm ends it even during a task whose asker has died. (Linux'
parent-death signal would not do: it fires when the thread that started the worker ends.)
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pipeline.judge.user_judge import user_score


def main() -> None:
    """Serve requests until standard input ends. Standard output is the reply channel alone."""
    size = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.CRITICAL)
    _reply(replies, {"ready": prepare()})
    tasks: dict[str, Callable[..., Any]] = {
        "math": same, "gym": gym_score, "user": user_score, "ifeval": instructions_followed,
        "sleep": sleep, "allocate": allocate}
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + 3)
        try:
            result = {"value": tasks[request["task"]](*request["arguments"])}
        except MemoryError:
            _reply(replies, {"error": "memory"})
            return
        except (ArithmeticError, AttributeError, AssertionError, LookupError, NotImplementedError,
                RecursionError, RuntimeError, TypeError, ValueError) as error:
            result = {"error": type(error).__name__}
        signal.alarm(0)
        _reply(replies, result)


def _reply(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def same(gold: str, answer: str, order: bool) -> bool | None:
    """Ask math-verify whether two boxed answers are equal; None if it cannot read one of them."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    with _without_evaluator():
        left, right = [parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None,
                             fallback_mode="no_fallback") for text in (gold, answer)]
        if not left or not right:
            return None
        return bool(verify(left, right, timeout_seconds=None, strict=True))


@contextmanager
def _without_evaluator() -> Iterator[None]:
    """Replace sympy's string parser, which ends in eval(), by one for a number or a name."""
    # latex2sympy hands it every numeral of an answer (sympy.Number of a string does so)
    from sympy import Float, Integer, Symbol, SympifyError
    from sympy.parsing import sympy_parser

    def plain(text: str, *_: Any, **settings: Any) -> Any:
        text = text.strip()
        if re.fullmatch(r"\d{1,400}", text):
            return Integer(text)
        if re.fullmatch(r"(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d{1,3})?", text):
            return Float(text)
        if re.fullmatch(r"[^\W\d]\w*", text):
            return Symbol(text)
        raise SympifyError(text)

    original, sympy_parser.parse_expr = sympy_parser.parse_expr, plain
    try:
        yield
    finally:
        sympy_parser.parse_expr = original


def prepare() -> bool:
    """Import what the first answer needs, so that its time is not charged to it."""
    return same("1", "1", True) is True


def gym_score(task: str, entry: dict[str, Any], answer: str) -> float:
    """reasoning-gym's own score of `answer` for `entry`."""
    import reasoning_gym

    return float(reasoning_gym.get_score_answer_fn(task)(answer, entry))


def instructions_followed(names: list[str], told: list[dict[str, Any]], prompt: str,
                          text: str) -> list[bool]:
    """Which of IFEval's instructions `text` follows, strictly.

    Raises LookupError for those that count sentences or capital words if nltk's punkt_tab, which
    they need, is not on this machine.
    """
    from if_verifiable.ifeval import instructions_util
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    from langdetect import DetectorFactory
    from nltk.tokenize.punkt import PunktTokenizer

    DetectorFactory.seed = 0                                     # else the language is drawn
    instructions_util._get_sentence_tokenizer = PunktTokenizer   # its pickle is gone from nltk
    followed = []
    for name, given in zip(names, told, strict=True):
        check = INSTRUCTION_DICT[name](name)
        check.build_description(**given)
        if "prompt" in (check.get_instruction_args() or {}):
            check.build_description(prompt=prompt)
        followed.append(bool(check.check_following(text)))
    return followed


def sleep(seconds: float) -> bool:
    """Wait, so that a test can see a worker killed."""
    time.sleep(seconds)
    return True


def allocate(megabytes: int) -> bool:
    """Take memory, so that a test can see the limit hold."""
    return len(bytearray(megabytes << 20)) > 0


if __name__ == "__main__":
    main()
