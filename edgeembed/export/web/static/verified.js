// Files of this folder, checked against the checksums in site.json before they are used.

/** A small file that says what the others are: asked for anew each time. */
export async function fetchJson(name) {
  return (await fetchFile(name, "no-cache")).json();
}

/** The bytes of a file that site.json names. Throws where they are not those that it was built with. */
export async function fetchVerified(name, site) {
  let difference;
  for (const cache of ["default", "reload"]) { // what the browser remembers may be of an older build
    const bytes = await (await fetchFile(name, cache)).arrayBuffer();
    difference = await differenceFrom(site.files[name], bytes);
    if (!difference) return bytes;
  }
  throw new Error(`${name} is not the file that site.json names (${difference}): build the page again.`);
}

async function differenceFrom(expected, bytes) {
  if (bytes.byteLength !== expected.bytes) return `it has ${bytes.byteLength} bytes instead of ${expected.bytes}`;
  // Browsers offer checksums only where the page comes over HTTPS or from this machine.
  if (self.crypto?.subtle && (await sha256(bytes)) !== expected.sha256) return "its SHA-256 differs";
  return null;
}

async function fetchFile(name, cache) {
  const response = await fetch(new URL(name, import.meta.url), { cache });
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}).`);
  return response;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
