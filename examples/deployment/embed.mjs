// Embeds one image in Node with ONNX Runtime: node embed.mjs BUNDLE IMAGE.ppm
//
// First: npm install onnxruntime-web (WebAssembly, any machine; onnxruntime-node has the same interface).
// The image is a binary PPM (P6), to need no decoder here: put your own in place of readPpm. It must give 8-bit RGB,
// turned as the EXIF orientation of the file says, with transparent pixels laid on white.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-web";
// From edgeembed/export/web/static/ of the package; it gives Pillow's pixels bit for bit. Most other libraries do not.
import { pillowResize } from "./pillow_resize.js";

function readPpm(path) {
  const bytes = readFileSync(path);
  const header = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 64).toString("latin1"));
  if (!header) throw new Error(`${path}: expected a binary PPM of 8 bits`);
  return { width: Number(header[1]), height: Number(header[2]), rgb: bytes.subarray(header[0].length) };
}

/** RGBA bytes of some rows, as pillowResize reads them. */
function rowsOf({ width, rgb }) {
  return (y, rows) => {
    const rgba = new Uint8Array(4 * width * rows);
    for (let i = 0; i < width * rows; i++) rgba.set(rgb.subarray(3 * (y * width + i), 3 * (y * width + i) + 3), 4 * i);
    return rgba;
  };
}

const [bundle, path] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(join(bundle, "bundle.json"), "utf8"));
const file = manifest.files.find(({ precision, runtime }) => precision === "fp32" && runtime === "onnxruntime");
const model = readFileSync(join(bundle, file.path));
if (createHash("sha256").update(model).digest("hex") !== file.sha256) throw new Error(`${file.path}: wrong checksum`);

const { height, width } = manifest.input;
const picture = readPpm(path);
const pixels = pillowResize(rowsOf(picture), picture.width, picture.height, { height, width }, true);

// Input and output: image, uint8, (N, height, width, 3); embedding, float32, (N, D), unit length.
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
const { embedding } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
console.log([...embedding.data].map((value) => value.toFixed(6)).join(" "));
