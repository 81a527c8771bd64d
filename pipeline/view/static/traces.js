// All traces of a table: searched, filtered, sorted, one by one or by problem.
import { append, count, fill, h, percent, plural, trouble, words } from "./dom.js";
import { get } from "./net.js";
import { address } from "./app.js";
import { title } from "./richtext.js";

export const LIMIT = 50;

export function sourceOf(query, state) {
  return query.get("source") || state.sources[0]?.id || "";
}

export function sourcePicker(state, source, change) {
  return h("label", {}, "Table ",
    h("select", { name: "source", onchange: (event) => change(event.target.value) },
      ...state.sources.map((one) => h("option", { value: one.id, selected: one.id === source },
        `${one.label} · ${one.kind}${one.current || one.kind === "file" ? "" : " (earlier)"}`))));
}

export function mark(row) {
  if (row.score === null || row.score === undefined) return h("span.verdict", {}, h("span", { "aria-hidden": "true" }, "?"), " ", words(row.verdict ?? "not judged"));
  const right = row.score === 1;
  return h(right ? "span.verdict.good" : "span.verdict.bad", {}, h("span", { "aria-hidden": "true" }, right ? "✓" : "✗"), " ", words(row.verdict));
}

export async function tracesView(main, query, state) {
  const source = sourceOf(query, state);
  if (!source) {
    append(main, [h("h2", {}, "Traces"), h("p", {}, "There are no traces here yet. Run limbeck generate, and reload this page."), troubles(state)]);
    return null;
  }
  const now = () => Object.fromEntries(query);
  const go = (changes) => { location.hash = address("traces", { ...now(), source, offset: "", ...changes }); };
  const results = h("section", { "aria-label": "Traces found" });
  main.append(h("h2", {}, "Traces"), form(query, state, source, go), results, troubles(state));
  let timer = null;
  const load = async () => {
    let found;
    try {
      found = await get("traces", { ...now(), source, limit: LIMIT });
    } catch (error) {
      fill(results, trouble(error.message));
      if (/so far; ask again/.test(error.message)) timer = setTimeout(load, 3000);
      return;
    }
    fill(results, summary(found, query), query.get("group") ? problems(found, source, query) : table(found, source, query, go),
      pages(found, query, go));
    if (found.searched < found.total) timer = setTimeout(load, 700);
  };
  await load();
  return () => clearTimeout(timer);
}

function form(query, state, source, go) {
  const group = query.get("group") === "problem";
  const submit = (event) => {
    event.preventDefault();
    const data = new FormData(event.target);
    go({ search: data.get("search"), where: data.get("where"), sort: data.get("sort"), desc: data.get("desc") ?? "", group: data.get("group") ?? "" });
  };
  const again = (event) => event.target.form.requestSubmit();
  return h("form.filters", { role: "search", onsubmit: submit },
    sourcePicker(state, source, (value) => { location.hash = address("traces", { source: value }); }),
    h("label.wide", {}, "Words ", h("input", { name: "search", type: "search", value: query.get("search") ?? "", placeholder: 'every word, or "a phrase"' })),
    h("label.wide", {}, "Where ", h("input.mono", { name: "where", value: query.get("where") ?? "", spellcheck: "false", autocapitalize: "off",
      placeholder: 'verdict == "wrong" and tokens > 4000' })),
    h("label", {}, "Sort by ", h("select", { name: "sort", onchange: again },
      ...["row", "tokens", "pass_rate", "verdict", "reason", "model", "review", "problem_id", "random"].map((name) =>
        h("option", { value: name, selected: (query.get("sort") || "row") === name }, name === "row" ? "order of the table" : words(name))))),
    h("label.check", {}, h("input", { type: "checkbox", name: "desc", value: "1", checked: query.get("desc") === "1", onchange: again }), " largest first"),
    h("label.check", {}, h("input", { type: "checkbox", name: "group", value: "problem", checked: group, onchange: again }), " by problem"),
    h("button", {}, "Find"));
}

function summary(found, query) {
  const all = found.found === found.total;
  const said = [all ? plural(found.total, "trace") : `${count(found.found)} of ${plural(found.total, "trace")}`];
  if (query.get("group")) said.push(`of ${plural(found.groups, "problem")}`);
  if (found.searched < found.total) said.push(`· ${count(found.searched)} searched so far`);
  if (!found.indexed && found.progress.words) said.push(`· the index of words is being made: ${percent(found.progress.words / found.total, 0)}`);
  return h("p.quiet", { role: "status" }, said.join(" "));
}

