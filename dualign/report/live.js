// Loads a page again that is written while a run goes on; place, open sections and focus stay.
"use strict";
(() => {
  const live = document.getElementById("live");
  const hold = document.getElementById("hold");
  const stale = document.getElementById("stale");
  const seconds = Number(live.dataset.seconds);
  const key = `dualign ${location.pathname}`;
  const silence = Math.max(300, 5 * seconds); // seconds after which a page counts as left alone
  const focusable = "a, summary, button";
  const label = (element) => `${element.tagName} ${element.textContent}`;
  let held = false;

  // A page from a file may have no storage: then only the place is lost.
  const stored = () => {
    try {
      return JSON.parse(sessionStorage.getItem(key)) || {};
    } catch {
      return {};
    }
  };
  const store = () => {
    const open = [...document.querySelectorAll("details[open] > summary")].map(label);
    const active = document.activeElement;
    const focus = active && active.matches(focusable) ? label(active) : "";
    try {
      sessionStorage.setItem(key, JSON.stringify({ held, open, focus, place: scrollY }));
    } catch {}
  };

  const showHeld = () => {
    hold.setAttribute("aria-pressed", String(held));
    hold.textContent = held ? "Held: go on" : "Hold this page";
  };
  const state = stored();
  held = Boolean(state.held);
  hold.hidden = false;
  showHeld();
  for (const summary of document.querySelectorAll("summary")) {
    summary.parentElement.open = (state.open || []).includes(label(summary));
  }
  if (state.focus) {
    const element = [...document.querySelectorAll(focusable)].find((each) => label(each) === state.focus);
    if (element) element.focus({ preventScroll: true, focusVisible: true });
  }
  if (state.place !== undefined) scrollTo(0, state.place);

  hold.addEventListener("click", () => {
    held = !held;
    showHeld();
    store();
    if (!held) again();
  });
  const again = () => {
    store();
    location.reload();
  };
  const later = () => setTimeout(tick, seconds * 1000);
  const tick = () => {
    const silent = (Date.now() - Date.parse(live.dataset.written)) / 1000;
    if (silent > silence) {
      stale.textContent = `Not written for ${Math.round(silent / 60)} minutes: the run may have been ended from outside.`;
    }
    const reads = !getSelection().isCollapsed; // a reader copies something
    if (held || reads || document.hidden) later();
    else again();
  };
  later();
})();
