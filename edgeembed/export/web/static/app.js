// The page: takes a picture in any of four ways, shows what the worker found. Everything happens on this device.

const element = (id) => document.getElementById(id);

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // id -> {resolve, reject}
let lastId = 0;

/** Has the worker do one task. Rejects with its error; `plain` says that the message is for the person. */
function ask(task, details = {}) {
  const id = ++lastId;
  worker.postMessage({ id, task, ...details });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

worker.onmessage = ({ data: { id, answer, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(Object.assign(new Error(error.message), { plain: error.plain }));
  else resolve(answer);
};

worker.onerror = (event) => {
  const error = new Error(event.message || "The search could not be started in this browser.");
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
  showProblem(error);
};

// Showing

function say(text) {
  element("status").textContent = text;
}

function showProblem(error) {
  const problem = element("problem");
  problem.textContent = error.plain ? error.message : `Something went wrong. ${error.message}`;
  problem.hidden = false;
  say("");
}

function showPreview(bitmap) {
  const canvas = element("preview");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
  canvas.hidden = false;
}

function showResults(results) {
  const scores = asTexts(results.map(({ score }) => score));
  element("results").replaceChildren(...results.map((result, place) => asItem(result, scores[place])));
  element("found").hidden = false;
  say(`Found. Most similar: ${results[0].label}, ${scores[0]}.`);
}

function asItem({ label, thumbnail }, score) {
  const item = document.createElement("li");
  const image = document.createElement("img");
  image.src = thumbnail;
  image.alt = "";
  item.append(image, asText("label", label), asText("score", score));
  return item;
}

function asText(kind, text) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  return span;
}

/** Similarities with as many digits as tell different ones apart, from 4 to the 7 that float32 has below 1. */
function asTexts(scores) {
  let digits = 4;
  while (digits < 7 && new Set(scores.map((score) => score.toFixed(digits))).size < new Set(scores).size) digits += 1;
  return scores.map((score) => score.toFixed(digits));
}

// Searching

let latest = 0;

/** Searches with a picture file and shows what comes; a picture that comes later takes its place. */
async function search(blob) {
  const turn = ++latest;
  element("problem").hidden = true;
  element("found").hidden = true;
  element("preview").hidden = true;
  say("Searching …");
  try {
    const { preview, results } = await ask("search", { blob });
    if (turn !== latest) return;
    showPreview(preview);
    showResults(results);
  } catch (error) {
    if (turn === latest) showProblem(error);
  }
}

function searchFirst(files) {
  const picture = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  if (picture) search(picture);
  else showProblem(Object.assign(new Error("That holds no file: drop or paste a picture."), { plain: true }));
}

// Four ways for a picture to come

element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) searchFirst(target.files);
  target.value = ""; // so that the same file may be chosen again
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  element("query").classList.add("over");
});

addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) element("query").classList.remove("over");
});

addEventListener("drop", (event) => {
  event.preventDefault();
  element("query").classList.remove("over");
  searchFirst(event.dataTransfer.files);
});

addEventListener("paste", (event) => searchFirst(event.clipboardData.files));

element("camera").addEventListener("click", openCamera);
element("shoot").addEventListener("click", takePicture);
element("leave").addEventListener("click", () => element("viewfinder").close());
element("viewfinder").addEventListener("close", () => {
  for (const track of element("video").srcObject?.getTracks() ?? []) track.stop();
  element("video").srcObject = null;
});

async function openCamera() {
  if (!navigator.mediaDevices) {
    // Not over HTTPS: a phone's own camera may still be asked for.
    element("file").setAttribute("capture", "environment");
    element("file").click();
    element("file").removeAttribute("capture");
    return;
  }
  try {
    element("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    element("viewfinder").showModal();
  } catch {
    showProblem(Object.assign(new Error("The camera cannot be used: there is none, or it was not allowed."), { plain: true }));
  }
}

function takePicture() {
  const video = element("video");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  element("viewfinder").close();
  say("Searching …");
  canvas.convertToBlob({ type: "image/png" }).then(search);
}

// Starting

async function start() {
  say("Loading the model …");
  const { model, pictures } = await ask("describe");
  element("about").textContent =
    `${pictures} pictures, embedded by ${model.name} (${model.precision}, space ${model.space_id}).`;
  if (latest === 0) say("Ready."); // else a picture came while the model was loading
}

const ready = start();
ready.catch(showProblem);

/** Resolves once every file is kept in this browser; never where it keeps none (not over HTTPS). */
async function keepOffline() {
  if (!navigator.serviceWorker) return new Promise(() => {});
  await navigator.serviceWorker.register("service-worker.js");
  await navigator.serviceWorker.ready;
  element("about").textContent += " Kept in this browser: works without a network.";
}

const offline = ready.then(keepOffline);
offline.catch((error) => {
  element("about").textContent += ` Not kept for use without a network: ${error.message}`;
});

/**
 * For scripts: `embedPixels` takes a Uint8Array of height × width × 3 RGB values, 0..255, row by row; `searchFile` a
 * Blob. Embeddings are Float32Arrays of unit length.
 */
window.edgeembed = {
  ready,
  offline,
  embedPixels: (pixels) => ask("embedPixels", { pixels }),
  searchFile: (blob) => ask("search", { blob }),
};
