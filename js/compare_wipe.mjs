// @ts-check
import { say } from "./languages.mjs";
import { button, part, picture, temporary } from "./parts.mjs";

/** Compare Images: both pictures in one place, parted by a line that follows the pointer. */
export class CompareWipe {
  minHeight = 220;
  grows = true;

  constructor(node, root) {
    this.pairs = [];
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
