// Text of a model as one reads it: paragraphs, lists, code and mathematics, with marks where they
// are. Every piece knows its place in the source, so a selection can be found in it again.
import { h } from "./dom.js";
import hljs from "./vendor/highlight/core.min.js";
import python from "./vendor/highlight/python.min.js";
import cpp from "./vendor/highlight/cpp.min.js";
import javascript from "./vendor/highlight/javascript.min.js";

hljs.registerLanguage("python", python);
hljs.registerLanguage("cpp", cpp);
hljs.registerLanguage("javascript", javascript);

const MOST_TEX = 4000;
const ENVIRONMENT = /\\begin\{(align\*?|aligned|equation\*?|gather\*?|cases|array|[pbvBV]?matrix|split)\}/y;
const TURN = /^(wait|hmm|let me (?:re)?check|try again|alternatively|actually|but wait|no,)\b/i;
export const MARK_NAMES = {
  repeated: "said before in this trace", script: "in another script", hit: "found", passage: "marked by a reviewer",
};

// Spans of mathematics: {start, end, from, to, display}.
function mathsIn(text) {
  const found = [];
  let at = 0;
  const take = (end, from, to, display) => {
    found.push({ start: at, end, from, to, display });
    at = end;
  };
  while (at < text.length) {
    const next = text.slice(at).search(/[\\$]/);
    if (next < 0) break;
    at += next;
    const two = text.slice(at, at + 2);
    if (two === "\\(" || two === "\\[") {
      const end = text.indexOf(two === "\\(" ? "\\)" : "\\]", at + 2);
      if (end > 0 && end - at < MOST_TEX) { take(end + 2, at + 2, end, two === "\\["); continue; }
    } else if (two === "$$") {
      const end = text.indexOf("$$", at + 2);
      if (end > at + 2 && end - at < MOST_TEX) { take(end + 2, at + 2, end, true); continue; }
      at += 1;
    } else if (two[0] === "$" && /\S/.test(two[1] ?? "")) {
      const end = closingDollar(text, at + 1);
      if (end > 0) { take(end + 1, at + 1, end, false); continue; }
    } else if (text.startsWith("\\boxed{", at) || text.startsWith("\\fbox{", at)) {
      const end = closingBrace(text, text.indexOf("{", at));
      if (end > 0) { take(end, at, end, false); continue; }
    } else if (text.startsWith("\\begin{", at)) {
      ENVIRONMENT.lastIndex = at;
      const name = ENVIRONMENT.exec(text)?.[1];
      const close = name ? text.indexOf(`\\end{${name}}`, at) : -1;
      if (close > 0 && close - at < MOST_TEX) {
        const end = close + name.length + 6;
        take(end, at, end, true);
        continue;
      }
    } else if (two === "\\\\" || two === "\\$") at += 1;
    at += 1;
  }
  return found;
}

function closingDollar(text, from) {
  for (let at = from; at < text.length && at - from < 600; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "\n" && text[at + 1] === "\n") return -1;
    else if (text[at] === "$") return /\s/.test(text[at - 1]) || /\d/.test(text[at + 1] ?? "") ? -1 : at;
  }
  return -1;
}

function closingBrace(text, from) {
  let depth = 0;
  for (let at = from; at < text.length && at - from < MOST_TEX; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "{") depth += 1;
    else if (text[at] === "}" && (depth -= 1) === 0) return at + 1;
  }
  return -1;
}

class Writer {
  constructor(text, marks) {
    this.text = text;
    this.marks = [...marks].sort((a, b) => a.start - b.start);
    this.maths = mathsIn(text);
  }

  mathAt(at) { return this.maths.find((one) => one.start <= at && at < one.end); }

  // Text from start to end as spans, cut where marks begin and end.
  plain(parent, start, end) {
    if (end <= start) return;
    const cuts = new Set([start, end]);
    for (const mark of this.marks) {
      for (const place of [mark.start, mark.end]) if (place > start && place < end) cuts.add(place);
    }
    const places = [...cuts].sort((a, b) => a - b);
    for (let i = 0; i + 1 < places.length; i += 1) this.piece(parent, places[i], places[i + 1]);
  }

