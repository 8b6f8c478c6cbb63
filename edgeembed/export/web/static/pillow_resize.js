// Pillow's BILINEAR resize of 8-bit RGB, bit for bit, so that a picture becomes the same pixels here as in Python.
//
// A triangle filter, as wide as the reduction, is applied along rows and then along columns, or the other way round, with
// 8-bit values in between. Weights are integers with 22 fractional bits, as in Pillow's Resample.c.

const FRACTION_BITS = 22;
const HALF = 2 ** (FRACTION_BITS - 1);
const ROWS_AT_ONCE = 256; // limits the memory for a large picture

const toByte = (sum) => Math.min(255, sum >> FRACTION_BITS); // weights are positive, and may add up to a little over one

/**
 * Returns the source pixels and their weights for each target pixel along one side.
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
      weight[i * taps + k] = Math.trunc(0.5 + share * 2 ** FRACTION_BITS);
    }
    first[i] = begin;
    count[i] = end - begin;
  }
  return { first, count, weight, taps, size: targetSize };
}

/** Resizes rows of `width` pixels with `channels` bytes each to rows of RGB that are `across.size` wide. */
function resizeRows(source, channels, width, across) {
  const { first, count, weight, taps, size } = across;
  const rows = source.length / (channels * width);
  const target = new Uint8Array(rows * size * 3);
  let at = 0;
  for (let y = 0; y < rows; y++) {
    for (let i = 0; i < size; i++) {
      let red = HALF, green = HALF, blue = HALF;
      let from = channels * (y * width + first[i]);
      const begin = i * taps;
      const end = begin + count[i];
      for (let k = begin; k < end; k++, from += channels) {
        red += source[from] * weight[k];
        green += source[from + 1] * weight[k];
        blue += source[from + 2] * weight[k];
      }
      target[at++] = toByte(red);
      target[at++] = toByte(green);
      target[at++] = toByte(blue);
    }
  }
  return target;
}

/** Adds rows, from row `y` of the picture on, to the `sum` of each target row that they contribute to. */
function addRows(sum, rows, rowLength, y, down) {
  const { first, count, weight, taps, size } = down;
  let begin = 0;
  for (let from = 0; from < rows.length; from += rowLength, y++) {
    while (first[begin] + count[begin] <= y) begin++;
    for (let i = begin; i < size && first[i] <= y; i++) {
      const share = weight[i * taps + y - first[i]];
      const to = i * rowLength;
      for (let x = 0; x < rowLength; x++) sum[to + x] += rows[from + x] * share;
    }
  }
}

function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

/**
 * Resizes a picture to (target.height, target.width, 3) uint8, without keeping its proportions.
 *
 * `readRows(y, rows)` gives that many of its rows as RGBA bytes. Pillow 13 begins with the columns where the height
 * shrinks more than twice as much as the width; older ones do not, and `tallColumnsFirst` says which to follow.
 */
export function pillowResize(readRows, width, height, target, tallColumnsFirst) {
  const across = filterTaps(width, target.width);
  const down = filterTaps(height, target.height);
  const lost = height - target.height;
  const columnsFirst = tallColumnsFirst && lost > 0 && lost > 2 * (width - target.width);
  const rowLength = 3 * (columnsFirst ? width : target.width);
  const sum = new Int32Array(target.height * rowLength).fill(HALF);
  for (let y = 0; y < height; y += ROWS_AT_ONCE) {
    const rgba = readRows(y, Math.min(ROWS_AT_ONCE, height - y));
    const rows = columnsFirst ? withoutAlpha(rgba) : resizeRows(rgba, 4, width, across);
    addRows(sum, rows, rowLength, y, down);
  }
  const low = Uint8Array.from(sum, toByte);
  return columnsFirst ? resizeRows(low, 3, width, across) : low;
}
