// Makes elements. Text is set as text and never read as markup.

export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "open") element[key] = value;
    else if (key === "style") for (const [rule, set] of Object.entries(value)) element.style.setProperty(rule, set);
    else element.setAttribute(key, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

export function append(element, children) {
  for (const child of children.flat(4)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
  append(element, children);
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

export const count = (value) => value === null || value === undefined ? "" : Number(value).toLocaleString("en");
export const percent = (value, digits = 1) => value === null || value === undefined ? "" : `${(100 * value).toFixed(digits)}\u00a0%`;
export const words = (name) => String(name ?? "").replaceAll("_", " ");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${minutes} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
}

let silence = null;

export function say(sentence, bad = false) {
  const status = document.getElementById("status");
  clearTimeout(silence);
  if (!bad) silence = setTimeout(() => { status.textContent = ""; }, 4000);
  status.textContent = sentence;
  status.className = bad ? "bad" : "";
}

export function trouble(sentence) {
  return h("p.trouble", { role: "alert" }, sentence);
}
