// @ts-check
import { api } from "../../scripts/api.js";
import { later, say } from "./languages.mjs";
import { button, follow, heightOfRows, isLinked, part, setWidget, widgetNamed } from "./parts.mjs";
import { bare, covering, phrasesIn, toggled } from "./phrases.mjs";

const FIELDS = ["source_text", "target_text", "mode", "reweight", "blend_words", "keep_words", "word_windows"];
const TYPING = 250; // milliseconds without a change before the server is asked
const LEAST = 128; // pixels, two rows of words
const MOST = 260; // four
const SAYS = {
  kept: later("stays, with the source's attention"),
  exchanged: later("replaces the word above and uses its attention"),
  added: later("is new, with its own attention"),
  gone: later("is left out"),
};

/** Encode Prompt Edit: the words of both prompts, above each other where one follows the other. */
export class EditWords {
  grows = true;

  constructor(node, root) {
    this.node = node;
    this.words = part("div", "palimpsest-edit", root);
    this.status = part("div", "palimpsest-label", this.words);
    const changed = () => node.setDirtyCanvas?.(true, true);
    this.rows = heightOfRows(this.words, { least: LEAST, most: MOST, steady: true, changed });
    this.asked = 0;
    follow(node, FIELDS, () => this.ask());
  }

  get minHeight() {
    return this.rows();
  }

  get texts() {
    return Object.fromEntries(FIELDS.map((name) => [name, String(widgetNamed(this.node, name)?.value ?? "")]));
  }

  /** What a run has found out is exact for the texts of that run, which may be another workflow's than the one that is open. */
  show({ palimpsest_edit: [edit] = [], palimpsest_texts: [ran] = [{}] }) {
    if (!edit) return;
    const here = this.texts;
    if (FIELDS.some((name) => !isLinked(this.node, name) && here[name] !== ran[name])) return this.ask();
    this.exact = JSON.stringify(this.texts);
    this.draw(edit);
  }

  ask() {
    clearTimeout(this.waiting);
    if (JSON.stringify(this.texts) === this.exact) return;
    if (FIELDS.some((name) => isLinked(this.node, name)))
      return void this.tell(say("Texts come from other nodes. Run once to see their words."));
    this.waiting = setTimeout(() => this.tokenise(this.texts), TYPING);
  }

  async tokenise(texts) {
    if (!texts.source_text.trim() || !texts.target_text.trim()) return this.tell(say("Write both texts to see their words."));
    const asked = ++this.asked;
    const headers = { "Content-Type": "application/json" };
    const answer = await api.fetchApi("/palimpsest/prompt_edit", { method: "POST", headers, body: JSON.stringify(texts) });
    const { edit, problem, error } = await answer.json();
    if (asked !== this.asked || JSON.stringify(this.texts) === this.exact) return;
    if (edit) this.draw(edit);
    if (!edit || problem) this.tell(problem ?? error, !edit, true);
  }

  /** stale: the words that are drawn are those of other texts. wrong: these texts make no edit. */
  tell(text, stale = true, wrong = false) {
    this.words.classList.toggle("palimpsest-stale", stale);
    this.status.classList.toggle("palimpsest-wrong", wrong);
    this.status.textContent = this.status.title = text;
  }

  draw(edit) {
    const focused = this.words.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    this.words.replaceChildren(this.status);
    this.tell("", false);
    const phrases = phrasesIn(this.texts.blend_words);
    const covered = ["source", "target"].map((side) => covering(edit.groups.flatMap((group) => group[side]), phrases));
    const next = [0, 0];
    edit.groups.forEach((group, number) => {
      const element = part("div", `palimpsest-group palimpsest-${group.kind}`, this.words);
      element.title = `${(group.target.length ? group.target : group.source).join(" ")}: ${say(SAYS[group.kind])}`;
      ["source", "target"].forEach((side, i) => {
        const row = part("div", "palimpsest-words", element);
        for (const word of group[side]) this.chip(row, word, covered[i][next[i]++], `${number} ${side} ${word}`);
      });
      if (group.target.length) this.weight(element, group, `${number} weight`);
    });
    this.words.querySelector(`[data-place="${CSS.escape(focused ?? "")}"]`)?.focus();
  }

  chip(row, word, phrase, place) {
    const chip = button("palimpsest-chip", row, word, () => {
      if (isLinked(this.node, "blend_words")) return;
      setWidget(this.node, "blend_words", toggled(this.texts.blend_words, word, phrase));
    });
    chip.dataset.place = place;
    chip.setAttribute("aria-pressed", String(!!phrase));
    chip.setAttribute("aria-label", say("{word}: its area may change", { word }));
  }

  weight(element, { target, weight }, place) {
    const input = part("input", "palimpsest-weight", element);
    Object.assign(input, { type: "number", step: 0.1, min: -10, max: 10, value: weight, disabled: isLinked(this.node, "reweight") });
    input.dataset.place = place;
    input.classList.toggle("palimpsest-set", weight !== 1);
    input.setAttribute("aria-label", say("Weight of {words}", { words: target.join(" ") }));
    input.addEventListener("change", () => {
      const number = Number(input.value);
      if (!Number.isFinite(number)) return;
      const words = target.map(bare);
      const others = phrasesIn(this.texts.reweight).filter((entry) => !words.includes(entry.replace(/\s*:[^:]*$/, "")));
      const added = number === 1 ? [] : [`${words.join(" ")}: ${number}`];
      setWidget(this.node, "reweight", [...others, ...added].join(", "));
    });
    // The canvas would take the arrows and the digits for itself.
    input.addEventListener("keydown", (event) => event.stopPropagation());
  }
}
