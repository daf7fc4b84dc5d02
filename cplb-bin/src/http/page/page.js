// Follows the event stream and replaces the sections of the page that have changed.
"use strict";
const live = document.getElementById("live");
const parts = ["header h1", "header p", "#problems", "#virtual-ips", "#services", "#history", "footer"];
const [LOOK, STALE, LIMIT] = [2000, 7000, 5000];
let isLoading = false;
let lastRefresh = Date.now();
let events;

async function refresh() {
  if (isLoading || document.hidden) return;
  isLoading = true;
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(LIMIT) });
    if (!answer.ok) throw new Error(answer.statusText);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    lastRefresh = Date.now();
    live.textContent = "";
  } catch {
    live.textContent = "This node does not answer; the page shows what it said last.";
  } finally {
    isLoading = false;
  }
}

function show(page) {
  document.title = page.title;
  for (const part of parts) {
    const [shown, next] = [document.querySelector(part), page.querySelector(part)];
    if (shown.outerHTML === next.outerHTML) continue;
    // What is scrolled or focused stays so.
    const regions = [...shown.querySelectorAll(".scroll")];
    const focused = regions.indexOf(document.activeElement);
    const places = regions.map((region) => region.scrollLeft);
    shown.replaceChildren(...next.childNodes);
    shown.hidden = next.hidden;
    shown.querySelectorAll(".scroll").forEach((region, index) => {
      region.scrollLeft = places[index] ?? 0;
      if (index === focused) region.focus({ preventScroll: true });
    });
  }
}

// A page that nobody sees holds no connection: a browser has few to one host.
function follow() {
  if (document.hidden) {
    events?.close();
    events = undefined;
  } else if (!events || events.readyState === EventSource.CLOSED) {
    events = new EventSource("api/v1/events");
    events.addEventListener("status", refresh);
  }
}

document.addEventListener("visibilitychange", () => {
  follow();
  refresh();
});
// Also where no event says that a node is gone, or that it has too many readers.
setInterval(() => {
  follow();
  if (Date.now() - lastRefresh > STALE) refresh();
}, LOOK);
follow();
