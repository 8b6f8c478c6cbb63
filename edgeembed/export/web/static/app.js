// The page: takes a picture in one of four ways and shows what the worker found. Everything runs on this device.

const element = (id) => document.getElementById(id);

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // id -> {resolve, reject}
let lastId = 0;

/** Runs a task in the worker. Rejects with its error; `plain` marks a message that is written for the visitor. */
function callWorker(task, details = {}) {
  const id = ++lastId;
  worker.postMessage({ id, task, ...details });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(Object.assign(new Error(error.message), { plain: error.plain }));
  else resolve(result);
};

worker.onerror = (event) => {
  const error = new Error(event.message || "The search could not be started in this browser.");
  for (const { reject } of waiting.values()) reject(error);
  waiting.clear();
  showProblem(error);
};

// Showing

function showStatus(text) {
  element("status").textContent = text;
}

function showProblem(error) {
  const problem = element("problem");
  problem.textContent = error.plain ? error.message : `Something went wrong. ${error.message}`;
  problem.hidden = false;
  showStatus("");
}

function showPreview(bitmap) {
  const canvas = element("preview");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
  canvas.hidden = false;
}

function showResults(results) {
  const scores = formatScores(results.map(({ score }) => score));
  element("results").replaceChildren(...results.map((result, i) => resultItem(result, scores[i])));
  element("found").hidden = false;
  showStatus(`Found. Most similar: ${results[0].label}, ${scores[0]}.`);
}

function resultItem({ label, thumbnail }, score) {
  const item = document.createElement("li");
  const image = document.createElement("img");
  image.src = thumbnail;
  image.alt = "";
  item.append(image, textSpan("label", label), textSpan("score", score));
  return item;
}

function textSpan(kind, text) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  return span;
}

/** Formats similarities with as many digits as tell different ones apart, from 4 to the 7 that float32 has below 1. */
function formatScores(scores) {
  let digits = 4;
  while (digits < 7 && new Set(scores.map((score) => score.toFixed(digits))).size < new Set(scores).size) digits += 1;
  return scores.map((score) => score.toFixed(digits));
}

// Searching

let latest = 0;

/** Searches with a picture file and shows the results, unless another search was started meanwhile. */
async function search(blob) {
  const turn = ++latest;
  element("problem").hidden = true;
  element("found").hidden = true;
  element("preview").hidden = true;
  showStatus("Searching …");
  try {
    const { preview, results } = await callWorker("search", { blob });
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

// Four ways to give a picture: a file, drag and drop, paste, the camera

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
    // Without HTTPS the page has no camera; a phone may offer its camera app for the file instead.
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
  showStatus("Searching …");
  canvas.convertToBlob({ type: "image/png" }).then(search);
}

// Starting

async function start() {
  showStatus("Loading the model …");
  const { model, pictures } = await callWorker("describe");
  element("about").textContent =
    `${pictures} pictures, embedded by ${model.name} (${model.precision}, space ${model.space_id}).`;
  if (latest === 0) showStatus("Ready."); // else a search was started while the model was loading
}

const ready = start();
ready.catch(showProblem);

/** Resolves once every file is stored in this browser; never where the browser stores none (without HTTPS). */
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
 * The interface for scripts: `embedPixels` takes a Uint8Array of height × width × 3 RGB values, 0..255, row by row; `searchFile` a
 * Blob. Embeddings are Float32Arrays of unit length.
 */
window.edgeembed = {
  ready,
  offline,
  embedPixels: (pixels) => callWorker("embedPixels", { pixels }),
  searchFile: (blob) => callWorker("search", { blob }),
};
