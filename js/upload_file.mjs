// @ts-check
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { setWidget, widgetNamed } from "./parts.mjs";

/** By type of node: the widget that names a file, and how the names of such files end. */
export const FILES = {
  PAL_LoadTrajectory: ["trajectory_file", ".trajectory.safetensors"],
  PAL_LoadConditioning: ["conditioning_file", ".conditioning.safetensors"],
  PAL_LoadEmbedding: ["embedding_file", ".embedding.safetensors"],
};

/** A button, as Load Image has one, that puts a file into the server's input folder and chooses it. */
export function addUpload(node, [name, ending]) {
  const press = () => {
    const input = document.createElement("input");
    Object.assign(input, { type: "file", accept: ".safetensors" });
    input.addEventListener("change", () => {
      const [file] = input.files ?? [];
      if (file) upload(node, name, ending, file).catch(tell);
    });
    input.click();
  };
  const button = node.addWidget("button", "choose file to upload", null, press, { serialize: false });
  button.serialize = false;
}

async function upload(node, name, ending, file) {
  if (!file.name.endsWith(ending)) throw new Error(`Expected a file whose name ends in ${ending}, got ${file.name}.`);
  const widget = widgetNamed(node, name);
  const body = new FormData();
  body.append("image", file, free(file.name, ending, widget.options.values));
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) throw new Error(`${file.name} was not uploaded: ${answer.status} ${answer.statusText}`);
  const saved = await answer.json();
  const value = `${saved.subfolder ? `${saved.subfolder}/` : ""}${saved.name} [${saved.type}]`;
  if (!widget.options.values.includes(value)) widget.options.values.push(value);
  setWidget(node, name, value);
}

/** ComfyUI would number a name that is taken behind its first ending, where the file would no longer be known for what it is. */
function free(name, ending, taken) {
  const stem = name.slice(0, -ending.length);
  let found = name;
  for (let i = 1; taken.includes(`${found} [input]`); i++) found = `${stem} (${i})${ending}`;
  return found;
}

function tell(error) {
  app.extensionManager.toast.add({ severity: "error", summary: "Palimpsest", detail: error.message, life: 8000 });
}
