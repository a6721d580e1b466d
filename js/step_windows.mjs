// @ts-check
import { later, say } from "./languages.mjs";
import { follow, isLinked, part, setWidget, widgetNamed } from "./parts.mjs";

const ROW = 20; // pixels, as in palimpsest.css
const NUDGE = 0.01;

/** What happens from which share of the steps to which: the name of a number widget, or a fixed share. A start that a node lacks is 0. */
const WINDOWS = [
  { label: later("features"), from: "feature_start", to: "feature_end" },
  { label: later("attention"), from: "attention_start", to: "attention_end" },
  { label: later("cross-attention"), from: "cross_start", to: "cross_end" },
  { label: later("self-attention"), from: "self_start", to: "self_end" },
  { label: later("local blend"), from: "blend_start", to: 1 },
  { label: later("scene alone"), from: 0, to: "scene_end" },
  { label: later("scene and subject"), from: "scene_end", to: "fusion_end" },
  { label: later("subject alone"), from: "fusion_end", to: 1 },
  { label: later("expert"), from: "start_percent", to: "end_percent" },
];

/** The steps of sampling from left to right, and in which of them a node acts. The numbers stay the truth. */
export class StepWindows {
  constructor(node, root) {
    this.node = node;
    this.element = part("div", "palimpsest-windows", root);
    const named = (edge) => typeof edge === "string" && widgetNamed(node, edge);
    this.rows = WINDOWS.filter(({ from, to }) => named(to) || (named(from) && to === 1)).map((entry) =>
      this.row({ ...entry, from: typeof entry.from === "string" && !named(entry.from) ? 0 : entry.from }),
    );
    this.minHeight = this.rows.length * ROW;
    const names = this.rows.flatMap(({ from, to }) => [from, to]).filter((edge) => typeof edge === "string");
    follow(node, names, () => this.draw());
    this.draw();
  }

  row({ label, from, to }) {
    const element = part("div", "palimpsest-window", this.element);
    const row = { label, from, to, element, text: part("span", "", element), handles: {}, held: null };
    for (const edge of ["from", "to"]) {
      if (typeof row[edge] !== "string") continue;
      const handle = part("div", `palimpsest-handle palimpsest-${edge}`, element);
      Object.assign(handle, { tabIndex: 0, role: "slider", ariaLabel: `${say(label)}: ${row[edge]}` });
      Object.assign(handle, { ariaValueMin: "0", ariaValueMax: "1" });
      handle.addEventListener("keydown", (event) => this.nudge(row[edge], event));
      row.handles[edge] = handle;
    }
    element.addEventListener("pointerdown", (event) => this.grab(row, event));
    element.addEventListener("pointermove", (event) => row.held && this.set(row.held, shareAt(element, event)));
    for (const kind of ["pointerup", "pointercancel"]) element.addEventListener(kind, () => (row.held = null));
    return row;
  }

  value(edge) {
    return typeof edge === "number" ? edge : Number(widgetNamed(this.node, edge)?.value ?? 0);
  }

  set(name, share) {
    if (isLinked(this.node, name)) return;
    setWidget(this.node, name, Math.round(100 * Math.min(1, Math.max(0, share))) / 100);
    this.draw();
  }

  /** Take the nearer end of the window, and let it follow the pointer. */
  grab(row, event) {
    if (event.button) return;
    const at = shareAt(row.element, event);
    const near = (edge) => Math.abs(this.value(row[edge]) - at);
    const [edge] = Object.keys(row.handles).sort((one, other) => near(one) - near(other));
    row.element.setPointerCapture(event.pointerId);
    row.held = row[edge];
    row.handles[edge].focus();
    this.set(row.held, at);
  }

  nudge(name, event) {
    const by = { ArrowLeft: -NUDGE, ArrowDown: -NUDGE, ArrowRight: NUDGE, ArrowUp: NUDGE }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    this.set(name, this.value(name) + (event.shiftKey ? 10 : 1) * by);
  }

  draw() {
    for (const { label, from, to, element, text, handles } of this.rows) {
      const [start, end] = [this.value(from), this.value(to)];
      element.style.setProperty("--palimpsest-from", `${100 * start}%`);
      element.style.setProperty("--palimpsest-to", `${100 * Math.max(start, end, 0)}%`);
      const share = end > start ? `${Math.round(100 * start)}–${Math.round(100 * end)} %` : say("never");
      const says = end < 0 ? say("as suits the model") : share;
      text.textContent = `${say(label)} ${says}`;
      element.title = say("{window} of the steps, from the first on", { window: text.textContent });
      if (handles.from) handles.from.ariaValueNow = String(start);
      if (handles.to) handles.to.ariaValueNow = String(end);
    }
  }
}

function shareAt(element, event) {
  const box = element.getBoundingClientRect();
  return (event.clientX - box.left) / box.width;
}
