"""The judge: one verifier for filter, rewards and evaluation. See judge.py."""

from pipeline.verify.judge import check_gold, judge, judge_answer
from pipeline.verify.judgement import Judgement, Policy, Problem, refuse_if_broken
from pipeline.verify.pool import JudgePool

__all__ = ["JudgePool", "Judgement", "Policy", "Problem", "check_gold", "judge", "judge_answer",
           "refuse_if_broken"]
