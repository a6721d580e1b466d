// @ts-check
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts = {};

/** Fetch what locales/<language>/main.json has for this page. */
export async function loadTexts() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale");
  if (!language || language === "en") return;
  const answer = await api.fetchApi("/i18n");
  if (answer.ok) texts = (await answer.json())[language]?.palimpsest ?? {};
}

/** A text in the artist's language, or in English where that has none. {names} in it stand for values. */
export function say(text, values = {}) {
  return (texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** Marks a text that is said later, for `make locales`. */
export function later(text) {
  return text;
}
