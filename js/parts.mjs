// @ts-check
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

export const GAP = 6; // around what is drawn on a node and between its parts, in pixels; palimpsest.css has it too
const LOOK = 200; // milliseconds between two looks at a widget's value

/** An element of that class, put into its parent. */
export function part(tag, name, parent, text) {
  const made = /** @type {any} */ (document.createElement(tag));
  made.className = name;
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

export function button(name, parent, text, press) {
  const made = part("button", name, parent, text);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

/** Where the server has a file of its temp folder. */
export function temporary(filename) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, type: "temp", subfolder: "" })}`);
}

/** A picture that disappears when its file is gone: temp files end with the server. */
export function picture(name, parent) {
  const made = part("img", name, parent);
  made.draggable = false;
  made.hidden = true;
  made.alt = "";
  made.addEventListener("error", () => (made.hidden = true));
  made.addEventListener("load", () => (made.hidden = false));
  return made;
}

export function widgetNamed(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Whether another node gives the value. */
export function isLinked(node, name) {
  return !!node.inputs?.some((input) => (input.widget?.name ?? input.name) === name && input.link != null);
}

export function setWidget(node, name, value) {
  const widget = widgetNamed(node, name);
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

/**
 * Call `changed` whenever the values of these widgets are different, while the node is in a graph. Values change by typing,
 * by undo, by the widget that a subgraph shows for them: not all of these call a widget's callback.
 */
export function follow(node, names, changed) {
  let before, timer;
  const look = () => {
    const values = names.map((name) => widgetNamed(node, name)?.value);
    if (before && values.every((value, i) => value === before[i])) return;
    before = values;
    changed();
  };
  const start = () => (timer ??= setInterval(look, LOOK));
  chain(node, "onAdded", start);
  chain(node, "onRemoved", () => {
    clearInterval(timer);
    timer = undefined;
  });
  if (node.graph) start();
}

/** Call `after` whenever the node calls its method of that name. */
export function chain(node, name, after) {
  const before = node[name];
  node[name] = function (...args) {
    const answer = before?.apply(this, args);
    after(...args);
    return answer;
  };
}

/**
 * Make a list of words as high as its rows need, `most` at the most; what is longer scrolls. Returns what gives that height.
 *
 * The rows depend on the list's width alone: no height that the host writes comes back through them. A `steady` list only grows,
 * and only when its rows do not fit, so that nothing moves with every word that is typed. A message above the words takes none.
 */
export function heightOfRows(list, { least = 0, most, steady = false, changed }) {
  let height = least;
  list.style.minHeight = `${height}px`;
  const measure = () => {
    if (!list.offsetWidth) return; // not in view
    // Nodes 2.0 gives the wheel to what says so, once it has the focus.
    list.dataset.captureWheel = String(list.scrollHeight > list.clientHeight + 1);
    const words = [...list.children].filter((child) => !child.matches(".palimpsest-label"));
    const rows = Math.max(0, ...words.map((word) => word.offsetTop + word.offsetHeight - words[0].offsetTop));
    const needed = Math.min(rows, most);
    if (steady ? needed <= Math.max(height, list.clientHeight) : needed === height) return;
    height = needed;
    list.style.minHeight = `${height}px`;
    changed();
  };
  // A frame later: an observer that changes what it observes is an error to the browser.
  new ResizeObserver(() => requestAnimationFrame(measure)).observe(list);
  new MutationObserver(measure).observe(list, { childList: true, subtree: true });
  return () => height;
}

/** The classic canvas drags a node, and Nodes 2.0 too, from wherever a press gets through to it. The middle button pans. */
export function stayHere(event) {
  if (event.button !== 1 && !(event.buttons & 4)) event.stopPropagation();
}

/** Over the classic canvas the panel would keep the wheel from zooming. What can scroll, scrolls. */
export function passWheel(event) {
  for (let at = event.target; at && at !== event.currentTarget; at = at.parentElement)
    if (at.scrollHeight > at.clientHeight + 1 && getComputedStyle(at).overflowY === "auto") return;
  if (globalThis.LiteGraph?.vueNodesMode) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}
