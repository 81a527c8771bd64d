// Training runs while they train, laid over each other; what refinement kept beside its rewards.
import { append, count, duration, fill, h, plural, trouble } from "./dom.js";
import { get } from "./net.js";
import { address } from "./app.js";
import { COLOURS, plot } from "./plot.js";
import { render } from "./richtext.js";

const EVERY = 1000;

export async function runsView(main, query, state) {
  main.append(h("h2", {}, "Runs"));
  if (!state.runs.length) { main.append(h("p", {}, "Nothing was trained here yet: curves appear as soon as limbeck sft or limbeck rl logs a step.")); return follow(null, main, query); }
  const chosen = query.getAll("run").length ? query.getAll("run") : [state.runs[0].name];
  const choose = (name, on) => { location.hash = address("runs", { run: on ? [...chosen, name] : chosen.filter((one) => one !== name) }); };
  main.append(h("fieldset.runs", {}, h("legend", {}, "Runs to lay over each other"), ...state.runs.map((run) => {
    const at = chosen.indexOf(run.name);
    return h("label.check", {}, h("input", { type: "checkbox", checked: at >= 0, onchange: (event) => choose(run.name, event.target.checked) }),
      at >= 0 ? h(`span.swatch.c${at % COLOURS}`, { "aria-hidden": "true" }) : null, ` ${run.stage} `, h("code", {}, run.key.slice(0, 8)), h("span.quiet", {}, ` ${plural(run.steps, "step")}${run.state === "partial" ? " · not finished" : ""}`));
  })));
  const live = h("div"), completions = h("div");
  main.append(live, completions);
  await kept(completions, chosen, query);
  return follow(live, main, query, chosen);
}

// Looks again every second, also after a run has ended or was killed: another may follow.
async function follow(live, main, query, chosen = []) {
  let timer = null, last = "", stopped = false;
  const look = async () => {
    if (live && !document.hidden) {
      try {
        const found = await get("curves", { run: chosen });
        const text = JSON.stringify(found);
        if (text !== last && !stopped) { draw(live, found); last = text; }
      } catch (error) { if (!stopped) { fill(live, trouble(error.message)); last = ""; } }
    } else if (!live && (await get("state").catch(() => ({ runs: [] }))).runs.length) { dispatchEvent(new HashChangeEvent("hashchange")); return; }
    if (!stopped) timer = setTimeout(look, EVERY);
  };
  await look();
  return () => { stopped = true; clearTimeout(timer); };
}

function draw(live, { runs, differences }) {
  const keys = new Map();
  for (const run of runs) for (const one of run.plots) if (!keys.has(one.key)) keys.set(one.key, one);
  const figures = [...keys.values()].map((one) => plot(one.name, one.meaning, one.percent, runs.flatMap((run, colour) => {
    const found = run.plots.find((other) => other.key === one.key);
    return found ? [{ name: run.name, colour: colour % COLOURS, points: found.points }] : [];
  })));
  const open = new Set([...live.querySelectorAll("details[open]")].map((one) => one.dataset.name));
  fill(live, h("p.quiet", { "data-live": "state" }, runs.map((run) => `${run.name}: ${plural(run.steps, "step")}${run.state === "partial" ? ", not finished" : `, finished${run.seconds ? ` in ${duration(run.seconds)}` : ""}`}`).join(" · ")),
    differences.length ? h("section", {}, h("h3", {}, "What differs"), h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Differences of config" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Key"), ...runs.map((run, i) => h("th.left", { scope: "col" }, h(`span.swatch.c${i % COLOURS}`, { "aria-hidden": "true" }), ` ${run.name}`)))),
      h("tbody", {}, ...differences.map((row) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, row.key)), ...row.values.map((value) => h("td.left.wrap", {}, value === undefined || value === null ? "—" : JSON.stringify(value))))))))) : runs.length > 1 ? h("p", {}, "Their configs do not differ.") : null,
    ...runs.flatMap((run) => run.alarms.map((alarm) => h("p", {}, h("span.bad", {}, `step ${alarm.step}`), ` ${runs.length > 1 ? `${run.name}: ` : ""}${alarm.alarm}`))),
    figures.length ? h("div.plots", {}, ...figures) : h("p.quiet", {}, "No step is logged yet."));
  for (const one of live.querySelectorAll("details")) one.open = open.has(one.dataset.name);
}

async function kept(box, chosen, query) {
  const run = chosen.find((name) => name.includes("rl-"));
  if (!run) return;
  let found;
  try {
    found = await get("completions", { run, step: query.get("step") });
  } catch (error) {
    append(box, [h("h3", {}, "Completions"), h("p.quiet", {}, error.message)]);
    return;
  }
  const steps = h("select", { onchange: (event) => { location.hash = address("runs", { run: chosen, step: event.target.value }); } }, ...found.steps.map((step) => h("option", { value: step, selected: step === found.step }, `step ${step}`)));
  append(box, [h("h3", {}, "Completions beside their rewards"), h("p", {}, h("label", {}, "Kept at ", steps), h("span.quiet", {}, ` ${plural(found.rows.length, "completion")}`)),
    ...found.rows.slice(0, 64).map((row) => h("section.kept-row", {}, h("dl.rewards", {}, ...found.rewards.flatMap((name) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", { class: row[name] > 0 ? "good" : row[name] < 0 ? "bad" : null }, row[name] === null ? "—" : Number(row[name].toPrecision(3)))])),
      h("details", {}, h("summary", {}, "Prompt"), h("pre.plain", { tabindex: "0" }, row.prompt)), h("div.prose", {}, render(row.completion.replaceAll("<think>", "").replaceAll("</think>", "\n\n---\n\n")))))]);
}
export { count };
