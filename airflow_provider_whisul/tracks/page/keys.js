// The keys that drive the player.

const ACTIONS = new Map([
  [" ", "toggle"],
  ["ArrowLeft", "back"],
  ["ArrowRight", "forward"],
  ["n", "next"],
  ["p", "previous"],
]);
// The elements that use all keys themselves, and the keys that others use.
const FIELDS = new Set(["search", "text", "select-one", "textarea"]);
const OWN_KEYS = new Map([
  ["button", [" "]],
  ["checkbox", [" "]],
  ["a", [" "]],
  ["summary", [" "]],
  ["range", ["ArrowLeft", "ArrowRight"]],
]);

// What a key does, null if it does nothing here. `type` is that of the element that has the focus.
export function actionOf({ key, ctrlKey, metaKey, altKey }, type) {
  if (ctrlKey || metaKey || altKey || FIELDS.has(type)) return null;
  if (OWN_KEYS.get(type)?.includes(key)) return null;
  return ACTIONS.get(key) ?? null;
}

// `handle` gets the action, and returns whether it did something.
export function listenForKeys(handle) {
  document.addEventListener("keydown", (event) => {
    const action = event.defaultPrevented ? null : actionOf(event, event.target.type || event.target.localName);
    if (action !== null && handle(action)) event.preventDefault();
  });
}
