"""The page in a real Chromium: hostile texts, verdicts by keyboard, a run that is followed."""

import asyncio
import json
from urllib.parse import quote

import pytest
from made_run import made_run

from pipeline.curate.reviews import read_reviews
from tests.browser import CHROMIUM, chromium
from tests.view.payloads import PAYLOADS
from tests.view.served import TOKEN, serving, workspace

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to look at the page")
UNFOLD = "for (const one of document.querySelectorAll('details')) one.open = true"
STRANGE = ("document.querySelectorAll('#main :is(script, img, iframe, object, embed, style, link, "
           "base, meta, video, audio, form[action], template, plaintext, [onerror], [onload], "
           "[onclick], [onfocus], #trap, a:not([href^=\"#/\"]))').length")
LOOK = (f"{STRANGE} + (window.owned ? 1000 : 0) "
        "+ (document.querySelectorAll('#main').length - 1) * 100")


def looking(space, steps):
    """Run `steps(page, address)` in a browser on the served page; nothing may complain."""
    async def look(address):
        async with chromium() as page:
            await page.look(1280, 900)
            await page.open(f"{address}/?token={TOKEN}")
            await steps(page)
            outside = [one for one in page.requests if not one.startswith(address)]
            assert not outside
            # That an expression is none is answered with a status that Chromium reports.
            assert not [one for one in page.console if "status of 400" not in one]

    with serving(space) as (address, _):
        asyncio.run(look(address))


@pytest.fixture
def hostile(tmp_path):
    path = tmp_path / "hostile <b>.jsonl"
    rows = [{"id": f"{number} {text[:80]}", "problem": f"{text} {number}?", "answer": text,
             "model": text[:60], "source": text[:60], "kind": "math",
             "completion": f"<think>First {text} and\n\n{text}\n\n* {text}</think>So {text}, "
                           f"\\boxed{{{number}}}"}
            for number, text in enumerate(PAYLOADS)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return workspace(tmp_path, files=[path])


def test_sixty_hostile_texts_are_only_ever_text(hostile):
    async def steps(page):
        assert len(PAYLOADS) >= 60
        for place in ("#/traces", "#/traces?group=problem", "#/traces?search=window"):
            await page.go(place)
            assert await page.run(LOOK) == 0
        for number, text in enumerate(PAYLOADS):
            await page.go(f"#/trace?row={number}&search=window")
            await page.run(UNFOLD)
            await page.until("document.querySelector('.thinking').childNodes.length > 0")
            assert await page.run(LOOK) == 0, text
            assert await page.run("document.body.innerText.includes('So')"), text
        await page.go("#/review?kind=random&n=60&seed=0")
        assert await page.run(LOOK) == 0
        hostile_hash = quote(PAYLOADS[4])
        await page.go(f"#/traces?where={hostile_hash}&search={hostile_hash}")
        assert await page.run(LOOK) == 0

    looking(hostile, steps)


def test_a_hostile_text_is_shown_as_it_is_written(hostile):
    async def steps(page):
        await page.go("#/trace?row=0")
        shown = await page.run("document.querySelector('.answer').textContent")
        assert PAYLOADS[0] in shown

    looking(hostile, steps)


def test_verdicts_are_given_by_keyboard(tmp_path):
    made_run(tmp_path / "made")
    space = workspace(tmp_path, [tmp_path / "made"])

    async def steps(page):
        await page.run("localStorage.setItem('limbeck reviewer', '\"Ada\"')")
        await page.go("#/review?kind=random&n=3&seed=1")
        for number, keys in enumerate(("g", "2b", "ju")):
            for key in keys:
                await page.press(key)
                await asyncio.sleep(0.1)
            if keys[0] != "j":
                await page.until(f"document.querySelector('.crumbs .quiet').textContent"
                                 f".includes('{number + 2} of 3') && "
                                 "!document.querySelector('[aria-busy]')")
        await page.until("document.body.innerText.includes('That was all of them') || "
                         "document.body.innerText.includes('kept at')")
        await page.go("#/review")
        await page.until("document.body.innerText.includes('Ada')")

    looking(space, steps)
    lines = read_reviews(space.reviews_path)
    assert [line["verdict"] for line in lines][:2] == ["good", "bad"]
    assert lines[1]["reasons"] == ["right by luck"]
    assert {line["reviewer"] for line in lines} == {"Ada"}


def test_a_verdict_waits_in_the_browser_while_it_cannot_be_kept(tmp_path):
    made_run(tmp_path / "made")
    space = workspace(tmp_path, [tmp_path / "made"])

    async def steps(page):
        await page.run("localStorage.setItem('limbeck reviewer', '\"Ada\"')")
        await page.go("#/trace?source=evaluate-key&row=3")
        await page.run("window.real = window.fetch; "
                       "window.fetch = () => Promise.reject(new Error('away'))")
        await page.press("b")
        await page.until("document.querySelector('.told').textContent.includes('Not kept yet')")
        assert not read_reviews(space.reviews_path)
        await page.run("window.fetch = window.real")
        await page.press("g")
        await page.until("document.querySelector('.told').textContent.includes('kept at')")

    looking(space, steps)
    assert [line["verdict"] for line in read_reviews(space.reviews_path)] == ["bad", "good"]


def test_a_run_is_followed_to_its_end_and_after_a_kill(tmp_path):
    folders = made_run(tmp_path / "made")
    lines = (folders["sft"] / "log.jsonl").read_text().splitlines(keepends=True)
    partial = tmp_path / "made" / "sft-abc123.partial"
    partial.mkdir()
    log = partial / "log.jsonl"
    log.write_text(lines[0])
    space = workspace(tmp_path, [tmp_path / "made"])
    steps_shown = "document.querySelector('[data-live]').textContent"

    async def follow(page, said):
        await page.until(f"{steps_shown}.includes({said!r})")

    async def steps(page):
        await page.go("#/runs?run=sft-abc123")
        for line in lines[1:4]:
            with log.open("a") as file:
                file.write(line[:20])           # a line is being written
                file.flush()
                file.write(line[20:])
            await follow(page, f"{json.loads(line)['step']} steps, not finished")
        with log.open("a") as file:
            file.write('{"step": 999, "lo')     # killed here
        await asyncio.sleep(1.2)
        assert "not finished" in await page.run(steps_shown)
        log.write_text("".join(lines[:2]))      # resumed: the log goes back to its checkpoint
        await follow(page, f"{json.loads(lines[1])['step']} steps, not finished")
        log.write_text("".join(lines))
        (partial / "manifest.json").write_text(json.dumps(
            {"key": "abc123", "inputs": {}, "counts": {}, "seconds": 65.0}))
        partial.rename(partial.with_name("sft-abc123"))
        await follow(page, "finished in 1 min 05 s")
        assert await page.run("document.querySelectorAll('.plots svg').length") >= 2

    looking(space, steps)