function link(row, source, query, text) {
  const kept = Object.fromEntries([...query].filter(([key]) => ["search", "where", "sort", "desc"].includes(key)));
  return h("a", { href: address("trace", { ...kept, source, row: row.row }) }, text);
}

function table(found, source, query, go) {
  const has = (name) => found.columns.includes(name);
  const head = (label, sort, name) => h(`th${name ?? ""}`, { scope: "col" }, sort
    ? h("button.sort", { type: "button", onclick: () => go({ sort, desc: query.get("sort") === sort && query.get("desc") !== "1" ? "1" : "" }) }, label) : label);
  const models = new Set(found.rows.map((row) => row.model)).size > 1;
  return h("table.traces", {},
    h("thead", {}, h("tr", {}, head("Problem", "problem_id"), models && head("Model", "model", ".left"),
      has("verdict") && head("Verdict", "verdict", ".left"), has("kept") && head("Outcome", "reason", ".left"), has("extracted") && head("Answer", null, ".left"),
      head("Tokens", "tokens"), has("pass_rate") && head("Pass rate", "pass_rate"))),
    h("tbody", {}, ...found.rows.map((row) => h("tr", {},
      h("th.problem-cell", { scope: "row" }, link(row, source, query, row.problem ? title(row.problem) : row.problem_id),
        h("span.quiet", {}, ` ${row.problem_id}#${row.sample}`)),
      models && h("td.left", { "data-label": "Model" }, row.model),
      has("verdict") && h("td.left", { "data-label": "Verdict" }, mark(row), row.review ? h("span.said", { title: "what people said" }, ` ${row.review}`) : null),
      has("kept") && h("td.left", { "data-label": "Outcome" }, row.kept ? "kept" : words(row.reason)),
      has("extracted") && h("td.left.answer-cell", { "data-label": "Answer" }, row.extracted ? h("code", {}, row.extracted.slice(0, 40)) : ""),
      h("td", { "data-label": "Tokens" }, count(row.tokens)),
      has("pass_rate") && h("td", { "data-label": "Pass rate" }, percent(row.pass_rate, 0))))));
}

function problems(found, source, query) {
  return h("ol.problems", {}, ...found.problems.map((one) => h("li", {},
    h("p.asked-brief", {}, one.problem ? title(one.problem, 240) : one.problem_id),
    h("p.quiet", {}, `${one.problem_id} · ${one.pass_rate === null || one.pass_rate === undefined ? "" : `pass rate ${percent(one.pass_rate, 0)} · `}${plural(one.samples, "sample")}${one.tokens ? ` · ${count(Math.round(one.tokens))} tokens on average` : ""}`),
    h("ul.samples", {}, ...one.list.map((row) => h("li", {}, link(row, source, query,
      h(`span.dot.${row.score === 1 ? "good" : row.score === 0 ? "bad" : "none"}`, {
        title: `sample ${row.sample}: ${words(row.verdict ?? "not judged")}, ${count(row.tokens)} tokens${row.kept === undefined ? "" : row.kept ? ", kept" : ", not kept"}` },
      h("span", { "aria-hidden": "true" }, row.score === 1 ? "✓" : row.score === 0 ? "✗" : "?"),
      h("span.hidden", {}, ` sample ${row.sample}, ${words(row.verdict ?? "not judged")}`)))))))));
}

function pages(found, query, go) {
  const offset = Number(query.get("offset") ?? 0);
  const total = query.get("group") ? found.groups : found.found;
  if (total <= LIMIT && !offset) return null;
  return h("nav.pages", { "aria-label": "Pages" },
    h("button", { type: "button", disabled: offset === 0, onclick: () => go({ offset: String(Math.max(0, offset - LIMIT)) }) }, "← Earlier"),
    h("span.quiet", {}, `${count(Math.min(offset + 1, total))} to ${count(Math.min(offset + LIMIT, total))} of ${count(total)}`),
    h("button", { type: "button", disabled: offset + LIMIT >= total, onclick: () => go({ offset: String(offset + LIMIT) }) }, "Later →"));
}

export function troubles(state) {
  return state.troubles.length ? h("details.troubles", {}, h("summary", {}, `${plural(state.troubles.length, "artifact")} cannot be read`),
    h("ul", {}, ...state.troubles.map((one) => h("li", {}, one)))) : null;
}
