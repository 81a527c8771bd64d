"""Decontamination: copies are found however they are dressed, look-alikes are left."""

import json
import random
from types import SimpleNamespace

import pytest

from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.experiment import Runtime
from pipeline.config.problems import PrepareConfig
from pipeline.curate.contamination import Evaluation, contamination
from pipeline.errors import UserError
from pipeline.problems.sources import load_rows
from stages import evaluate, prepare
from stages.graph import STAGES

LONG = ("The points $(9, -5)$ and $(-3, -1)$ are the endpoints of a diameter of a circle. "
        "What is the sum of the coordinates of the center of the circle?")
PIPES = ("Two pipes fill a tank in \\frac{12}{7} hours; how long does the slower of the two pipes "
         "need when it is left alone with the job?")
SHORT = "Compute $\\sin 60^\\circ$."
TINY = "What is $2 + 3$?"
SETS = {"math/1": LONG, "math/2": SHORT, "own/3": TINY, "own/4": PIPES}
EVALUATION = Evaluation(SETS)


def hit(text):
    found = contamination([text], EVALUATION)
    return (found[0].method, found[0].against) if found else None


@pytest.mark.parametrize(("text", "expected"), [
    (LONG.upper(), ("exact", "math/1")), (LONG.replace("$", "").replace(" ", "  "),
                                         ("exact", "math/1")),
    (LONG.replace("(", "\\left(").replace(")", "\\right)"), ("exact", "math/1")),
    ("Consider this. " + LONG + " Explain.", ("ngram", "math/1")),
    ("Given two endpoints of a diameter of a circle, find more.", None),
    ("You know that (9, -5) and (-3, -1) are the endpoints of a diameter. Draw it.",
     ("ngram", "math/1")),
    (PIPES.replace("\\frac", "\\dfrac"), ("exact", "own/4")),
    (PIPES.replace("hours", "h").replace("long does", "much time does").replace("left alone", "on "
     "its own"), ("ngram", "own/4")),
    (SHORT.replace("^\\circ", "°"), ("exact", "math/2")), ("compute sin 60^\\circ", ("exact",
                                                                                     "math/2")),
    ("First compute $\\sin 60^\\circ$, then square it.", ("ngram", "math/2")),
    ("Compute $\\sin 30^\\circ$.", None), ("Compute $\\cos 60^\\circ$ of the angle.", None),
    ("What is $2+3$", ("exact", "own/3")), ("What is $2-3$?", None), ("What is $2+4$?", None),
    ("", None), ("circle", None)])
def test_a_copy_is_found_however_it_is_dressed(text, expected):
    assert hit(text) == expected


def test_a_reworded_copy_without_eight_shared_words_is_found_by_likeness():
    text = "A runner covers 13 kilometres every morning before he starts to work in town at 9."
    other = "A runner covers 13 kilometres each morning before he begins to work in town at 9."
    found = contamination([other], Evaluation({"e/1": text}))
    assert [(h.method, h.against) for h in found] == [("fuzzy", "e/1")] and found[0].score > 0.8
    assert contamination([other.replace("13", "14")], Evaluation({"e/1": text})) == []
    assert contamination([other], Evaluation({"e/1": text}), fuzzy=2) == []


def test_every_hit_shows_text_that_both_hold():
    for text in ("Consider this. " + LONG, "First " + SHORT, PIPES):
        found = contamination([text], EVALUATION)[0]
        assert found.matched in text and len(found.matched) > 10
        squeezed = "".join(found.matched.lower().split())
        assert squeezed[:20] in "".join(SETS[found.against].lower().split())


def test_phrasing_that_many_problems_share_is_no_hit():
    tail = "where m and n are relatively prime positive integers, find m plus n."
    rng = random.Random(0)

    def told():
        return " ".join(f"w{rng.randrange(10 ** 6)}" for _ in range(30)) + " " + tail

    evaluation = Evaluation({f"e/{i}": told() for i in range(5)})
    assert contamination([told() for _ in range(20)], evaluation) == []
    assert contamination([told()], Evaluation({"e/0": told()}), share=0.5) == []
    assert len(contamination([told()], Evaluation({"e/0": told()}))) == 1


def test_a_template_with_other_numbers_is_no_hit_and_two_problems_do_not_add_up_to_one():
    def told(a, b, c, target):
        return f"Take each of the numbers {a}, {b} and {c} once and then reach just {target} there."

    held = {"e/1": told(1, 2, 3, 6), "e/2": told(4, 5, 6, 77), "e/3": told(7, 8, 9, 504)}
    evaluation = Evaluation(held)
    assert contamination([told(11, 12, 13, 36), told(3, 2, 1, 6)], evaluation) == []
    mixed = contamination([told(1, 2, 3, 77)], evaluation)
    assert all(hit.score < 0.9 for hit in mixed)
    assert contamination([told(1, 2, 3, 77)], evaluation, share=0.9) == []
    assert [h.against for h in contamination([told(4, 5, 6, 77)], evaluation)] == ["e/2"]


def test_a_set_without_problems_hits_nothing():
    assert contamination([LONG], Evaluation({})) == [] and contamination([], EVALUATION) == []


