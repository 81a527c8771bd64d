// Review queues: traces one after another, a problem's samples side by side, or two models blind.
import { append, count, fill, h, percent, plural, say, trouble, words } from "./dom.js";
import { get } from "./net.js";
import { address } from "./app.js";
import { reading } from "./reader.js";
import { KEYS, reviewPanel, reviewer, send, who } from "./review_panel.js";
import { sourceOf, sourcePicker } from "./traces.js";

export async function reviewView(main, query, state) {
  const source = sourceOf(query, state);
  if (!source) { main.append(h("h2", {}, "Review"), h("p", {}, "There are no traces to review yet.")); return null; }
  if (query.get("kind")) return work(main, query, state, source);
  const found = await get("agreement", { source });
  main.append(h("h2", {}, "Review"), h("p", {}, "Read a few traces and say what they are worth. With ", h("code", {}, "filter.reviews.obey=true"), " the filter does what was said."),
    start(state, source, found.models), results(found, state));
  return null;
}

function start(state, source, models) {
  const pick = (label, name, at) => h("label", {}, `${label} `, h("select", { name }, ...models.map((model, i) => h("option", { value: model, selected: i === at }, model))));
  const submit = (event) => {
    event.preventDefault();
    location.hash = address("review", Object.fromEntries(new FormData(event.target)));
  };
  return h("form.queues", { onsubmit: submit }, sourcePicker(state, source, (value) => { location.hash = address("review", { source: value }); }), who(() => {}),
    h("fieldset", {}, h("legend", {}, "Which"), ...Object.entries(state.queues).map(([kind, means], number) =>
      h("label.check", {}, h("input", { type: "radio", name: "kind", value: kind, checked: number === 0 }), ` ${means}`))),
    models.length > 1 ? h("p", {}, h("span.quiet", {}, "Blind: "), pick("one", "one", 0), " ", pick("against", "other", 1)) : null,
    h("label", {}, "How many ", h("input.short", { name: "n", type: "number", min: "1", max: "500", value: "20" })),
    h("label", {}, "Seed ", h("input.short", { name: "seed", type: "number", min: "0", value: "0" })), h("button.primary", {}, "Begin"));
}

function results(found, state) {
  if (!found.count) return h("section", {}, h("h3", {}, "What was said"), h("p.quiet", {}, "Nothing yet. Verdicts are kept in ", h("code", {}, state.reviews_file), "."));
  const judge = found.judge;
  const facts = [["Traces seen", count(found.traces)], ["Verdicts", Object.entries(found.verdicts).map(([word, n]) => `${count(n)} ${word}`).join(", ")],
    ["People", Object.entries(found.people).map(([name, n]) => `${name} (${count(n)})`).join(", ")],
    judge ? ["People and judge", judge.compared ? `differ on ${count(judge.differ)} of ${plural(judge.compared, "trace")} of this table (${percent(judge.differ / judge.compared)})` : "no verdict of this table meets one of the judge"] : null,
    ["Krippendorff’s alpha", found.alpha === null ? "not known: nobody saw what another saw, or all said the same" : `${found.alpha.toFixed(3)} over ${plural(found.shared, "trace")} that several saw`],
    ...found.kappas.map((one) => [`Cohen’s kappa, ${one.one} and ${one.other}`, `${one.kappa === null ? "not known: both said one thing alone" : one.kappa.toFixed(3)}, ${plural(one.traces, "trace")}`]),
    ...found.preferences.map((one) => [`${one.one} against ${one.other}`, `${count(one.one_wins)} to ${count(one.other_wins)}, ${plural(one.ties, "tie")}; sign test p = ${one.p.toPrecision(2)}`])];
  return h("section", {}, h("h3", {}, "What was said"), h("dl.facts", {}, ...facts.filter(Boolean).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("p.quiet", {}, "Kept in ", h("code", {}, state.reviews_file), "; limbeck export-reviews writes them out."),
    h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Newest verdicts" }, h("table", {}, h("thead", {}, h("tr", {}, ...["When", "Who", "Said", "Reasons and note", "Trace"].map((name) => h("th.left", { scope: "col" }, name)))),
      h("tbody", {}, ...found.lines.map((one) => h("tr", {}, h("td.left", {}, new Date(one.at).toLocaleString()), h("td.left", {}, one.reviewer),
        h("td.left", { class: `left ${one.verdict === "good" ? "good" : one.verdict === "bad" ? "bad" : ""}` }, one.verdict ?? one.prefer ?? "taken back"),
        h("td.left.wrap", {}, [...(one.reasons ?? []), one.note].filter(Boolean).join("; ")), h("td.left", {}, one.pair ? "a blind pair" : `${one.problem_id}#${one.sample}`)))))));
}

