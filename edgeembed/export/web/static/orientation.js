// Reads and applies the EXIF orientation of WebP. Browsers apply it to JPEG and PNG only; Pillow also to WebP.

const EXIF_FLAG = 0x08;
const ORIENTATION_TAG = 0x0112;

/** Returns the EXIF orientation of a WebP file, 1 (upright) to 8; 1 for a file without one and for other formats. */
export async function webpOrientation(blob) {
  const header = new DataView(await blob.slice(0, 21).arrayBuffer());
  if (header.byteLength < 21 || text(header, 8) !== "WEBP" || !(header.getUint8(20) & EXIF_FLAG)) return 1;
  const bytes = new DataView(await blob.arrayBuffer());
  for (let offset = 12; offset + 8 <= bytes.byteLength; ) {
    const length = bytes.getUint32(offset + 4, true);
    if (text(bytes, offset) === "EXIF") return exifOrientation(new DataView(bytes.buffer, offset + 8));
    offset += 8 + length + (length % 2);
  }
  return 1;
}

function text(bytes, offset) {
  return String.fromCharCode(...new Uint8Array(bytes.buffer, offset, 4));
}

/** Reads the orientation from EXIF data: a TIFF header, then a table of tags. */
function exifOrientation(exif) {
  try {
    const start = exif.getUint32(0) === 0x45786966 ? 6 : 0; // some programs write "Exif" in front
    const little = exif.getUint8(start) === 0x49; // "I" as in Intel
    const table = start + exif.getUint32(start + 4, little);
    for (let i = 0; i < exif.getUint16(table, little); i++) {
      const entry = table + 2 + 12 * i;
      if (exif.getUint16(entry, little) !== ORIENTATION_TAG) continue;
      const value = exif.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut off
  }
  return 1;
}

/** Returns a bitmap that is turned and mirrored by an EXIF orientation. */
export function turn(bitmap, orientation) {
  const { width: w, height: h } = bitmap;
  const matrix = {
    2: [-1, 0, 0, 1, w, 0],
    3: [-1, 0, 0, -1, w, h],
    4: [1, 0, 0, -1, 0, h],
    5: [0, 1, 1, 0, 0, 0],
    6: [0, 1, -1, 0, h, 0],
    7: [0, -1, -1, 0, h, w],
    8: [0, -1, 1, 0, 0, w],
  }[orientation];
  const canvas = orientation < 5 ? new OffscreenCanvas(w, h) : new OffscreenCanvas(h, w);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.imageSmoothingEnabled = false;
  context.setTransform(...matrix);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.transferToImageBitmap();
}
