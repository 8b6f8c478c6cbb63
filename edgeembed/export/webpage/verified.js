// Files of this folder, checked against the checksums in site.json before they are used.

export async function fetchJson(name) {
  return (await fetchFile(name)).json();
}

/** The bytes of a file that site.json names. Throws where they are not those that it was built with. */
export async function fetchVerified(name, site) {
  const bytes = await (await fetchFile(name)).arrayBuffer();
  const expected = site.files[name];
  if (bytes.byteLength !== expected.bytes) {
    throw new Error(`${name} has ${bytes.byteLength} bytes, site.json says ${expected.bytes}: build the page again.`);
  }
  // Browsers offer checksums only where the page comes over HTTPS or from this machine.
  if (self.crypto?.subtle && (await sha256(bytes)) !== expected.sha256) {
    throw new Error(`${name} is not the file that site.json names (its SHA-256 differs): build the page again.`);
  }
  return bytes;
}

async function fetchFile(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}).`);
  return response;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