  piece(parent, start, end) {
    const kinds = this.kindsOf(start, end);
    const tag = kinds.length ? `mark.${kinds.join(".")}` : "span";
    const titles = kinds.map((kind) => MARK_NAMES[kind]).join("; ");
    this.text.slice(start, end).split("\n").forEach((line, number, lines) => {
      const from = start + lines.slice(0, number).reduce((sum, one) => sum + one.length + 1, 0);
      if (number) parent.append(h("br"));
      if (line) parent.append(h(tag, { "data-s": from, "data-e": from + line.length, title: titles || null }, line));
    });
  }

  kindsOf(start, end) {
    return [...new Set(this.marks.filter((mark) => mark.start < end && mark.end > start).map((mark) => mark.kind))];
  }

  math(parent, one) {
    const source = this.text.slice(one.start, one.end);
    const box = h(one.display ? "span.display" : "span.inline", { "data-s": one.start, "data-e": one.end });
    box.classList.add(...this.kindsOf(one.start, one.end).map((kind) => `in-${kind}`));
    try {
      window.katex.render(this.text.slice(one.from, one.to), box, {
        displayMode: one.display, throwOnError: true, trust: false, strict: "ignore", maxExpand: 200, maxSize: 20,
      });
    } catch {
      box.replaceChildren(h("code", {}, source));
    }
    if (one.display) box.setAttribute("tabindex", "0");
    else if (source.length > 50) box.classList.add("wide");
    parent.append(box);
  }

