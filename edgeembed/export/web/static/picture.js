// Converts a picture file to the network's input, with the steps of edgeembed/device/images.py: upright, on white, squashed.

import { turn, webpOrientation } from "./orientation.js";
import { readHeader } from "./picture_header.js";
import { pillowResize } from "./pillow_resize.js";

const PREVIEW_PX = 320;
const MAX_FILE_BYTES = 2 ** 30;

/** The reason why a file gives no result, written for the visitor. */
export class PictureError extends Error {}

/**
 * Decodes a file to {pixels, preview}: (height, width, 3) RGB bytes of the `target` size, and a small bitmap to look at.
 * `rules` is `picture` of site.json. Throws PictureError for a file that is damaged, no picture, or above `max_pixels`.
 */
export async function readPicture(blob, target, rules) {
  if (blob.size === 0) throw new PictureError("This file is empty.");
  if (blob.size > MAX_FILE_BYTES) throw new PictureError("This file is larger than 1 GB. Make it smaller and try again.");
  const bitmap = await decode(blob, rules.max_pixels);
  try {
    const { width, height } = bitmap;
    const pixels = pillowResize(rowReader(bitmap), width, height, target, rules.tall_columns_first);
    return { pixels, preview: await makePreview(bitmap) };
  } finally {
    bitmap.close();
  }
}

function requireSize({ width, height }, maxPixels) {
  if (width * height <= maxPixels) return;
  const millions = (pixels) => `${Math.floor(pixels / 1e6)} million pixels`;
  throw new PictureError(
    `This picture is ${width} × ${height}: more than ${millions(maxPixels)}. Make it smaller and try again.`,
  );
}

async function decode(blob, maxPixels) {
  try {
    const header = await readHeader(blob);
    if (header) requireSize(header, maxPixels);
    // As in Python, the colour profile is ignored and the orientation is applied.
    const orientation = await webpOrientation(blob);
    const imageOrientation = orientation === 1 ? "from-image" : "none";
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", imageOrientation });
    requireSize(bitmap, maxPixels); // for formats whose header is not read here
    return orientation === 1 ? bitmap : turn(bitmap, orientation);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    const why = error.name === "InvalidStateError" ? "it is damaged, or no" : "it is gone, or a folder, and no";
    throw new PictureError(`This file cannot be read: ${why} picture of the kinds JPEG, PNG, WebP, GIF and BMP.`);
  }
}

/** Reads rows through a canvas of their height, because some browsers have no canvas for a whole large picture. */
function rowReader(bitmap) {
  let canvas = null, context = null;
  return (y, rows) => {
    try {
      if (canvas?.height !== rows) {
        canvas = new OffscreenCanvas(bitmap.width, rows);
        context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
      }
      context.fillStyle = "white";
      context.fillRect(0, 0, bitmap.width, rows);
      context.drawImage(bitmap, 0, -y);
      return context.getImageData(0, 0, bitmap.width, rows).data;
    } catch {
      throw new PictureError(`This picture is too large for this browser: ${bitmap.width} × ${bitmap.height}.`);
    }
  };
}

function makePreview(bitmap) {
  const scale = Math.min(1, PREVIEW_PX / Math.max(bitmap.width, bitmap.height));
  const side = (px) => Math.max(1, Math.round(px * scale));
  return createImageBitmap(bitmap, {
    resizeWidth: side(bitmap.width),
    resizeHeight: side(bitmap.height),
    resizeQuality: "medium",
  });
}
