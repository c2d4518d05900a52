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

/** Shows a file in an `img`, nothing for null, and frees what it showed before: browsers keep a file as long as its URL. */
export function showFile(image, blob) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  if (blob) image.src = URL.createObjectURL(blob);
  else image.removeAttribute("src");
}

/** An `img` of a file. */
export function pictureOf(blob, alt, attributes = {}) {
  const image = make("img", { alt, ...attributes });
  showFile(image, blob);
  return image;
}

/** Frees the files that images in `element` show. */
export function freeFiles(element) {
  for (const image of element.querySelectorAll("img")) showFile(image, null);
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

/**
 * Copies a text, and returns whether it could. Browsers have a clipboard for pages that come over HTTPS, or from this
 * machine, only, and may keep it from them.
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelecting(text);
  }
}

function copyBySelecting(text) {
  const area = make("textarea", { class: "unseen" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
