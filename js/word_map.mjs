// @ts-check
import { say } from "./languages.mjs";
import { follow, button, heightOfRows, isLinked, part, picture, setWidget, temporary, widgetNamed } from "./parts.mjs";
import { covering, phrasesIn, toggled } from "./phrases.mjs";

// Colours of nodes/display/heatmap.py.
const HEAT = [[0, 0, 5], [87, 18, 110], [186, 54, 84], [250, 140, 10], [252, 255, 163]];
const RANKED = 4; // words told of the place under the pointer
const STAGE = 200; // pixels that are left to the picture
const MOST = 128; // pixels, six rows of words; palimpsest.css has it too

/** Attention Mask: the picture, the words of its prompt, and over the picture where the model's attention puts a word. */
export class WordMap {
  grows = true;

  constructor(node, root) {
    this.node = node;
    this.words = [];
    this.stage = part("div", "palimpsest-stage palimpsest-crosshair", root);
    this.stage.hidden = true;
    this.picture = picture("palimpsest-picture", this.stage);
    this.heat = part("canvas", "palimpsest-picture", this.stage);
    this.ranking = part("ol", "palimpsest-ranking", this.stage);
    this.chips = part("div", "palimpsest-chips", root, say("Run once to see where the model sees each word."));
    this.rows = heightOfRows(this.chips, { most: MOST, changed: () => node.setDirtyCanvas?.(true, true) });
    this.stage.addEventListener("pointermove", (event) => this.rank(this.pixelAt(event)));
    this.stage.addEventListener("pointerleave", () => this.rank(null));
    follow(node, ["words"], () => this.paint());
  }

  get minHeight() {
    return Math.max(300, STAGE + this.rows());
  }

  show({ palimpsest_words: [drawn] = [] }) {
    if (!drawn) return;
    this.drawn = drawn;
    this.stage.hidden = false;
    if (drawn.picture) this.picture.src = temporary(drawn.picture);
    else this.picture.hidden = true;
    const most = Math.max(...drawn.words.map((entry) => entry.peak));
    this.chips.textContent = "";
    this.words = drawn.words.map((entry) => this.chip(entry, most));
    this.paint();
  }

  chip({ word, peak, map }, most) {
    const chip = button("palimpsest-chip", this.chips, word, () => this.choose(entry));
    part("small", "", chip, peak.toFixed(1));
    chip.title = say("Where it is strongest, its attention is {times} times its mean over the picture.", { times: peak.toFixed(1) });
    chip.style.setProperty("--palimpsest-share", `${(100 * peak) / most}%`);
    const entry = { word, peak, chip, map: Uint8Array.from(atob(map), (letter) => letter.charCodeAt(0)) };
    for (const kind of ["pointerenter", "focus"]) chip.addEventListener(kind, () => this.paint([entry]));
    for (const kind of ["pointerleave", "blur"]) chip.addEventListener(kind, () => this.paint());
    return entry;
  }

  /** Whether the widget `words` decides what the mask covers. */
  get writable() {
    return this.drawn?.chosen_by === "words" && !isLinked(this.node, "words");
  }

  choose(entry) {
    if (!this.writable) return;
    setWidget(this.node, "words", toggled(widgetNamed(this.node, "words").value, entry.word, entry.phrase));
    this.paint([entry]);
  }

  /** Colour the places of these words; without any, of the words that are chosen. */
  paint(entries) {
    if (!this.drawn) return;
    const phrases = this.drawn.chosen_by === "words" ? phrasesIn(widgetNamed(this.node, "words")?.value) : [];
    const covered = covering(this.words.map((entry) => entry.word), phrases);
    this.words.forEach((entry, i) => {
      entry.phrase = covered[i];
      entry.chip.setAttribute("aria-pressed", String(!!covered[i]));
      entry.chip.setAttribute("aria-disabled", String(!this.writable));
    });
    entries ??= this.words.filter((entry) => entry.phrase);
    const { width, height } = this.drawn;
    Object.assign(this.heat, { width, height });
    const context = this.heat.getContext("2d");
    const pixels = context.createImageData(width, height);
    for (let i = 0; entries.length && i < width * height; i++) {
      const value = Math.max(...entries.map((entry) => entry.map[i])) / 255;
      pixels.data.set([...colour(value), 255 * (0.25 + 0.6 * value)], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
    this.heat.dataset.words = entries.map((entry) => entry.word).join(" ");
  }

  /** The pixel of the maps under the pointer, at any zoom of the canvas; null beside the picture. */
  pixelAt(event) {
    const { width, height } = this.drawn;
    const box = this.heat.getBoundingClientRect();
    const scale = Math.min(box.width / width, box.height / height);
    const x = Math.floor((event.clientX - box.left - (box.width - width * scale) / 2) / scale);
    const y = Math.floor((event.clientY - box.top - (box.height - height * scale) / 2) / scale);
    return x >= 0 && y >= 0 && x < width && y < height ? y * width + x : null;
  }

  rank(pixel) {
    const lift = (entry) => (entry.map[pixel] / 255) * entry.peak;
    const ranked = pixel === null ? [] : [...this.words].sort((a, b) => lift(b) - lift(a)).slice(0, RANKED);
    this.ranking.textContent = "";
    for (const entry of ranked) part("li", "", this.ranking, `${entry.word} ${lift(entry).toFixed(1)}×`);
    for (const entry of this.words) entry.chip.classList.toggle("palimpsest-first", entry === ranked[0]);
  }
}

function colour(value) {
  const place = value * (HEAT.length - 1);
  const i = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[i].map((low, k) => low + (HEAT[i + 1][k] - low) * (place - i));
}
