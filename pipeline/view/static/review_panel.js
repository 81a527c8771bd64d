// Where one says what one thinks of a trace: by keys or by pressing buttons.
import { fill, h, say } from "./dom.js";
import { dropPending, keep, waiting } from "./net.js";
import { placeOf } from "./richtext.js";

const SUGGESTED = ["wrong answer", "right by luck", "rambles", "repeats itself", "mixes languages", "skips steps", "wrong step", "bad format"];
export const KEYS = { g: "good", b: "bad", u: "unsure" };
const stored = (name, fallback) => JSON.parse(localStorage.getItem(name) ?? JSON.stringify(fallback));
const store = (name, value) => localStorage.setItem(name, JSON.stringify(value));
export const reviewer = () => stored("limbeck reviewer", "");

export function line(told, more) {
  return { reviewer: reviewer(), key: told.key, problem_key: told.problem_key, problem_id: told.columns.problem_id,
    sample: told.columns.sample, model: told.columns.model, source: told.source, row: told.row,
    problem: (told.problem ?? "").slice(0, 160), judge: told.judged.verdict ?? null, ...more };
}

export async function send(told, more) {
  if (!reviewer()) throw new Error("say who you are first, in the box “You are”");
  const kept = await keep(line(told, more));
  say(`Kept: ${more.verdict ?? more.prefer ?? "taken back"}`);
  return kept.at(-1);
}

