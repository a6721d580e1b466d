// @ts-check
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

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
 * Call `changed` with the values of these widgets now and whenever they are different, while the node is in a graph.
 * Values change by typing, undo, a link, a subgraph's own widget: not all of these call a widget's callback.
 */
export function follow(node, names, changed) {
  let before;
  const look = () => {
    if (!node.graph) return;
    const values = names.map((name) => widgetNamed(node, name)?.value);
    if (before && values.every((value, i) => value === before[i])) return;
    before = values;
    changed(...values);
  };
  let timer = setInterval(look, 200);
  const { onAdded, onRemoved } = node;
  node.onRemoved = function (...args) {
    clearInterval(timer);
    timer = 0;
    return onRemoved?.apply(this, args);
  };
  node.onAdded = function (...args) {
    timer ||= setInterval(look, 200);
    return onAdded?.apply(this, args);
  };
  return look;
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
