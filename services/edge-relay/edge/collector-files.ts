import { existsSync, readFileSync } from "node:fs";
import type { HttpResponse } from "@octomesh/mesh/service";

/** Where the collector's build puts what pages load. */
const dist = new URL("../collector/dist/", import.meta.url);

const types: ReadonlyMap<string, string> = new Map([
  ["/octet-collector.js", "text/javascript; charset=utf-8"],
  ["/octet-collector.mjs", "text/javascript; charset=utf-8"],
  ["/octet-collector.js.sri", "text/plain; charset=utf-8"],
]);

/**
 * Answers with a file of the collector, to pages of every origin: it is the same for all, and nothing of anybody's is in
 * it. False where the path is none of it, or the collector is not built.
 */
export function serveCollector(path: string, response: HttpResponse, folder: URL = dist): boolean {
  const type = types.get(path);
  const file = new URL(`.${path}`, folder);
  if (type === undefined || !existsSync(file)) return false;
  response.writeHead(200, {
    "content-type": type,
    "cache-control": "public, max-age=3600",
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
  });
  response.end(readFileSync(file));
  return true;
}
