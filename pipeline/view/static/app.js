// The page: which view the address names, and what all views share.
import { fill, h, say, trouble } from "./dom.js";
import { get, keep, sendPending, waiting } from "./net.js";
import { tracesView } from "./traces.js";
import { traceView } from "./reader.js";
import { reviewView } from "./review.js";
import { runsView } from "./runs.js";
import { costsView, evaluationView } from "./results.js";

const VIEWS = { traces: tracesView, trace: traceView, review: reviewView, runs: runsView,
  evaluation: evaluationView, costs: costsView };
const TITLES = { traces: "Traces", trace: "A trace", review: "Review", runs: "Runs", evaluation: "Evaluation", costs: "Costs" };

let leave = null;
let turn = 0;

export function address(view, query = {}) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "" && one !== false) search.append(key, one);
    }
  }
  const text = search.toString();
  return `#/${view}${text ? `?${text}` : ""}`;
}

function here() {
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  const view = VIEWS[path] ? path : "traces";
  return { view, query: new URLSearchParams(search ?? "") };
}

async function show() {
  const mine = (turn += 1);
  leave?.();
  leave = null;
  const { view, query } = here();
  const main = document.getElementById("main");
  document.title = `${TITLES[view]} · limbeck`;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    const current = link.dataset.view === view || (view === "trace" && link.dataset.view === (query.get("queue") ? "review" : "traces"));
    if (current) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  main.className = `view-${view}`;
  main.setAttribute("aria-busy", "true");
  try {
    const state = await get("state");
    const content = h("div");
    const left = await VIEWS[view](content, query, state);
    if (mine !== turn) { left?.(); return; }
    leave = left ?? null;
    fill(main, content);
  } catch (error) {
    if (mine !== turn) return;
    fill(main, trouble(error.message));
  }
  main.removeAttribute("aria-busy");
}

addEventListener("hashchange", () => { scrollTo(0, 0); show().then(() => document.getElementById("main").focus({ preventScroll: true })); });

// What could not be sent before is sent now.
if (waiting()) {
  sendPending().then((kept) => say(`${kept.length} earlier verdicts were kept`))
    .catch((error) => say(`${waiting()} verdicts wait to be kept: ${error.message}`, true));
}
show();
export { keep };
