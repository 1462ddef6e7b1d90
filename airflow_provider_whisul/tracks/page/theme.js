// Light or dark, and in the same font, as the page of Airflow's UI around the tab. On its own as the browser prefers.

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function surroundingRoot() {
  try {
    return window.parent === window ? null : window.parent.document.documentElement;
  } catch {
    return null;
  }
}

function applyTheme() {
  const root = surroundingRoot();
  let dark = prefersDark.matches;
  if (root?.classList.contains("dark") || root?.dataset.theme === "dark") dark = true;
  else if (root?.classList.contains("light") || root?.dataset.theme === "light") dark = false;
  document.documentElement.classList.toggle("dark", dark);
  if (root !== null) document.body.style.fontFamily = getComputedStyle(root.ownerDocument.body).fontFamily;
}

export function followTheme() {
  applyTheme();
  prefersDark.addEventListener("change", applyTheme);
  const root = surroundingRoot();
  if (root === null) return;
  const observer = new MutationObserver(applyTheme);
  observer.observe(root, { attributes: true, attributeFilter: ["class", "data-theme"] });
  // The surrounding page stays when this one is closed, and would go on calling.
  addEventListener("pagehide", () => observer.disconnect());
}
