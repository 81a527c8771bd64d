"""The registry of kinds."""

from pipeline.judge import JudgePool, Problem, judge
from pipeline.judge.kinds import KINDS, Kind
from pipeline.judge.verdict import judgement


def test_a_new_kind_is_one_function_and_one_line(monkeypatch):
    def parity(text, answers, problem):
        """Whether the last answer is as even as the gold."""
        right = int(answers[-1]) % 2 == int(problem.answer) % 2
        return judgement("correct" if right else "wrong", answers[-1], "parity")

    monkeypatch.setitem(KINDS, "parity", Kind(parity, extracts=True))
    problem = Problem("p", "", "4", kind="parity")
    assert [judge(rf"\boxed{{{n}}}", problem).score for n in (2, 3)] == [1.0, 0.0]
    with JudgePool(1) as pool:
        assert [j.verdict for j in pool.judge_many([r"\boxed{7}", r"\boxed{8}"], [problem] * 2)] \
            == ["wrong", "correct"]


def test_of_kind_open_nothing_is_right_or_wrong_and_an_unfinished_answer_is_still_said():
    from pipeline.completion import Completion
    from pipeline.judge import Problem, has_gold, judge
    from pipeline.judge.kinds import needs_answer

    problem = Problem("p", "Write a poem.", "", kind="open")
    ends = {"cannot_judge": Completion(None, "a poem"), "no_answer": Completion("hm", ""),
            "cut_off": Completion(None, "a po", finish_reason="length"),
            "unclosed_thinking": Completion("hm", "", closed=False)}
    for verdict, completion in ends.items():
        found = judge(completion, problem)
        assert (found.verdict, found.score, found.grader) == (verdict, None, "open")
    assert not has_gold({"answer": "", "kind": "open"}) and not needs_answer("open")
    assert not has_gold({"answer": "a reference", "kind": "open"})