// Verdict buttons, reasons, note, passage and edit of one trace. `after` is called with each verdict.
export function reviewPanel(told, state, after = null) {
  const mine = () => told.reviews.find((one) => one.reviewer === reviewer());
  const draft = { verdict: mine()?.verdict ?? null, reasons: [...mine()?.reasons ?? []], note: mine()?.note ?? "", passage: mine()?.passage ?? null };
  const element = h("section.panel.review", { "aria-label": "Review" });
  const status = h("p.told", { role: "status" });

  const save = async (changes, move = false) => {
    Object.assign(draft, changes);
    draw();
    try {
      const kept = await send(told, { ...draft, edit: changes.edit ?? null });
      told.reviews = [...told.reviews.filter((one) => one.reviewer !== kept.reviewer), kept];
      status.textContent = `kept at ${new Date(kept.at).toLocaleTimeString()}`;
      status.className = "told";
      if (move) after?.(kept);
    } catch (error) {
      fill(status, `Not kept yet: ${error.message}. `, waiting() ? h("button", { type: "button", onclick: () => { dropPending(); status.textContent = ""; } }, "forget what waits") : "");
      status.className = "told bad";
    }
  };
  const decide = (verdict) => save({ verdict: draft.verdict === verdict && !after ? null : verdict }, true);
  const toggle = (reason) => {
    draft.reasons = draft.reasons.includes(reason) ? draft.reasons.filter((one) => one !== reason) : [...draft.reasons, reason];
    if (draft.verdict) save({}); else draw();
  };

  function draw() {
    const reasons = stored("limbeck reasons", SUGGESTED);
    fill(element, h("h3", {}, "Review"), who(draw),
      h("div.buttons", { role: "group", "aria-label": "Verdict" }, ...Object.entries(KEYS).map(([key, verdict]) =>
        h(`button.${verdict}`, { type: "button", "aria-pressed": String(draft.verdict === verdict), "aria-keyshortcuts": key, onclick: () => decide(verdict) }, verdict, h("kbd", {}, key)))),
      h("fieldset", {}, h("legend", {}, "Reasons"), ...reasons.map((reason, number) => h("label.check", {},
        h("input", { type: "checkbox", checked: draft.reasons.includes(reason), onchange: () => toggle(reason) }), ` ${reason}`, number < 9 ? h("kbd", {}, number + 1) : null)),
      ownReason(reasons, draw)),
      h("label.block", {}, "Note ", h("textarea", { rows: "2", value: draft.note, onchange: (event) => { draft.note = event.target.value; if (draft.verdict) save({}); } })),
      h("div.buttons", {}, h("button", { type: "button", onclick: markPassage }, "Mark the selection", h("kbd", {}, "m")), h("button", { type: "button", onclick: edit }, "Edit", h("kbd", {}, "e"))),
      draft.passage ? h("blockquote.passage", {}, draft.passage.text.slice(0, 300), " ", h("button", { type: "button", onclick: () => save({ passage: null }) }, "unmark")) : null,
      editor, status, others(told));
  }

  const editor = h("div.editor");
  function edit() {
    if (editor.childNodes.length) { fill(editor); return; }
    const thinking = h("textarea", { rows: "8", value: told.texts.thinking }), answer = h("textarea", { rows: "6", value: told.texts.answer });
    fill(editor, h("label.block", {}, "Thinking ", thinking), h("label.block", {}, "Answer ", answer),
      h("p.quiet", {}, "Kept as a new trace, which you call good; this one keeps its own verdict."),
      h("button", { type: "button", onclick: async () => {
        await save({ verdict: draft.verdict ?? "bad", edit: { thinking: thinking.value, answer: answer.value } });
        if (!status.classList.contains("bad")) fill(editor);
      } }, "Keep as a new trace"));
    thinking.focus();
  }

  function markPassage() {
    const passage = selected();
    if (!passage) { say("Select a passage of the thinking or the answer first.", true); return; }
    if (draft.verdict) save({ passage }); else { draft.passage = passage; draw(); }
  }

  function selected() {
    const selection = getSelection();
    if (!selection.rangeCount || selection.isCollapsed) return null;
    const range = selection.getRangeAt(0);
    const field = (range.startContainer.nodeType === Node.TEXT_NODE ? range.startContainer.parentElement : range.startContainer).closest("[data-field]")?.dataset.field;
    const start = placeOf(range.startContainer, range.startOffset), end = placeOf(range.endContainer, range.endOffset);
    if (!field || start === null || end === null || end <= start) return null;
    return { field, start, end, text: told.texts[field].slice(start, end) };
  }

  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input:not([type=checkbox]), textarea, select")) return;
    const reason = stored("limbeck reasons", SUGGESTED)[Number(event.key) - 1];
    if (KEYS[event.key]) decide(KEYS[event.key]);
    else if (reason) toggle(reason);
    else if (event.key === "m") markPassage();
    else if (event.key === "e") { edit(); } else if (event.key === "n") element.querySelector("textarea").focus();
    else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", pressed);
  draw();
  return { element, leave: () => document.removeEventListener("keydown", pressed) };
}

export function who(change) {
  return h("label.block.who", {}, "You are ", h("input", { value: reviewer(), autocomplete: "off", placeholder: "your name",
    onchange: (event) => { store("limbeck reviewer", event.target.value.trim()); change(); } }));
}

function ownReason(reasons, draw) {
  const input = h("input", { placeholder: "a reason of your own", "aria-label": "A reason of your own" });
  const add = () => { if (input.value.trim()) { store("limbeck reasons", [...reasons, input.value.trim()]); draw(); } };
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); add(); } });
  return h("div.own", {}, input, h("button", { type: "button", onclick: add }, "Add"),
    reasons.length > SUGGESTED.length ? h("button", { type: "button", onclick: () => { store("limbeck reasons", SUGGESTED); draw(); } }, "Remove own") : null);
}

function others(told) {
  const rest = told.reviews.filter((one) => one.reviewer !== reviewer() && one.verdict);
  return rest.length ? h("div.others", {}, h("h4", {}, "Others"), h("ul", {}, ...rest.map((one) => h("li", {}, `${one.reviewer}: ${one.verdict}`,
    one.reasons?.length ? ` (${one.reasons.join(", ")})` : "", one.note ? ` “${one.note}”` : "")))) : null;
}
