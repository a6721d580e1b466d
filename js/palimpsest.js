// @ts-check
import { app } from "../../scripts/app.js";
import { CompareWipe } from "./compare_wipe.mjs";
import { editByWords } from "./edit_by_words.mjs";
import { EditWords } from "./edit_words.mjs";
import { Frames } from "./frames.mjs";
import { loadTexts } from "./languages.mjs";
import { Panel } from "./panel.mjs";
import { StepWindows } from "./step_windows.mjs";
import { addUpload, FILES } from "./upload_file.mjs";
import { WordMap } from "./word_map.mjs";

/** What is drawn on a node beside its result line. */
const VIEWS = {
  PAL_AttentionMask: WordMap,
  PAL_EncodePromptEdit: EditWords,
  PAL_PreviewTrajectory: Frames,
  PAL_SaliencyMap: Frames,
  PAL_PreviewMorph: Frames,
  PAL_CompareImages: CompareWipe,
  PAL_PlugAndPlay: StepWindows,
  PAL_PromptToPrompt: StepWindows,
  PAL_CaptureFeatures: StepWindows,
  PAL_SaliencyFusionGuider: StepWindows,
  PAL_FusionExpert: StepWindows,
  PAL_SubjectFusionGuider: StepWindows,
};
const panels = new WeakMap(); // node -> its panel
const opened = new Set(); // ids of shipped workflows

app.registerExtension({
  name: "palimpsest",

  async init() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./palimpsest.css", import.meta.url).href;
    document.head.append(sheet);
    await loadTexts().catch(console.warn);
  },

  nodeCreated(node) {
    const type = node.comfyClass ?? node.type ?? "";
    if (type in FILES) addUpload(node, FILES[type]);
    if (type.startsWith("PAL_")) panels.set(node, new Panel(node, VIEWS[type]));
  },

  // ComfyUI fits a template into the window, where most are too small to read. A shipped one says where to begin: that is
  // shown when it is opened, and no more after that, because undoing opens a workflow too.
  async afterConfigureGraph() {
    const { id, extra } = app.rootGraph ?? app.graph;
    if (!extra?.palimpsest_template || !extra.ds || opened.has(id)) return;
    opened.add(id);
    if (!app.extensionManager.setting.get("Comfy.EnableWorkflowViewRestore")) return;
    app.canvas.ds.offset = [...extra.ds.offset];
    app.canvas.ds.scale = extra.ds.scale;
    app.canvas.setDirty(true, true);
  },

  // A workflow that is opened again, from its tab, by undo or from the queue, comes with what its nodes showed.
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs ?? {})) panels.get(nodeAt(locator))?.show(output);
  },

  getNodeMenuItems: editByWords,
});

/** The node of a locator: "7" in the root graph, "<uuid of a subgraph>:7" inside one. */
function nodeAt(locator) {
  const root = app.rootGraph ?? app.graph;
  const [id, subgraph] = locator.split(":").reverse();
  const graph = subgraph ? root?.subgraphs?.get(subgraph) : root;
  return graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? {};
}
