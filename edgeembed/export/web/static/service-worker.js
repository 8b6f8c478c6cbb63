// Keeps every file of the page in the browser, so that it opens and searches without a network.
//
// What it keeps is named by its checksum, so that a page that was built again is fetched again, whole.

const FILES = {}; // {name: sha256}, filled in when the page is built
const VERSION = ""; // so is this: names their content
const PREFIX = `edgeembed ${self.registration.scope} `;
const CACHE = PREFIX + VERSION;

self.addEventListener("install", (event) => event.waitUntil(keepAll().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(dropOlder().then(() => self.clients.claim())));

self.addEventListener("fetch", (event) => {
  const name = nameOf(event.request);
  if (name !== null) event.respondWith(answer(name, event.request));
});

/** The file of the page that a request means; null for what is none of its. */
function nameOf(request) {
  const url = new URL(request.url);
  const scope = new URL(self.registration.scope);
  if (request.method !== "GET" || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return null;
  const name = decodeURIComponent(url.pathname.slice(scope.pathname.length)) || "index.html";
  return name in FILES ? name : null;
}

async function answer(name, request) {
  const cache = await caches.open(CACHE);
  return (await cache.match(keyOf(name))) ?? fetch(request);
}

function keyOf(name) {
  return new URL(name, self.registration.scope).href;
}

async function keepAll() {
  const cache = await caches.open(CACHE);
  await Promise.all(Object.keys(FILES).map(async (name) => cache.put(keyOf(name), await fetchRight(name))));
}

/**
 * What the page has just loaded is taken from the browser's own cache, unless that is of an older build.
 * Kept as a new response: one that a host redirected could not answer for the page itself.
 */
async function fetchRight(name) {
  for (const cache of ["default", "reload"]) {
    const response = await fetch(keyOf(name), { cache });
    const bytes = await response.arrayBuffer();
    if (response.ok && (await sha256(bytes)) === FILES[name]) {
      return new Response(bytes, { headers: { "Content-Type": response.headers.get("Content-Type") ?? "" } });
    }
  }
  throw new Error(`${name} is not the file that this page was built with`);
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function dropOlder() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name)));
}
