// Elements of the page.
//
// Titles, prompts, tags and reasons come from outside. They become text nodes and attributes, never markup, and only
// http(s) URLs are followed.

export function element(name, className, ...children) {
  const created = document.createElement(name);
  if (className) created.className = className;
  created.append(...children.filter((child) => child !== null));
  return created;
}

// A text from outside, whose writing direction must not affect what surrounds it.
export function outsideText(name, className, text) {
  const created = element(name, className, text);
  created.dir = "auto";
  return created;
}

export function textOrNull(value) {
  return typeof value === "string" && value.trim() ? value : null;
}

export function urlOrNull(value) {
  try {
    const url = new URL(value);
    // The browser would send Airflow the viewer's session, for example to the URL that logs out. By http and by https.
    if (url.host === location.host) return null;
    if (url.username || url.password) return null;
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

export function setText(target, text) {
  // A screen reader announces a text again when it is set again.
  if (target.textContent !== text) target.textContent = text;
}

// Replaces a part of the page. If the focus was in it, the focus moves to its successor, the first that one of the
// selectors finds: else it would be lost, and the keyboard would start at the top of the page again.
export function keepFocus(container, selectors, change) {
  const hadFocus = container.contains(document.activeElement);
  change();
  if (!hadFocus || container.contains(document.activeElement)) return;
  const next = selectors.map((selector) => container.querySelector(selector)).find((found) => found !== null);
  if (next === undefined) return;
  // What cannot have the focus by itself.
  if (next.tabIndex < 0) next.tabIndex = -1;
  next.focus({ preventScroll: true });
}
