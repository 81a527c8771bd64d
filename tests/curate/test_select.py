"""Filter: verdict, rules, duplicates, selection, caps; the streamed stage equals the whole."""

import random
from types import SimpleNamespace
from typing import get_args

import polars as pl
import pytest

from pipeline import tables
from pipeline.config import filter
from pipeline.config.experiment import Runtime
from pipeline.config.filter import FilterConfig
from pipeline.config.rl import RlConfig
from pipeline.curate import select as curate
from pipeline.curate.features import FEATURES, Feature, add_features
from pipeline.curate.scripts import SCRIPTS
from pipeline.curate.select import COLUMNS, RULES, decide, funnel, select, summarise
from pipeline.errors import UserError
from pipeline.judge import JudgePool
from pipeline.rl.rewards import language_reward
from stages import filter as stage
from stages.commands import preview_filter

SOUND = "First I add 12 and 30, which is 42. Let me check that by subtracting.\n\nIt holds."
TOLD = "Twelve and thirty make forty-two, so the answer is \\boxed{42}."


def trace(problem="p", sample=0, **changes):
    return {"problem_id": problem, "sample": sample, "thinking": f"{SOUND} {problem} {sample}",
            "answer": TOLD, "finish_reason": "stop", "complete": True, "prompt_tokens": 5,
            "completion_tokens": 40, "cost_usd": 0.0, "seconds": 0.1, "model": "m", "score": 1.0,
            "verdict": "correct", "extracted": "42", "grader": "g", "judge_version": "1", **changes}


def judged(rows):
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float64})


def reasons(rows, sources=None, **settings):
    return select(judged(rows), FilterConfig(**settings), sources)["reason"].to_list()


WRONG = {"score": 0.0, "verdict": "wrong"}


def test_by_default_correct_traces_stay_and_others_leave_with_their_verdict():
    rows = [trace(), trace(sample=1, **WRONG), trace(sample=2, score=None, verdict="timeout"),
            trace(sample=3, thinking=f"{SOUND} p 0")]
    table = select(judged(rows), FilterConfig())
    assert table["reason"].to_list() == ["", "wrong", "timeout", "duplicate"]
    assert table["kept"].to_list() == [True, False, False, False]
    assert table["thinking"].to_list() == [row["thinking"] for row in rows]


def test_the_pass_rate_is_a_problems_share_of_right_ones_among_those_judged():
    rows = [trace("a"), trace("a", 1, **WRONG), trace("a", 2, score=None, verdict="error"),
            trace("b")]
    table = select(judged(rows), FilterConfig(keep="0 < pass_rate < 1"))
    assert table["pass_rate"].to_list() == [0.5, 0.5, 0.5, 1.0]
    assert table["reason"].to_list() == ["", "", "", "expression"]


def test_difficulty_bands_follow_the_pass_rate():
    rows = [trace(p, s, **({} if s < right else WRONG))
            for p, right in (("never", 0), ("hard", 1), ("medium", 2), ("easy", 4), ("always", 5))
            for s in range(5)]
    table = decide(summarise(judged(rows), FilterConfig()), FilterConfig())
    assert (table["difficulty"] == table["problem_id"]).all()