def test_every_planted_problem_of_real_sets_is_found(shared):
    def problems(name):
        path = shared / "data" / f"{name}.jsonl"
        return [json.loads(line)["problem"] for line in path.open(encoding="utf-8")]

    held = [p for name in ("math500", "amc2023", "aime2024") for p in problems(name)]
    train = problems("gsm8k_train")[:1500]
    evaluation = Evaluation({f"e/{i}": text for i, text in enumerate(held)})
    before = contamination(train, evaluation)
    planted = contamination(train + [f"Solve: {text}" for text in held], evaluation)
    found = {h.row for h in planted if h.row >= 1500}
    long = {1500 + i for i, text in enumerate(held) if len(text.split()) >= 8}
    assert long <= found and len(found) >= 0.99 * len(held)
    assert len(before) <= 0.01 * len(train)


def test_what_is_dropped_unseen_is_compared_as_typed_and_what_is_reported_is_not():
    from pipeline.curate.normalise import comparable_words, same_text_key

    assert same_text_key("Turn LEFT, then  stop.") == same_text_key("turn left then stop?")
    assert same_text_key(r"Solve \(x+1\) now") == same_text_key("Solve $x+1$ now.")
    assert same_text_key("Turn left.") != same_text_key("Turn right.")
    assert same_text_key("1+1") != same_text_key("1-1")
    apart = (r"88 \div (4 \div 2)", r"88 \div 4 \div 2", "7 × 8", "7 ÷ 8", "7 − 8", "7 · 8", "7 8",
             "√16", "16", "[0, 1]", "[0, 1)", "f'(2)", "f(2)", "f''(2)", "1.5", "1,5", "1 5",
             r"\sqrt{2 + 1}", r"\sqrt{2} + 1", "⌊x⌋", "⌈x⌉", "x", "X", "a ∪ b", "a ∩ b")
    assert len(set(map(same_text_key, apart))) == len(apart)
    hashes = [list(comparable_words([text]).hashes) for text in (r"\left( \dfrac{1}{2} \right)",
                                                           r"(\frac{1}{2})")]
    assert hashes[0] == hashes[1]


def problem_file(path, *texts, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"problem": text, "answer": "1", **more})
                              for text in texts))
    return str(path)


@pytest.fixture
def same_stem(tmp_path):
    """Two evaluation sets whose files have the same name."""
    return [problem_file(tmp_path / "a/test.jsonl", LONG),
            problem_file(tmp_path / "b/test.jsonl", PIPES)]


def left_of(config):
    """(training problems left, what the removed ones are held against)."""
    left, removed = prepare._decontaminate({"problems": load_rows(config, 0)}, config, 0, None)
    return [row["problem"] for row in left], {hit["against"] for hit in removed}


def test_evaluation_sets_whose_files_share_a_name_are_all_held_against_the_problems(
        same_stem, tmp_path):
    train = problem_file(tmp_path / "train.jsonl", LONG, PIPES, TINY)
    config = PrepareConfig(problems=train, decontaminate=same_stem)
    assert left_of(config) == ([TINY], {f"{name}/test-0" for name in same_stem})
    alone = PrepareConfig(problems=train, decontaminate=same_stem[:1])
    assert left_of(alone)[1] == {"test/test-0"}


def test_an_evaluation_set_that_gives_two_problems_one_id_is_refused(tmp_path):
    sets = [problem_file(tmp_path / "eval.jsonl", LONG, PIPES, id="x")]
    config = PrepareConfig(problems=problem_file(tmp_path / "train.jsonl", TINY),
                                   decontaminate=sets)
    with pytest.raises(UserError, match="'x'; make ids unique"):
        left_of(config)


def test_an_entry_s_wrong_key_is_named_and_splits_of_a_set_are_told_apart():
    from pipeline.config.load import load

    for entry, said in (("{problems: a, problem_colum: c}", "did you mean 'problem_column'"),
                        ("{subset: main}", "problems")):
        with pytest.raises(UserError, match=said):
            load(PrepareConfig, [], [f"decontaminate=[{entry}]"])
    config = load(PrepareConfig, [], ["decontaminate=[{problems: a, subset: b}, "
                                              "{problems: a, subset: b, split: validation}]"])
    assert list(prepare._evaluation_sets(config)) == ["a/b", "a/b/validation"]


def test_benchmarks_whose_files_share_a_name_are_all_measured(same_stem, tmp_path):
    def benchmarks(*names):
        config = EvaluateConfig(benchmarks=list(names))
        return evaluate._benchmarks(SimpleNamespace(evaluate=config, seed=0, runtime=Runtime()), {})

    found = benchmarks(*same_stem, problem_file(tmp_path / "other.jsonl", TINY))
    assert {name: rows[0]["problem"] for name, rows in found.items()} == {
        same_stem[0]: LONG, same_stem[1]: PIPES, "other": TINY}


def test_an_evaluation_set_may_have_its_own_columns_and_is_named_once(tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": LONG, "gold": "1"}))
    train = problem_file(tmp_path / "train.jsonl", LONG, TINY)
    entry = {"problems": str(other), "problem_column": "question"}
    config = PrepareConfig(problems=train, decontaminate=[entry])
    assert left_of(config) == ([TINY], {"other/other-0"})
    experiment = SimpleNamespace(prepare=config, seed=0, runtime=Runtime())
    assert STAGES["prepare"].files(experiment) == (tmp_path / "train.jsonl", other)
    with pytest.raises(UserError, match="twice"):
        left_of(PrepareConfig(problems=train, decontaminate=[entry, str(other)]))
