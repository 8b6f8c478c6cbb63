// Fetches files of this folder and checks them against the checksums in site.json.

/** Fetches a small file that describes the others; never from the browser's cache alone. */
export async function fetchJson(name) {
  return (await fetchFile(name, "no-cache")).json();
}

/** Returns the bytes of a file in site.json. Throws where they are not those that the page was built with. */
export async function fetchVerified(name, site) {
  let difference;
  for (const cache of ["default", "reload"]) { // the browser's cache may hold an older build
    const bytes = await (await fetchFile(name, cache)).arrayBuffer();
    difference = await differenceFrom(site.files[name], bytes);
    if (!difference) return bytes;
  }
  throw new Error(`${name} is not the file that site.json names (${difference}): build the page again.`);
}

async function differenceFrom(expected, bytes) {
  if (bytes.byteLength !== expected.bytes) return `it has ${bytes.byteLength} bytes instead of ${expected.bytes}`;
  // Browsers compute checksums only for pages over HTTPS or from this machine.
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
