// Stores every file of the page in the browser, so that it opens and searches without a network.
//
// The name of the cache changes with any file, so that a page that was built again is fetched again, completely.

const FILES = {}; // {name: sha256}, filled in when the page is built
const VERSION = ""; // a checksum of FILES, filled in too
const PREFIX = `edgeembed ${self.registration.scope} `;
const CACHE = PREFIX + VERSION;

self.addEventListener("install", (event) => event.waitUntil(storeAll().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(deleteOlder().then(() => self.clients.claim())));

self.addEventListener("fetch", (event) => {
  const name = nameOf(event.request);
  if (name !== null) event.respondWith(respond(name, event.request));
});

/** Returns the file of the page that a request is for; null for another address. */
function nameOf(request) {
  const url = new URL(request.url);
  const scope = new URL(self.registration.scope);
  if (request.method !== "GET" || url.origin !== scope.origin || !url.pathname.startsWith(scope.pathname)) return null;
  const name = decodeURIComponent(url.pathname.slice(scope.pathname.length)) || "index.html";
  return name in FILES ? name : null;
}

async function respond(name, request) {
  const cache = await caches.open(CACHE);
  return (await cache.match(keyOf(name))) ?? fetch(request);
}

function keyOf(name) {
  return new URL(name, self.registration.scope).href;
}

async function storeAll() {
  const cache = await caches.open(CACHE);
  await Promise.all(Object.keys(FILES).map(async (name) => cache.put(keyOf(name), await fetchVerified(name))));
}

/**
 * Fetches a file, first from the browser's cache, which may hold what the page has just loaded or an older build.
 * Returns a new response, because browsers refuse a redirected one for the page itself.
 */
async function fetchVerified(name) {
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

async function deleteOlder() {
  const names = await caches.keys();
  await Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name)));
}