async function work(main, query, state, source) {
  const kind = query.get("kind");
  const found = await get("queue", { source, kind, n: query.get("n"), seed: query.get("seed"), one: query.get("one"), other: query.get("other") });
  const stage = h("div.stage");
  const where = h("p.quiet", { role: "status" });
  let at = Math.min(Number(query.get("at") ?? 0), Math.max(found.groups.length - 1, 0));
  let leave = null;
  const move = (by) => {
    const next = at + by;
    if (next >= found.groups.length) { leave?.(); leave = null; done(stage, source); where.textContent = ""; return; }
    if (next >= 0) { at = next; draw(); }
  };
  const draw = async () => {
    leave?.();
    leave = null;
    where.textContent = `${state.queues[kind]} · ${at + 1} of ${found.groups.length}`;
    stage.setAttribute("aria-busy", "true");
    try {
      const traces = await Promise.all(found.groups[at].map((row) => get("trace", { source, row })));
      leave = (kind === "blind" ? blind : traces.length > 1 ? sideBySide : single)(stage, traces, state, move);
    } catch (error) {
      fill(stage, trouble(error.message));
    }
    stage.removeAttribute("aria-busy");
    scrollTo(0, 0);
  };
  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input:not([type=checkbox]), textarea, select")) return;
    if (event.key === "j" || event.key === "ArrowRight") move(1);
    else if (event.key === "k" || event.key === "ArrowLeft") move(-1);
  };
  append(main, [h("nav.crumbs", { "aria-label": "Where this is" }, h("a", { href: address("review", { source }) }, "← Review"), where,
    h("span.steps", {}, h("button", { type: "button", onclick: () => move(-1) }, "← Previous", h("kbd", {}, "k")), " ", h("button", { type: "button", onclick: () => move(1) }, "Next →", h("kbd", {}, "j")))), stage]);
  if (!found.groups.length) { fill(stage, h("p", {}, "This queue is empty: no trace fits it.")); return null; }
  document.addEventListener("keydown", pressed);
  await draw();
  return () => { document.removeEventListener("keydown", pressed); leave?.(); };
}

function done(stage, source) {
  fill(stage, h("h2", {}, "That was all of them"), h("p", {}, h("a", { href: address("review", { source }) }, "See what was said, and how far people agree")));
}

function single(stage, [told], state, move) {
  const panel = reviewPanel(told, state, () => move(1));
  fill(stage, h("div.sheet", {}, h("article.reading", {}, ...reading(told)), h("aside", { "aria-label": "Review" }, panel.element,
    h("p.quiet", {}, "The judge’s verdict is hidden until you have given yours: see the trace itself."))));
  return panel.leave;
}

function column(told, name, ...more) {
  return h("article.column", { tabindex: "0", "aria-label": name }, h("h3", {}, name), h("div", {}, ...reading({ ...told, problem: null, gold: null }).slice(2)), ...more);
}

// A problem's samples beside each other; the keys speak of the one in focus.
function sideBySide(stage, traces, state, move) {
  const columns = traces.map((told, number) => {
    const status = h("p.told", { role: "status" }, told.reviews.find((one) => one.reviewer === reviewer())?.verdict ?? "");
    const decide = async (verdict) => {
      try { await send(told, { verdict, reasons: [], note: "" }); status.textContent = verdict; } catch (error) { status.textContent = `Not kept yet: ${error.message}`; }
      if (number + 1 < columns.length) columns[number + 1].element.focus(); else say("All samples seen: j goes on.");
    };
    const buttons = h("div.buttons", { role: "group", "aria-label": "Verdict" }, ...Object.entries(KEYS).map(([key, verdict]) => h(`button.${verdict}`, { type: "button", onclick: () => decide(verdict) }, verdict, h("kbd", {}, key))));
    return { decide, element: column(told, `Sample ${told.columns.sample ?? number}`, buttons, status) };
  });
  const pressed = (event) => {
    const at = columns.findIndex((one) => one.element.contains(document.activeElement));
    if (KEYS[event.key] && at >= 0 && !event.ctrlKey && !event.metaKey && !event.target.closest("textarea, input")) columns[at].decide(KEYS[event.key]);
  };
  document.addEventListener("keydown", pressed);
  fill(stage, ...reading(traces[0]).slice(0, 3).filter((part) => !part.classList.contains("fold")), who(() => {}), h("div.columns", {}, ...columns.map((one) => one.element)));
  columns[0].element.focus({ preventScroll: true });
  return () => document.removeEventListener("keydown", pressed);
}

// Two models on one problem; who wrote which is not shown.
function blind(stage, traces, state, move) {
  const status = h("p.told", { role: "status" });
  const choose = async (prefer) => {
    try {
      await send(traces[0], { pair: traces.map((told) => told.key), models: traces.map((told) => told.columns.model), prefer, key: null });
      move(1);
    } catch (error) { status.textContent = `Not kept yet: ${error.message}`; }
  };
  const names = { a: "A is better", t: "As good as each other", l: "B is better" };
  const meaning = { a: "a", t: "tie", l: "b" };
  const pressed = (event) => {
    if (meaning[event.key] && !event.ctrlKey && !event.metaKey && !event.target.closest?.("input, textarea")) choose(meaning[event.key]);
  };
  document.addEventListener("keydown", pressed);
  fill(stage, ...reading(traces[0]).slice(0, 3).filter((part) => !part.classList.contains("fold")), who(() => {}), h("div.columns.two", {}, column(traces[0], "A"), column(traces[1], "B")),
    h("div.buttons.choice", { role: "group", "aria-label": "Which is better" }, ...Object.entries(names).map(([key, name]) => h("button", { type: "button", onclick: () => choose(meaning[key]) }, name, h("kbd", {}, key)))), status);
  return () => document.removeEventListener("keydown", pressed);
}
export { words };
