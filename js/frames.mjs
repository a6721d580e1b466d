// @ts-check
import { later, say } from "./languages.mjs";
import { button, part, picture, temporary } from "./parts.mjs";

const PAUSE = 125; // milliseconds between frames that play

const EMPTY = {
  PAL_PreviewTrajectory: later("Run once to see the path, state by state."),
  PAL_PreviewMorph: later("Run once to see the morph, frame by frame."),
  PAL_SaliencyMap: later("Run once with every_step on to see who draws where, step by step."),
};

/** Pictures one at a time, by a slider or playing: states of a path, steps of a fusion, frames of a morph. */
export class Frames {
  minHeight = 220;
  grows = true;

  constructor(node, root) {
    this.frames = [];
    this.stage = part("div", "palimpsest-stage", root);
    this.picture = picture("palimpsest-picture", this.stage);
    const bar = part("div", "palimpsest-bar", root);
    this.play = button("palimpsest-play", bar, "▶", () => (this.timer ? this.pause() : this.start()));
    this.play.setAttribute("aria-label", say("Play"));
    this.slider = part("input", "", bar);
    Object.assign(this.slider, { type: "range", min: 0, max: 0, value: 0, disabled: true });
    this.slider.setAttribute("aria-label", say("Frame"));
    this.empty = say(EMPTY[node.comfyClass ?? node.type]);
    this.label = part("span", "palimpsest-label", root, this.empty);
    this.slider.addEventListener("input", () => this.turn(Number(this.slider.value)));
  }

  show({ palimpsest_frames: frames }) {
    if (!frames) return;
    this.pause();
    if (!frames.length) return this.clear();
    this.frames = frames.map(({ picture, label }) => ({ label, url: temporary(picture) }));
    this.loaded = this.frames.map(({ url }) => Object.assign(new Image(), { src: url })); // so that turning is immediate
    Object.assign(this.slider, { max: this.frames.length - 1, disabled: false });
    this.turn(this.frames.length - 1);
  }

  clear() {
    this.frames = [];
    this.picture.removeAttribute("src");
    this.picture.hidden = true;
    Object.assign(this.slider, { max: 0, disabled: true });
    this.slider.removeAttribute("aria-valuetext");
    this.label.textContent = this.empty;
  }

  turn(number) {
    const { url, label } = this.frames[number];
    this.picture.src = url;
    this.slider.value = String(number);
    this.slider.setAttribute("aria-valuetext", label);
    this.label.textContent = label;
  }

  start() {
    if (!this.frames.length) return;
    this.timer = setInterval(() => {
      if (!this.play.isConnected) this.pause();
      else this.turn((Number(this.slider.value) + 1) % this.frames.length);
    }, PAUSE);
    this.play.textContent = "■";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.play.textContent = "▶";
  }
}
