"""judge(): one completion against one problem. The only place where a verdict is made."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

from pipeline.completion import Completion, Verdict, split_completion
from pipeline.judge.extract import extract
from pipeline.judge.kinds import kind_of
from pipeline.judge.pool import WorkerKilledError, WorkerPool
from pipeline.judge.verdict import Judgement, Problem, WorkerTask, judgement


def judge(completion: str | Completion, problem: Problem, *, prompt_opens_thinking: bool = False,
          pool: JudgePool | None = None) -> Judgement:
    """Judge `completion`, in at most the pool's seconds (default 5) whatever the text.

    Only what follows closed thinking counts; the last box decides. Raises UserError if the kind
    is unknown or meta lacks what the kind needs, and nothing else.
    """
    step = judge_by_rules(completion, problem, prompt_opens_thinking=prompt_opens_thinking)
    return resolve(step, pool or default_pool())


def judge_answer(answer: str, problem: Problem, pool: JudgePool | None = None) -> Judgement:
    """Judge an answer already extracted (no thinking, no box)."""
    step = kind_of(problem).grade(answer, [answer] if answer.strip() else [], problem)
    return resolve(step, pool or default_pool())


def judge_by_rules(completion: str | Completion, problem: Problem, *,
                   prompt_opens_thinking: bool = False) -> Judgement | WorkerTask:
    """Return the verdict if the rules decide, else a task for a worker."""
    step = _by_rules(completion, problem, prompt_opens_thinking)
    # An unfinished answer has its verdict, but of kind open nothing is right or wrong.
    return replace(step, score=None, grader="open") \
        if isinstance(step, Judgement) and kind_of(problem).open else step


def _by_rules(completion: str | Completion, problem: Problem,
              prompt_opens_thinking: bool) -> Judgement | WorkerTask:
    kind = kind_of(problem)
    if isinstance(completion, str):
        completion = split_completion(completion, opened=prompt_opens_thinking)
    if not completion.closed:
        return judgement("unclosed_thinking", None, "extract")
    if completion.finish_reason == "length":
        return judgement("cut_off", None, "extract")
    if completion.answer.isspace() or not completion.answer:
        return judgement("no_answer", None, "extract")
    answers = extract(completion.answer, problem.policy.marker) if kind.extracts \
        else [completion.answer]
    return kind.grade(completion.answer, answers, problem)


def resolve(step: Judgement | WorkerTask, pool: JudgePool) -> Judgement:
    """Turn what judge_by_rules returned into a verdict, with a worker of `pool` if need be."""
    if isinstance(step, Judgement):
        return step
    try:
        return step.read(pool.ask(step.task, step.arguments))
    except ValueError:
        return judgement("cannot_judge", step.extracted, step.grader)
    except WorkerKilledError as lost:
        verdict: Verdict = "timeout" if lost.args[0] == "timeout" else "error"
        return judgement(verdict, step.extracted, step.grader)


class JudgePool(WorkerPool):
    """Judges completions with workers that can be killed. Safe to share between threads."""

    def judge(self, completion: str | Completion, problem: Problem) -> Judgement:
        """Judge one completion."""
        return judge(completion, problem, pool=self)

    def judge_many(self, completions: Iterable[str | Completion], problems: Iterable[Problem],
                   progress: Callable[[int], None] | None = None) -> list[Judgement]:
        """Judge all, in order. `progress` is called with the count done so far.

        The rules decide in this thread; only what needs a worker goes to threads that wait.
        """
        rows = [judge_by_rules(completion, problem)
                for completion, problem in zip(completions, problems, strict=True)]
        waiting = [i for i, row in enumerate(rows) if isinstance(row, WorkerTask)]
        done = len(rows) - len(waiting)
        if progress and done:
            progress(done)
        with ThreadPoolExecutor(self.workers) as threads:
            verdicts = threads.map(lambda i: resolve(rows[i], self), waiting)
            for count, (i, verdict) in enumerate(zip(waiting, verdicts, strict=True), start=1):
                rows[i] = verdict
                if progress:
                    progress(done + count)
        return [row for row in rows if isinstance(row, Judgement)]


@lru_cache(maxsize=1)
def default_pool() -> JudgePool:
    """The pool of calls that name none: two workers, started when first needed."""
    pool = JudgePool(workers=2)
    atexit.register(pool.close)
    return pool


def check_gold(problem: Problem, pool: JudgePool | None = None) -> Judgement:
    """Judge the gold answer against itself, as a completion would state it.

    prepare drops or reports what is not "correct" here, before any teacher token is paid for.
    Raises UserError for a code problem without tests that can be run.
    """
    kind = kind_of(problem)
    if step := kind.check_gold(problem):
        return resolve(step, pool or default_pool())
    text = problem.answer if not kind.boxes_gold or "\\boxed" in problem.answer else \
        f"\\boxed{{{problem.answer}}}"
    if problem.policy.marker == "tag":
        text = f"<answer>{problem.answer}</answer>"
    return judge(text, problem, pool=pool)
