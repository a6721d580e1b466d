// @ts-check
/** Lists of words as the nodes read them: phrases between commas, semicolons (also those of Chinese and Japanese) or line ends. */

export function phrasesIn(text) {
  return String(text ?? "").split(/[,;\n，、；]/).map((phrase) => phrase.trim()).filter(Boolean);
}

/** A word of a prompt without the punctuation that its tokens may carry. */
export function bare(word) {
  return word.replace(/^[\p{P}\p{S}]+|[\p{P}\p{S}]+$/gu, "") || word;
}

/** For each word of a prompt the phrase that covers it, or undefined. */
export function covering(words, phrases) {
  const plain = words.map((word) => bare(word).toLowerCase());
  const found = words.map(() => undefined);
  for (const phrase of phrases) {
    const wanted = phrase.toLowerCase().split(/\s+/).map(bare);
    for (let i = 0; i + wanted.length <= plain.length; i++)
      if (wanted.every((word, k) => word === plain[i + k])) found.fill(phrase, i, i + wanted.length);
  }
  return found;
}

/** The list with the word in it, or without the phrase that covers it. */
export function toggled(text, word, phrase) {
  const phrases = phrasesIn(text);
  return (phrase ? phrases.filter((other) => other !== phrase) : [...phrases, bare(word)]).join(", ");
}
