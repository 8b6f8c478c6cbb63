// Decodes pictures, runs the network and searches, in a worker, so that the page stays responsive.
//
// Receives {id, task, ...} and sends {id, result} or {id, error}. An error is {plain, message}; plain is true where the
// message is written for the visitor.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.js";
import { readPicture, PictureError } from "./picture.js";
import { fetchJson, fetchVerified } from "./verified.js";

const NUM_RESULTS = 5;

ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = self.crossOriginIsolated ? 0 : 1; // 0: ONNX Runtime chooses
ort.env.logLevel = "error";

const opened = open();
opened.catch(() => {}); // each task reports the error

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
  await session.run({ image: toTensor(new Uint8Array(model.height * model.width * 3), model) }); // the first run is slow
  return { site, model, described, vectors, session };
}

function requireSameSpace(model, described, vectors) {
  if (described.space_id !== model.space_id) {
    throw new Error(
      `The index is in embedding space ${described.space_id}, the model in ${model.space_id}: build the page again.`,
    );
  }
  if (vectors.length !== described.pictures.length * model.dim) {
    throw new Error(`The index holds ${vectors.length} numbers, expected ${model.dim} for each picture: build the page again.`);
  }
}

const tasks = {
  async describe() {
    const { model, described } = await opened;
    return { model, pictures: described.pictures.length };
  },

  /** Returns the input pixels of a file, its embedding, the nearest pictures, and a small bitmap of it. */
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

/** Returns the nearest pictures of the index by cosine, which is the inner product of unit vectors. */
async function nearest(embedding) {
  const { described, vectors } = await opened;
  const score = (row) => embedding.reduce((sum, value, i) => sum + value * vectors[row * embedding.length + i], 0);
  return described.pictures
    .map((picture, row) => ({ ...picture, score: score(row) }))
    .sort((a, b) => b.score - a.score)
    .slice(0, NUM_RESULTS);
}

self.onmessage = async ({ data: { id, task, ...details } }) => {
  try {
    const result = await tasks[task](details);
    self.postMessage({ id, result }, result.preview ? [result.preview] : []);
  } catch (error) {
    const plain = error instanceof PictureError;
    self.postMessage({ id, error: { plain, message: error.message ?? String(error) } });
  }
};
