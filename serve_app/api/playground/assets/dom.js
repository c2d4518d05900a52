// Elements. Texts become text nodes, always: nothing that anybody has written is ever read as markup.

export const find = (id) => document.getElementById(id);

/** Makes an element. Attributes that are false or null are left out; functions listen to the event of their name. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Puts `children` in place of whatever an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child != null));
}

/** Tells those who cannot see it. */
export function announce(text) {
  find("news").textContent = text;
}

/** Makes the buttons named `data-close` close their dialogs, and a click beside one, too. */
export function closeByButton(dialog) {
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

/** Calls `action` once, when nothing has called for it for a while. */
export function debounce(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

/** Saves a file. */
export function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Copies a text. Browsers have a clipboard for pages that come over HTTPS, or from this machine, only. */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = make("textarea", { class: "unseen" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
