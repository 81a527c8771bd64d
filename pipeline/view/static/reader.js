// One trace as one reads a page: problem, thinking, answer; beside it verdict, judge and review.
import { append, count, fill, h, percent, plural, trouble, words } from "./dom.js";
import { get } from "./net.js";
import { address } from "./app.js";
import { hits, render } from "./richtext.js";
import { LIMIT, mark } from "./traces.js";
import { reviewPanel } from "./review_panel.js";

export async function traceView(main, query, state) {
  const source = query.get("source") ?? state.sources[0]?.id ?? "";
  const told = await get("trace", { source, row: query.get("row") ?? "0" });
  const panel = reviewPanel(told, state);
  main.append(
    h("nav.crumbs", { "aria-label": "Where this is" },
      h("a", { href: address("traces", { ...Object.fromEntries(query), row: "", source }) }, "← Traces"), neighbours(told, query, source)),
    h("div.sheet", {}, h("article.reading", {}, ...reading(told, query)),
      h("aside", { "aria-label": "Verdict and review" }, judgePanel(told), panel.element, samplesPanel(told, query, source), columnsPanel(told))));
  return panel.leave;
}

// Previous and next in the order in which the list was shown.
function neighbours(told, query, source) {
  const box = h("span.steps");
  const step = async (by) => {
    const list = { source, search: query.get("search"), where: query.get("where"), sort: query.get("sort"), desc: query.get("desc"), limit: 500 };
    const rows = (await get("traces", list)).rows.map((row) => row.row);
    const at = rows.indexOf(told.row);
    const next = at < 0 ? told.row + by : rows[at + by];
    if (next !== undefined && next >= 0) location.hash = address("trace", { ...Object.fromEntries(query), source, row: String(next) });
  };
  append(box, [h("button", { type: "button", onclick: () => step(-1) }, "← Previous"), " ", h("button", { type: "button", onclick: () => step(1) }, "Next →")]);
  return box;
}

export function reading(told, query = new URLSearchParams()) {
  const search = query.get("search") ?? "";
  const passages = told.reviews.map((line) => line.passage).filter(Boolean);
  const marks = (field) => [...told.marks[field], ...(search ? hits(told.texts[field], search) : []),
    ...passages.filter((one) => one.field === field).map((one) => ({ start: one.start, end: one.end, kind: "passage" }))];
  const parts = [h("h2.label", {}, "Problem"), told.problem ? h("div.prose.problem-text", { lang: "und" }, render(told.problem))
    : h("p.quiet", {}, `The text of ${told.columns.problem_id} is no longer there.`)];
  if (told.gold) parts.push(h("p.quiet.gold", {}, "A right answer: ", golden(told)));
  if (told.texts.thinking) parts.push(thinking(told, marks("thinking"), search));
  parts.push(h("h2.label", {}, "Answer"));
  const answer = h("div.prose.answer", { "data-field": "answer" });
  if (told.texts.answer) answer.append(render(told.texts.answer, marks("answer")));
  else answer.append(h("p.quiet", {}, told.truncated ? "It was cut off before it answered." : "There is none."));
  if (told.truncated) answer.append(h("p.cut", {}, "— cut off here: it reached the token limit —"));
  parts.push(answer);
  return parts;
}

function golden(told) {
  return /[\\^_{}$]/.test(told.gold) && told.kind !== "gym" && told.kind !== "code" ? h("span", {}, render(told.gold.includes("$") ? told.gold : `$${told.gold}$`).firstChild ?? told.gold)
    : h("code", {}, told.gold.slice(0, 400));
}

function thinking(told, marks, search) {
  const text = told.texts.thinking;
  const repeated = marks.filter((one) => one.kind === "repeated").length;
  const foreign = marks.filter((one) => one.kind === "script").length;
  const notes = [plural(text.split(/\s+/).length, "word"), repeated && plural(repeated, "repeated stretch", "repeated stretches"),
    foreign && plural(foreign, "stretch in another script", "stretches in another script"), told.truncated && !told.texts.answer && "cut off"].filter(Boolean);
  const body = h("div.prose.thinking", { "data-field": "thinking" });
  const box = h("details.fold", {}, h("summary", {}, h("span.label", {}, "Thinking"), h("span.quiet", {}, ` ${notes.join(" · ")}`)), body);
  const draw = () => { if (!body.childNodes.length) body.append(render(text, marks)); };
  box.addEventListener("toggle", () => { if (box.open) draw(); });
  if (search && marks.some((one) => one.kind === "hit")) { draw(); box.open = true; }
  const short = text.length < 1200;
  if (short) { draw(); box.open = true; }
  return box;
}

