"""The report on a made-up run: its numbers, its plots, its page, and that page in a browser."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from made_run import SKILL, made_run

from pipeline.config.evaluate import ReportConfig
from pipeline.config.experiment import Experiment
from pipeline.config.filter import FilterConfig
from pipeline.config.load import load
from pipeline.errors import UserError
from pipeline.evaluate import examples, numbers, plots
from pipeline.evaluate.facts import facts
from pipeline.evaluate.page import duration, funnel, headline
from stages import report
from stages.graph import plans

ROOT = Path(__file__).resolve().parents[2]
ATTACK = '</pre><script>document.title="owned"</script><img src=x onerror=alert(1)>'
EXPERIMENT = SimpleNamespace(name="made <up>", seed=3, report=ReportConfig(), filter=FilterConfig(),
                             runtime=SimpleNamespace(traces=Path("no-store")))


def made_report(root, leave_out=(), **run):
    """(numbers, page text, folder) of the report on a made-up run."""
    folders = {k: v for k, v in made_run(root, **run).items() if k not in leave_out}
    out = root / "report-key.partial"
    out.mkdir()
    counts = report.run(EXPERIMENT, folders, out)
    final = out.rename(root / "report-key")
    page = (final / counts["page"]).read_text(encoding="utf-8")
    return json.loads((final / "numbers.json").read_text(encoding="utf-8")), page, final


class Tags(HTMLParser):
    """Every start tag with its attributes, and which tags are still open at the end."""

    VOID = {"meta", "line", "path", "circle", "rect", "br"}

    def __init__(self, page):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag


def test_numbers_keep_the_names_that_others_script_against(tmp_path):
    told, _, _ = made_report(tmp_path)
    assert list(told["models"]) == list(SKILL)
    for by in told["models"].values():
        score = by["heldout"]
        assert {"avg", "ci_low", "ci_high", "problems", "samples", "cut_off"} <= set(score)
        assert 0 <= score["ci_low"] <= score["avg"] <= score["ci_high"] <= 1
    assert told["stages"]["sft"] == {"key": "sft-key", "seconds": 101.5, "tokens": 70_000,
                                     "counts": {"tokens": 4321}}
    assert told["stages"]["generate"]["cost_usd"] == pytest.approx(4.0)
    assert told["lineage"]["rl"] == {"prepare": "prepare-key", "sft": "sft-key"}
    assert told["libraries"] == {"trl": "1.16.0"} and told["machine"]["cores"] >= 1


def test_the_page_names_models_with_their_sizes_the_settings_and_the_commands(tmp_path):
    folders = made_run(tmp_path)
    tiny_model = {"w": {"dtype": "F32", "shape": [700, 1000], "data_offsets": [0, 0]}}
    header = json.dumps(tiny_model).encode()
    (folders["sft"] / "model").mkdir()
    (folders["sft"] / "model" / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header)
    for name, more in {
            "student": {"config": {"model": "Qwen/Qwen2.5-0.5B", "chat_template": "qwen2_5"}},
            "generate": {"config": {"samples": 3, "teacher": {"type": "openai", "model": ATTACK}}},
            "sft": {"command": "limbeck sft -c <mine>.yaml", "config": {
                "trainer": {"learning_rate": 0.5}, "head": "trl"}}}.items():
        path = folders[name] / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    (folders["student"] / "model.txt").write_text("Qwen/Qwen2.5-0.5B")
    found = facts(folders)
    assert ("student, untrained", "Qwen/Qwen2.5-0.5B", 5e8) in found["models"]
    assert ("after SFT", "sft-key/model", 7e5) in found["models"]
    assert found["settings"]["sft"] == {"sft.trainer.learning_rate": "0.5"}     # head is as usual
    out = tmp_path / "report-key.partial"
    out.mkdir()
    report.run(EXPERIMENT, folders, out)
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in ("500\N{NO-BREAK SPACE}M", "700\N{NO-BREAK SPACE}K", "generate.samples=3",
                 "limbeck sft -c &lt;mine&gt;.yaml", "student.chat_template=qwen2_5"):
        assert text in page, text
    assert ATTACK not in page and not Tags(page).open


def test_the_page_shows_what_models_that_judge_said_of_each_model(tmp_path):
    folders = made_run(tmp_path)
    path, manifest = folders["evaluate"] / "scores.json", folders["evaluate"] / "manifest.json"
    scores = json.loads(path.read_text())
    for place, model in enumerate(SKILL):
        said = {"good": {"mean": -1.25 + place, "low": -1.5, "high": 2.5, "problems": 60,
                         "unjudged": 7}}
        if place:       # the first is what the others are compared with
            said["better"] = {"mean": 0.5625, "low": 0.5, "high": 0.625, "problems": 60,
                              "unjudged": 0}
        scores[model]["heldout"]["judges"] = said
    path.write_text(json.dumps(scores))
    made = json.loads(manifest.read_text())
    made["config"] = {"judges": {
        "good": {"type": "reward_model", "model": "a<b>", "reads": "whole"},
        "better": {"type": "pairwise", "model": "m", "reads": "answer", "question": "Which?"}}}
    made["counts"]["judges"] = {"better": {"asked": 1234, "cost_usd": 0.5}}
    manifest.write_text(json.dumps(made))
    out = tmp_path / "report-key.partial"
    out.mkdir()
    report.run(EXPERIMENT, folders, out)
    told = json.loads((out / "numbers.json").read_text(encoding="utf-8"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert told["judges"]["better"]["asked"] == 1234 and not Tags(page).open
    section = page[page.index("Scores by models that judge"):page.index("</dl>", page.index(
        "Scores by models that judge"))]
    assert section.count("0.562") == 3 and "-1.25" in section and "7 without a score" in section
    assert section.count("–") == 1 and "a&lt;b&gt;" in section and "1,234 questions" in section
    assert "whole completion" in section and "Which?" in section


def test_every_trace_is_counted_as_kept_or_under_one_reason(tmp_path):
    told, page, _ = made_report(tmp_path)
    traces = told["traces"]
    assert traces["total"] == 400 == traces["kept"] + sum(traces["rejected"].values())
    assert f"All cost $4.00, ${4 / traces['kept']:.4f} for each one kept." in page
    bars = funnel(traces)
    assert bars[-2]["start"] == pytest.approx(bars[-1]["share"])  # the last reason ends at kept


def test_each_reason_shows_the_first_trace_that_left_for_it_cut_short_and_escaped(tmp_path):
    told, page, _ = made_report(tmp_path, thinking="<b>7-2=5</b>. " + "Wait, too low. " * 200)
    shown = page[page.index("one rejected trace"):page.index("</details>")]
    judged = pl.read_parquet(tmp_path / "filter-key/judged.parquet").rows(named=True)
    for reason in told["traces"]["rejected"]:
        first = next(row for row in judged if row["reason"] == reason)
        card = shown[shown.index(f"<h3>{reason.replace('_', ' ')}</h3>"):].split("</article>")[0]
        assert f"{first['problem_id']}#{first['sample']} " in card and len(card) < 1200
        assert "&lt;b&gt;7-2=5" in card and "characters left out" in card
    assert shown.count("<article") == len(told["traces"]["rejected"]) == 3


def test_the_page_closes_every_tag_and_names_no_address(tmp_path):
    _, page, _ = made_report(tmp_path)
    tags = Tags(page)
    assert tags.open == []
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object"}
    assert not [a for _, a in tags.seen if {"src", "href", "srcset"} & set(a)]
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page
    assert page.count("<svg") == 3 + 7 + 1  # curves of SFT and RL, one histogram


def test_model_output_stays_text(tmp_path):
    _, page, _ = made_report(tmp_path, thinking=ATTACK)
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page and "made &lt;up&gt;" in page
    assert Tags(page).open == []


def test_the_alarms_of_refinement_stand_on_the_page_as_text(tmp_path):
    folders = made_run(tmp_path)
    for step, said in ((40, "the KL divergence is <b>high</b>"), (50, "too short")):
        with (folders["rl"] / "alarms.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "kind": "made", "alarm": said}) + "\n")
    out = tmp_path / "report"
    out.mkdir()
    report.run(EXPERIMENT, folders, out)
    page = (out / "report.html").read_text()
    assert "the KL divergence is &lt;b&gt;high" in page and "step 50" in page
    assert Tags(page).open == []


@pytest.mark.parametrize(("absent", "models", "gone", "stays"), [
    (("rl",), ("untrained", "sft"), "Reinforcement learning", "Supervised fine-tuning"),
    (("sft", "rl", "pack"), ("untrained",), "Supervised fine-tuning", "Scores"),
    ((), ("teacher",), "after SFT</h3>", "the teacher solves"),
    (("evaluate",), ("sft",), "Three problems", "Supervised fine-tuning"),
])
def test_a_part_without_its_input_is_left_out(tmp_path, absent, models, gone, stays):
    _, page, _ = made_report(tmp_path, leave_out=absent, models=models)
    assert gone not in page and stays in page
    assert Tags(page).open == []


def test_a_model_of_which_something_or_nothing_could_be_judged_is_said_to_be_so(tmp_path):
    folders = made_run(tmp_path)
    path = folders["evaluate"] / "scores.json"
    scores = json.loads(path.read_text()) | {
        "rl": {"heldout": {"problems": 0, "samples": 0, "unjudged": 240}}}
    scores["sft"]["heldout"] |= {"problems": 59, "samples": 3, "unjudged": 5}
    path.write_text(json.dumps(scores))
    out = tmp_path / "out"
    out.mkdir()
    report.run(EXPERIMENT, folders, out)
    page = (out / "report.html").read_text()
    assert "none of its 240 completions could be judged" in page
    assert page.count("not judged:") == 1 and "without 5 not judged: 59 problems, k = 3" in page


def test_a_broken_input_is_one_sentence_that_names_the_file(tmp_path):
    folders = made_run(tmp_path)
    for name in ("filter/judged.parquet", "rl/log.jsonl", "evaluate/scores.json"):
        stage, file = name.split("/")
        path = folders[stage] / file
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        with pytest.raises(UserError, match=re.escape(file)) as error:
            report.run(EXPERIMENT, folders, tmp_path)
        assert "\n" not in str(error.value)
        path.write_bytes(whole)


def test_sample_problems_follow_the_rule_and_never_repeat():
    def row(name, model, score):
        return {"problem_id": name, "model": model, "score": score}

    rows = [row("a", "sft", 1.0), row("a", "rl", 1.0), row("b", "sft", 0.0), row("b", "rl", 1.0),
            row("c", "sft", 0.0), row("c", "rl", None), row("d", "sft", 1.0), row("d", "rl", 0.0)]
    assert examples.choose(rows, ["sft", "rl"]) == {"b": "newly right", "a": "right", "c": "wrong"}
    assert list(examples.choose(rows[:4], ["sft", "rl"])) == ["b", "a"]
    assert list(examples.choose(rows, [])) == ["a", "b", "c"]


def test_a_very_long_trace_keeps_its_head_and_its_tail():
    text = "head" + "x" * 1_000_000 + "tail"
    short = examples.shorten(text)
    assert len(short) < 1.01 * examples.COMPLETION_CHARS
    assert short.startswith("head") and short.endswith("tail") and "980,008 characters" in short


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (0.2, 7.3), (-3, 2), (0, 1e6),
                                           (5, 5), (0, 1e-5), (-2, -1)])
def test_ticks_are_few_even_and_enclose_the_values(low, high):
    marks = plots.ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high * (1 - 1e-9) and 2 <= len(marks) <= 7
    gaps = [b - a for a, b in pairwise(marks)]
    assert max(gaps) == pytest.approx(min(gaps))


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(5, -1.0), (9, 3.0)],
                                    [(s, float(s % 7)) for s in range(1, 400)]])
def test_a_curve_stays_inside_its_picture(points):
    drawn = str(plots.line(points, "a & b"))
    found = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", drawn)
    assert found and "a &amp; b" in drawn
    assert all(0 <= float(x) <= plots.WIDTH and 0 <= float(y) <= plots.HEIGHT for x, y in found)


def test_a_metric_that_is_nan_for_a_step_leaves_a_gap_and_no_nan():
    log = [{"step": 1, "entropy": 1.0}, {"step": 2, "entropy": math.nan}, {"step": 3, "loss": 1.0}]
    assert numbers.curve(log, "entropy") == [(1, 1.0)]


def test_the_headline_is_a_sentence_for_any_set_of_models():
    def scores(*models):
        return {m: {"heldout": {"avg": SKILL[m], "problems": 600}} for m in models}

    def said(*models):
        return headline(scores(*models)).replace("\N{NO-BREAK SPACE}", " ")

    assert said("sft") == "Of 600 held-out problems, the student solves 50.0 % after SFT."
    assert said(*SKILL).endswith("the student solves 0.0 % untrained, 50.0 % after SFT and "
                                 "75.0 % after RL; its teacher solves 60.0 %.")
    assert said() == ""


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.04, 59.94, 59.99, 61, 3599.6, 7260)] == \
        ["0.0 s", "59.9 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"]


def test_stages_that_no_model_needs_are_not_run():
    def needed(models, *more):
        default = [ROOT / "configs/default.yaml"]
        return set(plans(load(Experiment, default, [f"evaluate.models={models}", *more]), "report"))

    assert {"pack", "sft", "rl"} <= needed("[rl]")
    assert not {"pack", "sft", "rl"} & needed("[untrained, teacher]")
    assert "sft" not in needed("[rl]", "rl.start=base") and "rl" not in needed("[sft]")
    bare = needed("[rl]", "rl.start=base", "student.model=some/model")
    assert bare == {"prepare", "student", "rl", "evaluate", "report"}       # no teacher is asked


@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_opens_the_page_without_a_complaint(tmp_path, width):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    _, page, folder = made_report(tmp_path, thinking=ATTACK)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
               "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
               "--enable-logging=stderr", f"--window-size={width},900", "--dump-dom"]
    seen = subprocess.run([*command, f"file://{folder / 'report.html'}"], capture_output=True,
                          text=True, timeout=120, check=True)
    assert "CONSOLE" not in seen.stderr
    assert "<title>limbeck · made &lt;up&gt;</title>" in seen.stdout  # no script changed it
    assert seen.stdout.count("<svg") == page.count("<svg")
