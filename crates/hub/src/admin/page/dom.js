// Elements and texts. Everything that comes from the hub goes through textContent.
//
// These are plain scripts that share one scope: browsers send an Origin header with modules, and the hub answers
// nothing that has one.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const make = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);

const draw = (name, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, name), attributes, children);

/** Sets a text only when it differs, so that nothing is announced or repainted for nothing. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * A table whose rows stay the same elements while they show the same thing, so that focus and selection survive updates.
 * `columns`: [title, class, head?]; a cell is a text, or {text, class, title, press}.
 */
function table(id, caption, columns) {
  const body = make("tbody");
  // A title that stands above a filter is the table's, too.
  const title = byId(`${id}-title`);
  const label = title ?? make("caption", {}, caption);
  if (title) byId(id).setAttribute("aria-labelledby", title.id);
  const heads = columns.map(([title, kind]) => make("th", { scope: "col", class: kind }, title));
  byId(id).append(...(title ? [] : [label]), make("thead", {}, make("tr", {}, ...heads)), body);
  const known = new Map();
  return (items, { key, cells, none, about = caption }) => {
    say(label, about);
    const seen = new Set();
    let at = body.firstElementChild;
    for (const item of items) {
      const name = key(item);
      seen.add(name);
      let row = known.get(name);
      if (!row) {
        row = make("tr", {}, ...columns.map(([, kind], column) =>
          column === 0 ? make("th", { scope: "row", class: kind }) : make("td", { class: kind })));
        known.set(name, row);
      }
      cells(item).forEach((cell, column) => fill(row.children[column], cell, columns[column][1]));
      if (row === at) at = at.nextElementSibling;
      else body.insertBefore(row, at);
    }
    for (const [name, row] of known) {
      if (seen.has(name)) continue;
      row.remove();
      known.delete(name);
    }
    body.querySelector(".empty")?.parentElement.remove();
    if (!items.length) body.append(make("tr", {}, make("td", { class: "empty", colspan: columns.length }, none)));
  };
}

function fill(place, cell, kind = "") {
  const { text, class: shade = "", title, press } = typeof cell === "object" && cell ? cell : { text: cell };
  const shown = text === null || text === undefined || text === "" ? "–" : String(text);
  if (press && !place.firstElementChild) {
    const button = make("button", { type: "button", class: "link" });
    button.addEventListener("click", () => press(button.textContent));
    place.append(button);
  }
  say(place.firstElementChild ?? place, shown);
  const wanted = `${kind} ${shade}`.trim();
  if (place.className !== wanted) place.className = wanted;
  if (title && place.title !== title) place.title = title;
}

// Texts and numbers for people.

const cut = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);

const whole = new Intl.NumberFormat("en");

const count = (number) => (Number.isFinite(number) ? whole.format(number) : "–");
const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function decimal(number) {
  if (!Number.isFinite(number)) return "–";
  return number >= 100 ? count(Math.round(number)) : number.toFixed(number >= 10 || number === 0 ? 0 : 1);
}

function bytes(number) {
  if (!Number.isFinite(number)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit += 1) number /= 1024;
  return `${unit === 0 ? Math.round(number) : number.toFixed(number >= 100 ? 0 : 1)} ${units[unit]}`;
}

function ms(number) {
  if (!Number.isFinite(number)) return "–";
  if (number >= 10_000) return `${Math.round(number / 1000)} s`;
  return `${number >= 100 ? Math.round(number) : number.toFixed(number >= 10 ? 1 : 2)} ms`;
}

function span(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

const clock = (at) => new Date(at).toLocaleTimeString("en-GB");
