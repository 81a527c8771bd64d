// Talks to the server; what cannot be done comes back as one sentence.

export class Trouble extends Error {}

export async function get(name, query = {}) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "" && one !== false) search.append(key, one);
    }
  }
  return answer(fetch(`/api/${name}?${search}`));
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Trouble("limbeck view is not running any more; start it again and open the address that it prints");
  }
  if (response.status === 403) throw new Trouble("this address is of an earlier limbeck view; open the one that was printed last");
  let told;
  try {
    told = await response.json();
  } catch {
    throw new Trouble(`the server answered ${response.status} and no more; look at the terminal`);
  }
  if (!response.ok) throw new Trouble(told.error);
  return told;
}

// A verdict that could not be sent waits here and is sent with the next one.
const PENDING = "limbeck pending";
const pending = () => JSON.parse(localStorage.getItem(PENDING) ?? "[]");

export async function keep(line) {
  localStorage.setItem(PENDING, JSON.stringify([...pending(), line]));
  return sendPending();
}

export async function sendPending() {
  const lines = pending();
  if (!lines.length) return [];
  const told = await answer(fetch("/api/review", {
    method: "POST", body: JSON.stringify(lines), headers: { "X-Limbeck": "1", "Content-Type": "application/json" },
  }));
  localStorage.setItem(PENDING, JSON.stringify(pending().slice(lines.length)));
  return told.kept;
}

export const waiting = () => pending().length;
export const dropPending = () => localStorage.removeItem(PENDING);
