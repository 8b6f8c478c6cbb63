// Beside the page's own thread, so that it stays responsive: decoding, the network, and the search.
//
// Takes {id, task, ...} and answers {id, answer} or {id, error}; error is {plain, message}, plain where the message is
// written for the person at the page.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.js";
import { readPicture, PictureError } from "./picture.js";
import { fetchJson, fetchVerified } from "./verified.js";

const SHOWN = 5;

ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = self.crossOriginIsolated ? 0 : 1; // 0: as many as suit the machine
ort.env.logLevel = "error";

const opened = open();
opened.catch(() => {}); // each task reports it

async function open() {
  const site = await fetchJson("site.json");
  const { model, index } = site;
  const [weights, described, vectors] = await Promise.all([
    fetchVerified(model.file, site),
    fetchVerified(index.file, site).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))),
    fetchVerified(index.vectors, site).then((bytes) => new Float32Array(bytes)),
  ]);
  requireSameSpace(model, described, vectors);
  const session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  await session.run({ image: toTensor(new Uint8Array(model.height * model.width * 3), model) }); // the first is slow
  return { site, model, described, vectors, session };
}

function requireSameSpace(model, described, vectors) {
  if (described.space_id !== model.space_id) {
    throw new Error(
      `The index is in embedding space ${described.space_id}, the model in ${model.space_id}: build the page again.`,
    );
  }
  if (vectors.length !== described.pictures.length * model.dim) {
    throw new Error(`The index holds ${vectors.length} numbers, not ${model.dim} a picture: build the page again.`);
  }
}

const tasks = {
  async describe() {
    const { model, described } = await opened;
    return { model, pictures: described.pictures.length };
  },

  /** A file: its input pixels, embedding and nearest pictures, and a small bitmap of it. */
  async search({ blob }) {
    const { site, model } = await opened;
    const { pixels, preview } = await readPicture(blob, model, site.picture);
    const embedding = await embed(pixels);
    return { pixels, embedding, preview, results: await nearest(embedding) };
  },

  async embedPixels({ pixels }) {
    return embed(pixels);
  },
};

async function embed(pixels) {
  const { model, session } = await opened;
  if (!(pixels instanceof Uint8Array) || pixels.length !== model.height * model.width * 3) {
    throw new Error(`Expected a Uint8Array of ${model.height} × ${model.width} × 3 RGB values.`);
  }
  const { embedding } = await session.run({ image: toTensor(pixels, model) });
  return embedding.data;
}

function toTensor(pixels, { height, width }) {
  return new ort.Tensor("uint8", pixels, [1, height, width, 3]);
}

/** The best of the index, by cosine: vectors have unit length. */
async function nearest(embedding) {
  const { described, vectors } = await opened;
  const score = (row) => embedding.reduce((sum, value, i) => sum + value * vectors[row * embedding.length + i], 0);
  return described.pictures
    .map((picture, row) => ({ ...picture, score: score(row) }))
    .sort((a, b) => b.score - a.score)
    .slice(0, SHOWN);
}

self.onmessage = async ({ data: { id, task, ...details } }) => {
  try {
    const answer = await tasks[task](details);
    self.postMessage({ id, answer }, answer.preview ? [answer.preview] : []);
  } catch (error) {
    const plain = error instanceof PictureError;
    self.postMessage({ id, error: { plain, message: error.message ?? String(error) } });
  }
};
