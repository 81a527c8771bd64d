// Curves over steps, several runs laid over each other, in the report's manner.
import { count, h, svg } from "./dom.js";

const WIDTH = 360, HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 10, BOTTOM = 24;
export const COLOURS = 6;

function step(span, wanted) {
  if (span <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(span / wanted));
  return [1, 2, 2.5, 5, 10].map((m) => m * power).find((one) => one * wanted >= span * 0.9999);
}

function ticks(low, high, wanted = 4) {
  const bottom = Math.min(low, 0), top = Math.max(high, 0);
  const by = step((top > bottom ? top : bottom + 1) - bottom, wanted);
  const first = Math.floor(bottom / by), last = Math.ceil((top > bottom ? top : bottom + 1) / by - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * by);
}

function number(value) {
  if (Math.abs(value) >= 100000) return `${count(Math.round(value / 1000))}k`;
  return Math.abs(value) >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(4)));
}

function trailing(values, window) {
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i + 1 - window), i + 1);
    return part.reduce((sum, one) => sum + one, 0) / part.length;
  });
}

// lines: [{name, colour, points: [[step, value]]}]
export function plot(label, meaning, percent, lines) {
  const all = lines.flatMap((line) => line.points);
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  const first = xs.reduce((a, b) => Math.min(a, b)), last = xs.reduce((a, b) => Math.max(a, b));
  const marks = ticks(ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b)));
  const scale = (low, high, from, to) => (value) => high <= low ? (from + to) / 2 : from + (value - low) / (high - low) * (to - from);
  const across = scale(first, last, LEFT, WIDTH - RIGHT), up = scale(marks[0], marks.at(-1), HEIGHT - BOTTOM, TOP);
  const path = (points) => `M${points.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`).join("L")}`;
  const grid = marks.flatMap((y) => [svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up(y).toFixed(1), y2: up(y).toFixed(1) }),
    svg("text", { x: LEFT - 6, y: (up(y) + 4).toFixed(1), "text-anchor": "end" }, percent ? `${Number((100 * y).toPrecision(4))} %` : number(y))]);
  const labels = [...new Set([first, last])].map((x) => svg("text", { x: Math.min(across(x), WIDTH - RIGHT - 3 * number(x).length).toFixed(1), y: HEIGHT - 6, "text-anchor": "middle" }, number(x)));
  const drawn = lines.flatMap((line) => {
    const smooth = trailing(line.points.map(([, y]) => y), Math.max(1, Math.floor(line.points.length / 15)));
    const mean = line.points.map(([x], i) => [x, smooth[i]]);
    return [line.points.length > 30 ? svg("path", { class: `raw c${line.colour}`, d: path(line.points) }) : null,
      svg("path", { class: `curve c${line.colour}`, d: path(mean) }), svg("circle", { class: `end c${line.colour}`, cx: across(mean.at(-1)[0]).toFixed(1), cy: up(mean.at(-1)[1]).toFixed(1), r: 3 })];
  });
  const told = lines.map((line) => `${line.name}: ${number(line.points[0][1])} at step ${line.points[0][0]}, ${number(line.points.at(-1)[1])} at step ${line.points.at(-1)[0]}`).join("; ");
  return h("figure", {}, h("h3", {}, label), svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}. ${told}` }, ...grid, ...labels, ...drawn), h("figcaption", {}, meaning));
}
