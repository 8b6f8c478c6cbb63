// Pillow's BILINEAR resize of 8-bit RGB, bit for bit, so that a picture becomes the same pixels here as in Python.
//
// A triangle filter, widened by the reduction so that it averages; rows first, rounded to 8 bits, then columns.
// Weights are integers with 22 binary places, as in Pillow's Resample.c.

const PLACES = 22;
const HALF = 2 ** (PLACES - 1);
const ROWS_AT_ONCE = 256; // bounds the memory that a large picture takes beside its own

/**
 * Which source pixels make each target pixel along one side, and how much of each.
 * Target pixel i is the sum over k < count[i] of weight[i * taps + k] times source pixel first[i] + k.
 */
export function filterTaps(sourceSize, targetSize) {
  const scale = sourceSize / targetSize;
  const support = Math.max(scale, 1);
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(targetSize);
  const count = new Int32Array(targetSize);
  const weight = new Int32Array(targetSize * taps);
  const exact = new Float64Array(taps);
  for (let i = 0; i < targetSize; i++) {
    const centre = (i + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(sourceSize, Math.trunc(centre + support + 0.5));
    let sum = 0;
    for (let k = 0; k < end - begin; k++) {
      const distance = Math.abs((k + begin - centre + 0.5) * (1 / support));
      exact[k] = distance < 1 ? 1 - distance : 0;
      sum += exact[k];
    }
    for (let k = 0; k < end - begin; k++) {
      const share = sum === 0 ? exact[k] : exact[k] / sum;
      weight[i * taps + k] = Math.trunc(0.5 + share * 2 ** PLACES);
    }
    first[i] = begin;
    count[i] = end - begin;
  }
  return { first, count, weight, taps, size: targetSize };
}

/** Rows of RGBA, `width` wide, to rows of RGB that are `across.size` wide, written from `offset` on. */
function resizeRows(rgba, width, across, narrow, offset) {
  const { first, count, weight, taps, size } = across;
  const rows = rgba.length / (4 * width);
  let at = offset;
  for (let y = 0; y < rows; y++) {
    for (let i = 0; i < size; i++) {
      let red = HALF, green = HALF, blue = HALF;
      let from = 4 * (y * width + first[i]);
      const begin = i * taps;
      const end = begin + count[i];
      for (let k = begin; k < end; k++, from += 4) {
        red += rgba[from] * weight[k];
        green += rgba[from + 1] * weight[k];
        blue += rgba[from + 2] * weight[k];
      }
      // The weights of a pixel may add up to a little more than one, never to 256 times that: >> sees 32 bits.
      narrow[at++] = Math.min(255, red >> PLACES);
      narrow[at++] = Math.min(255, green >> PLACES);
      narrow[at++] = Math.min(255, blue >> PLACES);
    }
  }
}

/** Columns of RGB rows, each `rowLength` numbers, to `down.size` rows. */
function resizeColumns(narrow, rowLength, down) {
  const { first, count, weight, taps, size } = down;
  const target = new Uint8Array(size * rowLength);
  const sum = new Int32Array(rowLength);
  for (let i = 0; i < size; i++) {
    sum.fill(HALF);
    for (let k = 0; k < count[i]; k++) {
      const share = weight[i * taps + k];
      const from = (first[i] + k) * rowLength;
      for (let x = 0; x < rowLength; x++) sum[x] += narrow[from + x] * share;
    }
    for (let x = 0; x < rowLength; x++) target[i * rowLength + x] = Math.min(255, sum[x] >> PLACES);
  }
  return target;
}

/**
 * Resizes a picture to (targetHeight, targetWidth, 3) uint8, without keeping its proportions.
 * `readRows(y, rows)` gives that many of its rows as RGBA bytes.
 */
export function pillowResize(readRows, width, height, targetWidth, targetHeight) {
  const across = filterTaps(width, targetWidth);
  const down = filterTaps(height, targetHeight);
  const narrow = new Uint8Array(height * targetWidth * 3);
  for (let y = 0; y < height; y += ROWS_AT_ONCE) {
    const rows = Math.min(ROWS_AT_ONCE, height - y);
    resizeRows(readRows(y, rows), width, across, narrow, y * targetWidth * 3);
  }
  return resizeColumns(narrow, targetWidth * 3, down);
}
