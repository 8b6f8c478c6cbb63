// Reads the size of a picture from its header, before it is decoded: a small file may decode to gigabytes.

const HEADER_BYTES = 2 ** 20; // a camera's metadata may stand before the size

/** {format, width, height} of a PNG, JPEG, GIF, WebP or BMP file; null for any other file. */
export async function readHeader(blob) {
  const bytes = new DataView(await blob.slice(0, HEADER_BYTES).arrayBuffer());
  try {
    return png(bytes) ?? jpeg(bytes) ?? gif(bytes) ?? webp(bytes) ?? bmp(bytes);
  } catch (error) {
    if (error instanceof RangeError) return null; // cut off within its header
    throw error;
  }
}

function startsWith(bytes, text, offset = 0) {
  if (bytes.byteLength < offset + text.length) return false;
  return [...text].every((letter, i) => bytes.getUint8(offset + i) === letter.charCodeAt(0));
}

function png(bytes) {
  if (!startsWith(bytes, "\x89PNG\r\n\x1a\n") || !startsWith(bytes, "IHDR", 12)) return null;
  return { format: "PNG", width: bytes.getUint32(16), height: bytes.getUint32(20) };
}

function gif(bytes) {
  if (!startsWith(bytes, "GIF8")) return null;
  return { format: "GIF", width: bytes.getUint16(6, true), height: bytes.getUint16(8, true) };
}

function bmp(bytes) {
  if (!startsWith(bytes, "BM")) return null;
  if (bytes.getUint32(14, true) === 12) {
    return { format: "BMP", width: bytes.getUint16(18, true), height: bytes.getUint16(20, true) };
  }
  // A negative height says that the rows come from the top.
  return { format: "BMP", width: bytes.getInt32(18, true), height: Math.abs(bytes.getInt32(22, true)) };
}

function webp(bytes) {
  if (!startsWith(bytes, "RIFF") || !startsWith(bytes, "WEBP", 8)) return null;
  const format = "WebP";
  const uint24 = (offset) => bytes.getUint16(offset, true) + 65536 * bytes.getUint8(offset + 2);
  if (startsWith(bytes, "VP8X", 12)) return { format, width: uint24(24) + 1, height: uint24(27) + 1 };
  if (startsWith(bytes, "VP8L", 12)) {
    const packed = bytes.getUint32(21, true);
    return { format, width: (packed & 0x3fff) + 1, height: ((packed >>> 14) & 0x3fff) + 1 };
  }
  return { format, width: bytes.getUint16(26, true) & 0x3fff, height: bytes.getUint16(28, true) & 0x3fff };
}

function jpeg(bytes) {
  if (!startsWith(bytes, "\xff\xd8\xff")) return null;
  let offset = 2;
  for (;;) {
    while (bytes.getUint8(offset) !== 0xff) offset++;
    while (bytes.getUint8(offset) === 0xff) offset++;
    const marker = bytes.getUint8(offset++);
    // C0 to CF start a frame, except for three that define tables.
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return { format: "JPEG", width: bytes.getUint16(offset + 5), height: bytes.getUint16(offset + 3) };
    }
    if (marker === 0xd9 || marker === 0xda) return null; // the end, or pixels, without a frame
    if (marker !== 0x01 && !(marker >= 0xd0 && marker <= 0xd8)) offset += bytes.getUint16(offset);
  }
}
