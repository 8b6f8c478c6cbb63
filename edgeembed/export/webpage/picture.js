// A picture file becomes the network's input, with the same steps as edgeembed/images.py: upright, on white, squashed.

import { turn, webpOrientation } from "./orientation.js";
import { readHeader } from "./picture_header.js";
import { pillowResize } from "./pillow_resize.js";

const PREVIEW_PX = 320;

/** Why a file gives no result, in words for the person who chose it. */
export class PictureError extends Error {}

/**
 * Decodes a file to {pixels, preview}: (height, width, 3) RGB bytes of the `target` size, and a small bitmap to look at.
 * `rules` are site.json's `picture`. Throws PictureError for what is not one whole picture of at most that many pixels.
 */
export async function readPicture(blob, target, rules) {
  if (blob.size === 0) throw new PictureError("This file is empty.");
  const header = await readHeader(blob);
  if (header) requireSize(header, rules.max_pixels);
  const bitmap = await decode(blob);
  try {
    requireSize(bitmap, rules.max_pixels);
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

async function decode(blob) {
  try {
    // The profile of a camera or screen is left aside, as it is in Python; orientation is applied, as it is there.
    const orientation = await webpOrientation(blob);
    const imageOrientation = orientation === 1 ? "from-image" : "none";
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", imageOrientation });
    return orientation === 1 ? bitmap : turn(bitmap, orientation);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    throw new PictureError("This file cannot be read: it is damaged, or no picture of the kinds JPEG, PNG, WebP, GIF and BMP.");
  }
}

/** Reads rows through a canvas of their height: one of a whole large picture is more than some browsers have. */
function rowReader(bitmap) {
  let canvas = null, context = null;
  return (y, rows) => {
    if (canvas?.height !== rows) {
      canvas = new OffscreenCanvas(bitmap.width, rows);
      context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
      if (!context) throw new PictureError(`This picture is too wide for this browser: ${bitmap.width} pixels.`);
    }
    context.fillStyle = "white";
    context.fillRect(0, 0, bitmap.width, rows);
    context.drawImage(bitmap, 0, -y);
    return context.getImageData(0, 0, bitmap.width, rows).data;
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
