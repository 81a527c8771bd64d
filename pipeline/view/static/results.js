// What came out of a run, problem by problem, and what it took; every number leads to its traces.
import { append, count, duration, fill, h, percent, plural, trouble, words } from "./dom.js";
import { get } from "./net.js";
import { address } from "./app.js";
import { title } from "./richtext.js";

const SHOWN = 100;

export async function evaluationView(main, query, state) {
  main.append(h("h2", {}, "Evaluation"));
  const name = query.get("name") || (state.evaluations.find((one) => one.current) ?? state.evaluations[0])?.name;
  if (!name) { main.append(h("p", {}, "Nothing was evaluated here yet. Run limbeck evaluate.")); return; }
  const one = query.get("one"), other = query.get("other");
  const found = await get("scores", { name, one, other });
  const go = (changes) => { location.hash = address("evaluation", { name, one, other, only: query.get("only"), ...changes }); };
  const pick = (label, key, value) => h("label", {}, `${label} `, h("select", { onchange: (event) => go({ [key]: event.target.value }) }, h("option", { value: "" }, "—"), ...found.models.map((model) => h("option", { value: model, selected: model === value }, model))));
  const rows = chosen(found, one, other, query.get("only"));
  append(main, [h("form.filters", { onsubmit: (event) => event.preventDefault() },
    h("label", {}, "Evaluation ", h("select", { onchange: (event) => go({ name: event.target.value, one: "", other: "" }) }, ...state.evaluations.map((item) => h("option", { value: item.name, selected: item.name === name }, item.key.slice(0, 8) + (item.current ? "" : " (earlier)"))))),
    pick("From", "one", one), pick("to", "other", other),
    found.flips ? h("label", {}, "Show ", h("select", { onchange: (event) => go({ only: event.target.value }) }, ...[["", "all"], ["gained", `${count(found.flips.gained)} solved more often`], ["lost", `${count(found.flips.lost)} solved less often`], ["same", `${count(found.flips.same)} as often`]].map(([value, label]) => h("option", { value, selected: (query.get("only") ?? "") === value }, label)))) : null),
  scoreLine(found), h("p.quiet", {}, `${plural(rows.length, "problem")}${rows.length > SHOWN ? `, the first ${SHOWN} shown` : ""}; each dot is a sample and leads to it.`),
  h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Problems and models" }, h("table.scores", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Problem"), ...found.models.map((model) => h("th.left", { scope: "col" }, model)))),
    h("tbody", {}, ...rows.slice(0, SHOWN).map((row) => h("tr", {}, h("th.problem-cell", { scope: "row" }, title(row.problem ?? row.problem_id, 90), found.benchmarks.length > 1 ? h("span.quiet", {}, ` ${row.benchmark}`) : null),
      ...found.models.map((model) => h("td.left", { "data-label": model }, dots(row.models[model], name))))))))]);
}

function scoreLine(found) {
  const parts = found.models.map((model) => [model, Object.values(found.scores[model] ?? {})[0]?.avg]).filter(([, avg]) => avg !== undefined);
  return parts.length ? h("p.lede", {}, parts.map(([model, avg]) => `${model} ${percent(avg)}`).join(" · ")) : null;
}

function chosen(found, one, other, only) {
  if (!only || !one || !other) return found.problems;
  const share = (row, model) => row.models[model] ? row.models[model].right / row.models[model].samples : null;
  return found.problems.filter((row) => {
    const by = Math.sign((share(row, other) ?? NaN) - (share(row, one) ?? NaN));
    return by === { gained: 1, lost: -1, same: 0 }[only];
  });
}

function dots(cell, name) {
  if (!cell) return "";
  return h("span.dots", {}, ...cell.rows.slice(0, 32).map((row, i) => h("a", { href: address("trace", { source: name, row }), "aria-label": `sample ${i + 1} of ${cell.samples}; ${cell.right} are right` }, i < cell.right ? "●" : "○")), h("span.quiet", {}, ` ${cell.right}/${cell.samples}`));
}

export async function costsView(main, query, state) {
  main.append(h("h2", {}, "Costs and funnel"));
  const name = query.get("name") || state.ends[0]?.name;
  if (!name) { main.append(h("p", {}, "Nothing was made here yet.")); return; }
  const found = await get("costs", { name });
  append(main, [h("form.filters", { onsubmit: (event) => event.preventDefault() }, h("label", {}, "Up to ", h("select", { onchange: (event) => { location.hash = address("costs", { name: event.target.value }); } },
    ...state.ends.map((one) => h("option", { value: one.name, selected: one.name === name }, one.name + (one.current ? "" : " (earlier)")))))), stages(found.stages), ...found.funnels.map((one) => funnel(one, found.funnels.length > 1))]);
}

function stages(rows) {
  const slowest = Math.max(...rows.map((row) => row.seconds ?? 0), 1e-9);
  const sum = (key) => rows.reduce((total, row) => total + (row[key] ?? 0), 0);
  const gpus = rows.some((row) => row.gpu_hours);
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Stages" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Stage"), h("th.left", { scope: "col" }, "Time"), h("th", { scope: "col" }, "Tokens"), h("th", { scope: "col" }, "Dollars"), gpus && h("th", { scope: "col" }, "GPU hours"), h("th.left", { scope: "col" }, "Artifact"))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.stage), h("td.left", {}, h("span.mini", { "aria-hidden": "true" }, h("i", { style: { width: `${(100 * (row.seconds ?? 0) / slowest).toFixed(1)}%` } })), duration(row.seconds)),
      h("td", {}, count(row.tokens)), h("td", {}, row.usd === null || row.usd === undefined ? "" : `$${row.usd.toFixed(2)}`), gpus && h("td", {}, row.gpu_hours ? row.gpu_hours.toFixed(2) : ""), h("td.left", {}, h("code", {}, row.name), row.trouble ? h("span.quiet", {}, ` ${row.trouble}`) : null))),
    h("tr", {}, h("th", { scope: "row" }, "all"), h("td.left", {}, h("span.mini"), duration(sum("seconds"))), h("td", {}, ""), h("td", {}, `$${sum("usd").toFixed(2)}`), gpus && h("td", {}, sum("gpu_hours").toFixed(2)), h("td.left", {}, "")))));
}

function funnel(found, several) {
  if (found.trouble) return trouble(found.trouble);
  let left = found.total;
  const to = (where) => address("traces", { source: found.source, where });
  const rows = [["all traces", found.total, 0, "all", ""], ...Object.entries(found.rejected).map(([reason, n]) => { left -= n; return [words(reason), n, left, "rejected", `reason == ${JSON.stringify(reason)}`]; }), ["kept", found.kept, 0, "kept", "kept"]];
  return h("section", {}, h("h3", {}, "From traces to what the student learns from", several ? h("span.quiet", {}, ` ${found.source}`) : null), h("p.quiet", {}, "Each line leads to its traces."),
    h("ul.funnel", {}, ...rows.map(([label, n, start, kind, where]) => h("li", {}, h("a", { href: to(where) }, label), h("div.bar", { "aria-hidden": "true" }, h(`i.${kind}`, { style: { left: `${(100 * start / found.total).toFixed(2)}%`, width: `${(100 * n / found.total).toFixed(2)}%` } })), h("span", {}, count(n), h("span.quiet", {}, ` ${percent(n / found.total)}`))))));
}
export { fill };
