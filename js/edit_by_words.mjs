// @ts-check
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { say } from "./languages.mjs";

const BLUEPRINT = "Swap a word in a photo";
const BESIDE = 60; // pixels between the node and the box

/** An entry in the menu of nodes that show a picture: the blueprint, dropped beside the node and wired to it. */
export function editByWords(node) {
  if (!showsPicture(node) || !sourceOf(node, "IMAGE")) return [];
  return [{ content: say("Edit this picture by words"), callback: () => drop(node).catch(tell) }];
}

function showsPicture(node) {
  const root = app.rootGraph ?? app.graph;
  const locator = node.graph === root ? String(node.id) : `${node.graph?.id}:${node.id}`;
  return !!(node.imgs?.length || app.nodeOutputs?.[locator]?.images?.length);
}

/** [node, slot] of an output of this type: the node's own, or what comes into it. */
function sourceOf(node, type) {
  const slot = node.outputs?.findIndex((output) => output.type === type) ?? -1;
  if (slot >= 0) return [node, slot];
  for (const input of node.inputs ?? []) {
    const link = input.type === type && input.link != null && linkOf(node.graph, input.link);
    if (link) return [node.graph.getNodeById(link.origin_id), link.origin_slot];
  }
  return null;
}

function linkOf(graph, id) {
  return graph.links instanceof Map ? graph.links.get(id) : (graph.getLink?.(id) ?? graph.links[id]);
}

/** The output of this type that made the picture: the nearest before the node, else the first of the graph. */
function makerOf(node, type) {
  const seen = new Set([node]);
  for (const at of seen) {
    const found = at !== node && sourceOf(at, type);
    if (found?.[0]) return found;
    for (const { link } of at.inputs ?? []) {
      const from = link != null && at.graph.getNodeById(linkOf(at.graph, link)?.origin_id);
      if (from) seen.add(from);
    }
  }
  const first = node.graph.nodes.find((other) => other.outputs?.some((output) => output.type === type));
  return first && sourceOf(first, type);
}

async function drop(node) {
  const [id] = Object.entries(await answerOf("/global_subgraphs")).find(([, { name }]) => name === BLUEPRINT) ?? [];
  if (!id) throw new Error(`This ComfyUI does not list the blueprint "${BLUEPRINT}".`);
  const { nodes, definitions } = JSON.parse((await answerOf(`/global_subgraphs/${id}`)).data);
  const [left, top, width] = node.boundingRect ?? [...node.pos, ...node.size];
  const sources = { image: sourceOf(node, "IMAGE") };
  for (const type of ["MODEL", "CLIP", "VAE"]) sources[type.toLowerCase()] = makerOf(node, type);
  // As core drops a blueprint from its node library.
  const position = [left + width + BESIDE, top];
  const { nodes: made } = app.canvas._deserializeItems({ nodes, subgraphs: definitions.subgraphs }, { position });
  const [box] = made.values();
  for (const [name, source] of Object.entries(sources))
    if (source) source[0].connect(source[1], box, box.inputs.findIndex((input) => input.name === name));
  app.canvas.selectItems([box]);
}

async function answerOf(route) {
  return (await api.fetchApi(route)).json();
}

function tell(error) {
  app.extensionManager.toast.add({ severity: "error", summary: "Palimpsest", detail: error.message, life: 8000 });
}