function judgePanel(told) {
  const judged = told.judged;
  if (judged.trouble) return h("section.panel", {}, h("h3", {}, "The judge"), h("p.quiet", {}, `Not judged: ${judged.trouble}.`));
  const rows = [["Verdict", mark(judged)], ["Extracted", judged.extracted ? h("code", {}, judged.extracted.slice(0, 500)) : "nothing"],
    ["Compared with", h("code", {}, (judged.gold ?? "").slice(0, 500))], ["Read as", judged.answer_read && h("code", {}, judged.answer_read.slice(0, 300))],
    ["Gold read as", judged.gold_read && h("code", {}, judged.gold_read.slice(0, 300))],
    ["Decided by", judged.grader === judged.rule || !judged.rule ? judged.grader : `${judged.grader}, rule “${judged.rule}”`], ["Second grader", second(judged)]];
  return h("section.panel", {}, h("h3", {}, "The judge"),
    h("dl", {}, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

function second(judged) {
  if (judged.second === null || judged.second === undefined) return "has no opinion";
  const agrees = judged.second === (judged.score === 1);
  return h(agrees ? "span" : "span.bad", {}, `${judged.second ? "equal" : "not equal"}${agrees ? ", agrees" : ": the two disagree"}`);
}

function samplesPanel(told, query, source) {
  if (told.siblings.length < 2) return null;
  const right = told.siblings.filter((row) => row.score === 1).length;
  return h("section.panel", {}, h("h3", {}, "Samples of this problem"), h("p.quiet", {}, `${right} of ${told.siblings.length} right`),
    h("ul.samples", {}, ...told.siblings.slice(0, 64).map((row) => h("li", {}, h("a", {
      href: address("trace", { source, row: row.row }), "aria-current": row.row === told.row ? "true" : null,
      title: `${row.model ?? ""} sample ${row.sample}: ${words(row.verdict ?? "not judged")}, ${count(row.tokens)} tokens` },
    h(`span.dot.${row.score === 1 ? "good" : row.score === 0 ? "bad" : "none"}`, {}, h("span", { "aria-hidden": "true" }, row.score === 1 ? "✓" : row.score === 0 ? "✗" : "?"),
      h("span.hidden", {}, ` sample ${row.sample}, ${words(row.verdict ?? "not judged")}`)))))));
}

function columnsPanel(told) {
  const shown = Object.entries(told.columns).filter(([name]) => !["extracted", "verdict", "score", "grader"].includes(name));
  return h("details.panel", {}, h("summary", {}, "All columns, and the tokens a student sees"),
    h("dl", {}, ...shown.flatMap(([name, value]) => [h("dt", {}, words(name)), h("dd", {}, typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value).slice(0, 300))])),
    told.tokens_known ? tokenBox(told) : h("p.quiet", {}, "No token rows were made from these traces yet."));
}

function tokenBox(told) {
  const box = h("div.tokens", { tabindex: "0", role: "group", "aria-label": "Tokens" });
  const button = h("button", { type: "button", onclick: async () => {
    button.remove();
    try {
      const found = await get("tokens", { source: told.source, row: told.row });
      const trained = found.tokens.filter((one) => one[1]).length;
      fill(box, h("p.quiet", {}, `${plural(found.tokens.length, "token")}, ${count(trained)} trained${found.scored ? "; the fuller the colour, the likelier the token was to the teacher" : ""}. Grey ones carry no loss.`),
        h("p.token-row", {}, ...found.tokens.map(token)));
    } catch (error) {
      fill(box, trouble(error.message));
    }
  } }, "Show the token row");
  box.append(button);
  return box;
}

function token([text, trained, chance]) {
  const shown = text.replaceAll("\n", "⏎\n");
  const known = chance !== null && chance !== undefined;
  return h(trained ? "span.trained" : "span.masked", { style: known ? { "--p": String(chance) } : {},
    title: `${trained ? "trained" : "no loss"}${known ? `, ${percent(chance)} to the teacher` : ""}` }, shown);
}
export { LIMIT };
