// Follows the event stream and replaces the sections of the page that have changed.
"use strict";
const live = document.getElementById("live");
const parts = ["header h1", "header p", "#problems", "#virtual-ips", "#services", "#history", "footer"];
let isLoading = false;

async function refresh() {
  if (isLoading || document.hidden) return;
  isLoading = true;
  try {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
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
    live.textContent = "";
  } catch {
    live.textContent = "This node does not answer; the page shows what it said last.";
  } finally {
    isLoading = false;
  }
}

const events = new EventSource("api/v1/events");
events.addEventListener("status", refresh);
events.addEventListener("error", () => {
  live.textContent = "The connection is lost; trying again.";
});
document.addEventListener("visibilitychange", refresh);
