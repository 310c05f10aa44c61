import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";

/** A partner's web site: one page with the collector, as docs/verdicts.md tells partners to make it. */
export interface PartnerSite {
  readonly url: string;
  close(): Promise<void>;
}

const collectorFolder = new URL("../../services/edge-relay/collector/dist/", import.meta.url);

/** What the page runs. It shows what the collector answered in its title, for whoever looks on. */
const pageScript = `
const { apiUrl, sessionRef, nonce } = document.currentScript.dataset;
octet.verify({ apiUrl, sessionRef, nonce }).then(
  (answer) => { document.title = "done " + JSON.stringify(answer); },
  (error) => { document.title = "failed " + error.code; },
);
`;

/**
 * Serves the page on an origin of its own: the collector from there too, held to its published digest, under a strict
 * content security policy that lets the page reach the edge and nothing else.
 */
export async function openPartnerSite(edgeUrl: string): Promise<PartnerSite> {
  const [collector, integrity] = await Promise.all([
    readFile(new URL("octet-collector.js", collectorFolder)),
    readFile(new URL("octet-collector.js.sri", collectorFolder), "utf8"),
  ]).catch((error: unknown) => {
    throw new Error(`${fileURLToPath(collectorFolder)} does not hold the collector`, { cause: error });
  });
  const socketUrl = edgeUrl.replace(/^http/, "ws");
  const policy = `default-src 'none'; script-src 'self'; connect-src ${edgeUrl} ${socketUrl}`;
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? "/", "http://partner.invalid");
    response.setHeader("cache-control", "no-store");
    if (url.pathname === "/octet-collector.js") {
      response.setHeader("content-type", "text/javascript").end(collector);
    } else if (url.pathname === "/page.js") {
      response.setHeader("content-type", "text/javascript").end(pageScript);
    } else if (url.pathname === "/") {
      response.setHeader("content-type", "text/html; charset=utf-8");
      response.setHeader("content-security-policy", policy);
      response.end(pageOf({ edgeUrl, integrity: integrity.trim(), query: url.searchParams }));
    } else {
      response.writeHead(404).end();
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://localhost:${(server.address() as AddressInfo).port}/`,
    async close() {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

function pageOf(page: { edgeUrl: string; integrity: string; query: URLSearchParams }): string {
  const data = [
    `data-api-url="${quoted(page.edgeUrl)}"`,
    `data-session-ref="${quoted(page.query.get("ref") ?? "")}"`,
    `data-nonce="${quoted(page.query.get("nonce") ?? "")}"`,
  ].join(" ");
  return `<!doctype html><title>collecting</title>
<script src="/octet-collector.js" integrity="${quoted(page.integrity)}" crossorigin="anonymous"></script>
<script src="/page.js" ${data}></script>`;
}

function quoted(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
