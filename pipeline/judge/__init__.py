"""The judge: one verifier for filter, rewards and evaluation. See judge.py."""

from pipeline.judge.judge import JudgePool, check_gold, judge, judge_answer
from pipeline.judge.kinds import has_gold, needs_answer
from pipeline.judge.verdict import Judgement, Policy, Problem, check_broken_share

__all__ = [
           "JudgePool",
           "Judgement",
           "Policy",
           "Problem",
           "check_broken_share",
           "check_gold",
           "has_gold",
           "judge",
           "judge_answer",
           "needs_answer",
]
