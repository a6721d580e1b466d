// @ts-check
import { say } from "./languages.mjs";
import { button, GAP, part, picture, temporary } from "./parts.mjs";

const WIDTH = 400; // pixels, of a node that is new
const MOST = 480; // pixels of height that the pictures take; a higher node gives them more
const BAR = 24; // and the slider; palimpsest.css has it too

/** Compare Images: both pictures in one place, parted by a line that follows the pointer. */
export class CompareWipe {
  grows = true;

  constructor(node, root) {
    this.node = node;
    this.pairs = [];
    this.height = 0;
    node.setSize([Math.max(WIDTH, node.size[0]), node.size[1]]);
    this.stage = part("div", "palimpsest-stage palimpsest-wipe", root);
    this.b = picture("palimpsest-picture", this.stage);
    this.a = picture("palimpsest-picture palimpsest-over", this.stage);
    this.line = part("div", "palimpsest-line", this.stage);
    part("span", "palimpsest-corner palimpsest-left", this.stage, "a");
    part("span", "palimpsest-corner palimpsest-right", this.stage, "b");
    const bar = part("div", "palimpsest-bar", root);
    this.back = button("palimpsest-play", bar, "‹", () => this.turn(this.number - 1));
    this.slider = part("input", "", bar);
    Object.assign(this.slider, { type: "range", min: 0, max: 100, value: 50 });
    this.slider.setAttribute("aria-label", say("How much of image_a is shown, from the left"));
    this.next = button("palimpsest-play", bar, "›", () => this.turn(this.number + 1));
    this.back.setAttribute("aria-label", say("Previous pair"));
    this.next.setAttribute("aria-label", say("Next pair"));
    this.back.hidden = this.next.hidden = true;
    this.slider.addEventListener("input", () => this.wipe(Number(this.slider.value)));
    this.stage.addEventListener("pointermove", (event) => {
      const box = this.stage.getBoundingClientRect();
      this.wipe((100 * (event.clientX - box.left)) / box.width);
    });
    this.wipe(50);
    this.a.addEventListener("load", () => this.fit());
    new ResizeObserver(() => requestAnimationFrame(() => this.fit())).observe(this.stage);
  }

  get minHeight() {
    return this.height + GAP + BAR;
  }

  /** As high as the pictures are when they fill the width, whatever height the host gives; square before there are any. */
  fit() {
    const { naturalWidth, naturalHeight } = this.a;
    const height = Math.round(Math.min(MOST, this.stage.offsetWidth * (naturalHeight / naturalWidth || 1)));
    if (!height || height === this.height) return;
    this.height = height;
    this.stage.style.minHeight = `${height}px`;
    this.node.setDirtyCanvas?.(true, true);
  }

  show({ palimpsest_pairs: pairs }) {
    if (!pairs?.length) return;
    this.pairs = pairs;
    this.back.hidden = this.next.hidden = pairs.length === 1;
    this.turn(0);
  }

  turn(number) {
    this.number = (number + this.pairs.length) % this.pairs.length;
    this.a.src = temporary(this.pairs[this.number].a);
    this.b.src = temporary(this.pairs[this.number].b);
    this.slider.title = say("Pair {number} of {all}", { number: this.number + 1, all: this.pairs.length });
  }

  wipe(share) {
    const at = Math.min(100, Math.max(0, share));
    this.slider.value = String(at);
    this.stage.style.setProperty("--palimpsest-at", `${at}%`);
  }
}