  // Mathematics, `code` and **strong** words among text.
  inline(parent, start, end) {
    let at = start, plain = start;
    // A line break before or after a displayed formula is the formula's own.
    const flush = (to, display = false) => {
      let from = plain, until = to;
      while (display && until > from && /\s/.test(this.text[until - 1])) until -= 1;
      if (parent.lastChild?.classList?.contains("display")) while (from < until && /\s/.test(this.text[from])) from += 1;
      this.plain(parent, from, until);
    };
    while (at < end) {
      const one = this.maths.find((math) => math.start >= at);
      const stop = Math.min(end, one ? one.start : end);
      const match = /`([^`\n]+)`|\*\*(?=\S)([^*\n]{1,300}?\S?)\*\*/.exec(this.text.slice(at, stop));
      if (match) {
        const from = at + match.index, inner = match[1] !== undefined ? 1 : 2;
        flush(from);
        const box = h(inner === 1 ? "code" : "strong");
        this.plain(box, from + inner, from + match[0].length - inner);
        parent.append(box);
        at = plain = from + match[0].length;
      } else if (one && one.start < end) {
        // The mathematics inside **a strong title with $x$** stays as it is.
        flush(one.start, one.display);
        this.math(parent, one);
        at = plain = Math.min(one.end, end);
      } else break;
    }
    flush(end);
  }

  code(parent, start, end, language) {
    const text = this.text.slice(start, end);
    const code = h("code", { "data-s": start, "data-e": end });
    const known = hljs.getLanguage(language) ? language : /\bdef |\bimport |print\(/.test(text) ? "python" : null;
    if (known && text.length < 20000) paint(code, hljs.highlight(text, { language: known })._emitter.root.children);
    else code.append(text);
    parent.append(h("pre.code", { tabindex: "0" }, code));
  }
}

// The tree that the highlighter made, as elements; it is never read as markup.
function paint(parent, nodes) {
  for (const node of nodes ?? []) {
    if (typeof node === "string") parent.append(node);
    else {
      const scope = String(node.scope ?? "").split(".")[0].replace(/[^a-z_]/gi, "");
      const box = h("span", { class: scope ? `hl-${scope}` : null });
      paint(box, node.children);
      parent.append(box);
    }
  }
}

export function render(text, marks = []) {
  const out = document.createDocumentFragment();
  const writer = new Writer(text, marks);
  const fence = /^[ \t]*```([^\n`]*)\n([\s\S]*?)(?:^[ \t]*```[ \t]*$|$(?![\s\S]))/gm;
  let at = 0;
  for (const match of text.matchAll(fence)) {
    prose(out, writer, at, match.index);
    const start = match.index + match[0].indexOf("\n") + 1;
    writer.code(out, start, start + match[2].length, match[1].trim().toLowerCase());
    at = match.index + match[0].length;
  }
  prose(out, writer, at, text.length);
  return out;
}

function prose(out, writer, start, end) {
  const gap = /\n[ \t]*(?:\n[ \t]*)+/g;
  const part = writer.text.slice(start, end);
  let at = start;
  for (const match of part.matchAll(gap)) {
    const place = start + match.index;
    if (writer.mathAt(place)) continue;
    paragraph(out, writer, at, place);
    at = place + match[0].length;
  }
  paragraph(out, writer, at, end);
}

function paragraph(out, writer, start, end) {
  const text = writer.text;
  while (start < end && /\s/.test(text[start])) start += 1;
  while (end > start && /\s/.test(text[end - 1])) end -= 1;
  if (start >= end) return;
  const source = text.slice(start, end);
  if (/^(-{3,}|\*{3,}|_{3,})$/.test(source)) { out.append(h("hr")); return; }
  const heading = /^(#{1,6})[ \t]+(?=\S)/.exec(source);
  if (heading) {
    const stop = source.indexOf("\n");
    const box = h("p.heading", { role: "heading", "aria-level": String(Math.min(heading[1].length + 3, 6)) });
    writer.inline(box, start + heading[0].length, stop < 0 ? end : start + stop);
    out.append(box);
    if (stop >= 0) paragraph(out, writer, start + stop + 1, end);
    return;
  }
  if (/^[ \t]*([-*•]|\d{1,3}[.)])[ \t]+\S/.test(source)) { list(out, writer, start, end); return; }
  const later = source.search(/\n(?=[ \t]*([-*•]|\d{1,3}[.)])[ \t]+\S|#{1,6}[ \t]+\S)/);
  if (later > 0 && !writer.mathAt(start + later)) {
    paragraph(out, writer, start, start + later);
    paragraph(out, writer, start + later + 1, end);
    return;
  }
  const box = h(TURN.test(source) ? "p.turn" : "p");
  writer.inline(box, start, end);
  out.append(box);
}

// Items keep the signs and numbers that the model wrote.
function list(out, writer, start, end) {
  const source = writer.text.slice(start, end);
  const box = h("ul.items");
  const item = /^([ \t]*)([-*•]|\d{1,3}[.)])[ \t]+/gm;
  const starts = [...source.matchAll(item)].filter((match) => !writer.mathAt(start + match.index));
  starts.forEach((match, number) => {
    const stop = number + 1 < starts.length ? start + starts[number + 1].index - 1 : end;
    const line = h("li", { style: { "--depth": String(Math.min(match[1].length >> 1, 4)) } });
    const sign = /\d/.test(match[2]) ? match[2] : "•";
    line.append(h("span.sign", { "aria-hidden": sign === "•" ? "true" : null }, sign));
    const text = h("div");
    writer.inline(text, start + match.index + match[0].length, stop);
    line.append(text);
    box.append(line);
  });
  out.append(box);
}

// The beginning of a text in one line, cut where no formula is cut.
export function title(text, limit = 110) {
  const line = text.replace(/\s+/g, " ").trim();
  const writer = new Writer(line, []);
  const inside = writer.mathAt(limit);
  const end = line.length <= limit + 12 ? line.length : inside ? (inside.end - limit < 40 ? inside.end : inside.start) : limit;
  for (const one of writer.maths) one.display = false;
  const box = h("span.title");
  writer.inline(box, 0, end);
  if (end < line.length) box.append("…");
  return box;
}

export function hits(text, search) {
  const wanted = search.startsWith('"') && search.endsWith('"') && search.length > 2
    ? [search.slice(1, -1)] : search.match(/[\p{L}\p{N}]+/gu) ?? [];
  const found = [];
  for (const word of wanted) {
    const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const pattern = new RegExp(wanted.length === 1 && word === search.slice(1, -1) ? escaped
      : `(?<![\\p{L}\\p{N}])${escaped}(?![\\p{L}\\p{N}])`, "giu");
    for (const match of text.matchAll(pattern)) {
      found.push({ start: match.index, end: match.index + match[0].length, kind: "hit" });
      if (found.length > 500) return found;
    }
  }
  return found;
}

// The place in the source of a point of the page, or null outside any text.
export function placeOf(node, offset) {
  const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  const box = element?.closest("[data-s]");
  if (!box) return null;
  const start = Number(box.dataset.s), end = Number(box.dataset.e);
  if (node.nodeType === Node.TEXT_NODE && box.childNodes.length === 1 && box.firstChild === node) return start + offset;
  return offset > 0 ? end : start;
}