FAULTS = {
    "mixed_language": {"thinking": SOUND + " 但是 我们 需要 检查 一下 答案 是否 正确"},
    "long_paragraph": {"thinking": "so " * 1500},
    "code_in_thinking": {"thinking": SOUND + "\n```python\nprint(42)\n```"},
    "no_summary": {"answer": "\\boxed{42}"},
    "repetition": {"thinking": SOUND + " Wait, let me try that again with care." * 40},
    "cut_off": {"finish_reason": "length"},
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_rejects_its_fault_with_its_name_and_nothing_else(rule):
    rows = [trace(), trace(sample=1, **FAULTS[rule])]
    assert reasons(rows, rules=[rule]) == ["", rule]
    others = [other for other in RULES if other not in (rule, "long_paragraph", "repetition")]
    assert reasons(rows, rules=others) == ["", ""]
    assert set(RULES) == set(filter.Rule.__args__)


def test_rules_leave_sound_real_traces_alone(shared):
    import json

    rows = []
    for name in ("traces_r1_aime2024.jsonl", "traces_rasbt_math_train_sample.jsonl"):
        for line in (shared / "data" / name).open(encoding="utf-8"):
            text = json.loads(line)["meta"]["response"]
            thinking, _, answer = text.rpartition("</think>")
            rows.append(trace(sample=len(rows), thinking=thinking, answer=answer))
    rejected = [reason for reason in reasons(rows, rules=list(RULES)) if reason]
    assert len(rejected) <= len(rows) // 20


def test_language_share_counts_words_by_script_and_leaves_formulas_out():
    rows = [trace(thinking=text) for text in
            ("we add α and $\\beta + 数$", "we add 数学", "数学 is", "", "сложим два and two")]
    shares = add_features(judged(rows), ["language_share"])["language_share"].to_list()
    assert shares == [1.0, 0.5, 1 / 3, 1.0, 0.5]
    chinese = add_features(judged(rows), ["language_share"], "zh")["language_share"].to_list()
    assert chinese[1:3] == [0.5, 2 / 3]


def test_a_new_rule_is_one_line_and_a_new_feature_one_function_and_one_line(monkeypatch):
    shouts = Feature(pl.Boolean, lambda language: pl.col("answer").str.contains("!"))
    monkeypatch.setitem(FEATURES, "shouts", shouts)
    monkeypatch.setitem(COLUMNS, "shouts", shouts.dtype)        # made of FEATURES at import
    monkeypatch.setitem(RULES, "shouting", "shouts and tokens < 50")
    config = FilterConfig().model_copy(update={"rules": ["shouting"]})
    curate.check_filter(config)
    rows = [trace(), trace(sample=1, answer="42!")]
    assert select(judged(rows), config)["reason"].to_list() == ["", "shouting"]


def test_filter_and_reward_tell_languages_apart_by_one_table():
    named = get_args(RlConfig.model_fields["language"].annotation)
    texts = {"en": "we add", "ru": "сложим два", "zh": "数学", "ja": "足すと", "ko": "더하면",
             "ar": "نجمع العددين", "he": "נחבר", "hi": "जल", "th": "บวก"}
    latin = {language for language in named if SCRIPTS[language] == ("Latin",)} - {"en"}
    assert set(named) <= set(SCRIPTS) and set(texts) == set(named) - latin - {"uk", "el"}
    for language in texts:
        for written, text in texts.items():
            share = add_features(judged([trace(thinking=text)]), ["language_share"], language)
            right = set(SCRIPTS[written]) <= set(SCRIPTS[language])
            if right:
                assert share["language_share"][0] == language_reward(text, language=language) == 1
            elif not set(SCRIPTS[written]) & set(SCRIPTS[language]):
                assert share["language_share"][0] == language_reward(text, language=language) == 0


def test_thinking_tokens_are_the_thinkings_share():
    rows = [trace(thinking="a" * 30, answer="b" * 10), trace(sample=1, thinking="", answer="")]
    table = add_features(judged(rows), ["thinking_tokens", "thinking_chars"])
    assert table["thinking_tokens"].to_list() == [30, 0]


def several():
    return [trace("a", s, completion_tokens=n, score=score,
                  thinking=f"{SOUND} {'and so on ' * n}{s}")
            for s, (n, score) in enumerate([(50, 1.0), (20, 0.5), (30, 1.0), (40, 1.0)])]


@pytest.mark.parametrize(("how", "kept"), [
    ({"type": "all"}, {0, 1, 2, 3}), ({"type": "shortest", "n": 2}, {1, 2}),
    ({"type": "best", "n": 2}, {2, 3}), ({"type": "best", "n": 9}, {0, 1, 2, 3})])
def test_selection_of_a_problem(how, kept):
    found = reasons(several(), select=how)
    assert {i for i, reason in enumerate(found) if not reason} == kept
    assert all(reason in ("", "not selected") for reason in found)


def test_diverse_selection_takes_the_one_least_like_the_shortest():
    base = " ".join(f"word{i}" for i in range(60))
    rows = [trace("a", 0, thinking=base, completion_tokens=10),
            trace("a", 1, thinking=base + " more", completion_tokens=20),
            trace("a", 2, thinking=" ".join(f"other{i}" for i in range(60)), completion_tokens=90)]
    assert reasons(rows, select={"type": "diverse", "n": 2}) == ["", "not selected", ""]


def test_near_duplicates_leave_the_first():
    base = " ".join(f"word{i}" for i in range(200))
    rows = [trace("a", 0, thinking=base), trace("a", 1, thinking=base + " more"), trace("a", 2)]
    assert reasons(rows, near_duplicates=0.8) == ["", "near duplicate", ""]


def test_caps_hold_and_a_sources_cap_is_spread_over_its_problems():
    rows = [trace(p, s, completion_tokens=40 + s) for p in "abcd" for s in range(3)]
    assert reasons(rows, per_problem=1).count("over per_problem") == 8
    table = select(judged(rows), FilterConfig(per_source=5), dict.fromkeys("abcd", "s"))
    kept = table.filter("kept")
    assert len(kept) == 5 and kept["problem_id"].n_unique() == 4


def test_the_funnel_adds_up():
    rows = [trace(), trace(sample=1, **WRONG), trace(sample=2, thinking=f"{SOUND} p 0")]
    table = funnel(decide(summarise(judged(rows), FilterConfig()), FilterConfig()))
    assert table["what"].to_list() == ["came", "duplicate", "wrong", "kept"]
    assert table["traces"].to_list() == [3, 1, 1, 1]


def test_the_preview_says_that_nothing_is_kept_and_rounds_shares(monkeypatch, capsys):
    rows = [trace(), *(trace(sample=n, **WRONG) for n in (1, 2))]
    config = FilterConfig(keep="score > 1")
    table = funnel(decide(summarise(judged(rows), config), config))
    assert table.row(-1) == ("kept", 0, 0, 0.0)
    monkeypatch.setattr(stage, "preview", lambda *given: table)
    made = SimpleNamespace(manifest={"key": "x"}, fetched=lambda: None)
    preview_filter(SimpleNamespace(inputs={"prepare": made, "generate": made},
                                   manifest=None, experiment=None))
    said = capsys.readouterr().out
    assert "66.7%" in said and "0.0%" in said


def test_nothing_kept_is_one_sentence_that_says_why():
    with pytest.raises(UserError, match=r"keeps none of 1 traces; 1 of them for 'wrong'"):
        reasons([trace(**WRONG)])


@pytest.mark.parametrize("settings", [
    {"keep": "tokns < 3"}, {"keep": "tokens"}, {"language": "klingon"}])
def test_a_config_that_cannot_work_is_refused_before_any_work(settings):
    with pytest.raises(UserError):
        stage.check(SimpleNamespace(filter=FilterConfig(**settings)))


RUNTIME = Runtime(judge_workers=1)


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    """Inputs of the stage with 100 traces; the judge is replaced by what the rows already say."""
    rng = random.Random(0)
    rows = [trace(f"p{i // 5}", i % 5, completion_tokens=rng.randint(20, 90),
                  **(WRONG if rng.random() < 0.4 else {})) for i in range(100)]
    verdicts = {(row["problem_id"], row["sample"]): row for row in rows}
    pools: list[JudgePool] = []

    def judge(batch, problems, pool):
        pools.append(pool)
        assert set(batch["problem_id"]) == set(problems["problem_id"])
        said = [verdicts[key] for key in batch.select("problem_id", "sample").rows()]
        names = ("score", "verdict", "extracted", "grader", "judge_version")
        return batch.with_columns(*(pl.Series(n, [r[n] for r in said]) for n in names),
                                  pass_rate=pl.lit(0.0))

    monkeypatch.setattr(stage, "judge_traces", judge)
    problems = [{"problem_id": f"p{i}", "problem": "12 + 30?", "answer": "42", "kind": "math",
                 "source": "s", "split": "problems", "meta": "{}"} for i in range(20)]
    inputs = {"prepare": tmp_path / "prepare", "generate": tmp_path / "generate"}
    tables.write(tables.Problem, pl.DataFrame(problems), inputs["prepare"] / "problems.parquet")
    names = [name for name in tables.Trace.columns() if name != "source"]   # an older artifact
    tables.write(tables.Trace, judged(rows).select(names), inputs["generate"] / "traces.parquet")
    return inputs, rows, pools


@pytest.mark.parametrize("rows_a_batch", [7, 4096])
def test_the_streamed_stage_writes_what_the_whole_table_gives(artifacts, tmp_path, monkeypatch,
                                                              rows_a_batch):
    inputs, rows, pools = artifacts
    monkeypatch.setattr(tables.batches, "__defaults__", (rows_a_batch,))
    config = FilterConfig(select={"type": "shortest", "n": 2}, keep='verdict == "correct" and '
                          "pass_rate < 1", per_source=15)
    experiment = SimpleNamespace(filter=config, runtime=RUNTIME)
    out = tmp_path / "out"
    counts = stage.run(experiment, inputs, out)
    written = tables.read(tables.Judged, out / "judged.parquet")
    whole = select(judged(rows), config, {f"p{i}": "s" for i in range(20)})
    compared = ("problem_id", "sample", "thinking", "pass_rate", "kept", "reason")
    assert written.select(compared).rows() == whole.select(compared).rows()
    assert counts["traces"] == 100
    assert len(pools) == -(-100 // rows_a_batch) and len(set(pools)) == 1  # one for the table
    assert counts["kept"] == 15 == sum(counts["kept_by_source"].values())
    assert counts["kept"] + sum(counts["rejected"].values()) == 100
    assert sum(counts["problems_by_difficulty"].values()) == 20


def test_the_preview_counts_what_the_run_then_keeps_and_can_use_earlier_verdicts(
        artifacts, tmp_path, monkeypatch):
    inputs, *_ = artifacts
    experiment = SimpleNamespace(filter=FilterConfig(), runtime=RUNTIME)
    table = stage.preview(experiment, inputs)
    counts = stage.run(experiment, inputs, tmp_path / "out")
    assert table.filter(what="kept")["traces"].item() == counts["kept"]
    monkeypatch.setattr(stage, "judge_traces", None)
    assert stage.preview(experiment, {**inputs, "filter": tmp_path / "out"}).equals(table)


def test_kept_traces_that_are_not_correct_are_counted_and_said(artifacts, tmp_path):
    inputs, *_ = artifacts
    for keep, expected in (("0 < pass_rate < 1", True), ('verdict == "correct"', False)):
        out = tmp_path / str(expected)
        counts = stage.run(SimpleNamespace(filter=FilterConfig(keep=keep), runtime=RUNTIME),
                           inputs, out)
        kept = tables.read(tables.Judged, out / "judged.parquet").filter("kept")
        wrong = (kept["verdict"] == "wrong").sum()
        assert counts["kept_not_correct"] == wrong and (wrong > 0) == expected
        assert (f"; {wrong:,} of these are not correct" in stage.summary(counts)) == expected


def test_a_damaged_table_is_one_sentence(artifacts, tmp_path):
    inputs, *_ = artifacts
    path = inputs["generate"] / "traces.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"traces\.parquet"):
        stage.run(SimpleNamespace(filter=FilterConfig(), runtime=RUNTIME), inputs, tmp_path / "out")


def test_every_rule_names_known_columns():
    curate.check_filter(FilterConfig(rules=list(RULES)))


def test_an_end_that_is_not_known_is_kept_only_if_the_expression_asks_for_it():
    rows = [trace(), trace(sample=1, finish_reason="tired", complete=False),
            trace(sample=2, finish_reason="content_filter", complete=False)]
    assert reasons(rows) == ["", "unknown end", "unknown end"]
    assert reasons(rows, keep='finish_reason != "content_filter"') == ["", "", "expression"]


@pytest.mark.parametrize(("changes", "said"), [
    ({"verdict": "unclosed_thinking", "score": 0.0}, "generate.teacher.opened=false"),
    ({"verdict": "cut_off", "score": 0.0}, "raise generate.sampling.max_tokens"),
    ({"finish_reason": "tired"}, "name finish_reason in filter.keep"), (WRONG, "loosen it")])
def test_a_filter_that_keeps_nothing_says_what_would_help(changes, said):
    with pytest.raises(UserError, match=said):
        reasons([trace(**changes)])
