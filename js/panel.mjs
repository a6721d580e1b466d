// @ts-check
import { chain, GAP, part, passWheel, stayHere } from "./parts.mjs";

const LINE = 16; // the height of a line of the result

/**
 * What the pack draws on one node: a view, for some types of node, and below it the result line.
 *
 * Both share one widget that is neither saved nor sent to the server. It is the node's last: saved values are counted by their
 * place. On nodes without a view it is added with the first result.
 */
export class Panel {
  constructor(node, View) {
    this.node = node;
    this.root = part("div", "palimpsest");
    this.view = View && new View(node, this.root);
    this.line = part("output", "palimpsest-result", this.root);
    this.root.addEventListener("wheel", passWheel, { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup"]) this.root.addEventListener(kind, stayHere);
    chain(node, "onExecuted", (output) => this.show(output));
    if (this.view) this.attach();
  }

  attach() {
    if (this.widget) return;
    this.widget = this.node.addDOMWidget("palimpsest_panel", "palimpsest", this.root, {
      serialize: false, // not into the prompt
      hideOnZoom: false,
      hideInPanel: true,
      margin: GAP,
      getMinHeight: () => this.height,
      ...(!this.view?.grows && { getMaxHeight: () => this.height }),
    });
    this.widget.serialize = false; // not into the workflow
    // The classic canvas lets a node grow while it draws it, and keeps its old frame on the screen until something changes.
    chain(this.node, "onResize", () => this.node.setDirtyCanvas?.(true, true));
  }

  /** From the view's and the text's own measures, never from what the host has drawn: it writes that back. */
  get height() {
    const letters = Math.max(12, (this.node.size[0] - 40) / 6.4);
    const rows = this.line.textContent ? this.line.textContent.split("\n") : [];
    const lines = rows.reduce((sum, row) => sum + Math.max(1, Math.ceil(row.length / letters)), 0);
    const parts = [this.view?.minHeight, LINE * lines].filter(Boolean);
    return parts.reduce((sum, height) => sum + height + GAP, parts.length && GAP);
  }

  show(output) {
    if (!output) return;
    if (output.palimpsest_result) {
      this.line.textContent = output.palimpsest_result.join("\n");
      this.line.title = this.line.textContent;
      if (this.line.textContent) this.attach();
    }
    this.view?.show?.(output);
    this.node.setDirtyCanvas?.(true, true);
  }
}
