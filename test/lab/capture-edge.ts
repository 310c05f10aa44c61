import { createPublicKey, randomBytes, randomUUID, verify } from "node:crypto";
import { once } from "node:events";
import { createServer as createHttp2 } from "node:http2";
import { createServer as createHttps } from "node:https";
import type { AddressInfo } from "node:net";
import { fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { pino } from "pino";
import { createEdge } from "../../services/edge-relay/edge/edge.ts";
import { createOriginRule } from "../../services/edge-relay/edge/origin-rule.ts";
import { createSigner } from "../../services/edge-relay/edge/sign-bundle.ts";

// A program for the edge's namespace: the real edge, a page of another origin that runs its collector, and a server that
// takes what the edge forwards in the verdict service's place. It prints {"url"} of the page, and then {"bundle"}, base64,
// for each session; it ends with its input.
const { address } = JSON.parse(process.argv[2] ?? "{}") as { address: string };
const log = pino({ level: "warn" }, process.stderr);
const print = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const { key, certificate: cert } = await (await createTestAuthority()).issue();
const signer = createSigner(`esk_${"a".repeat(26)}`, randomBytes(32));
const publicKey = createPublicKey({
  key: Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), Buffer.from(signer.publicKey, "base64")]),
  format: "der",
  type: "spki",
});

const verdict = createHttp2(
  connectNodeAdapter({
    routes: ({ service }) =>
      void service(VerdictService, {
        submitSignals({ signedBundle, keyId, signature }) {
          const signed = Buffer.concat([Buffer.from("octomesh edge signals v1\0"), signedBundle]);
          if (keyId !== signer.keyId || !verify(null, signed, publicKey, signature)) {
            throw new ConnectError("the signature is not the edge's", Code.Unauthenticated);
          }
          fromBinary(SignalBundleSchema, signedBundle);
          print({ bundle: Buffer.from(signedBundle).toString("base64") });
          return { ok: true };
        },
      }),
  }),
).listen(0, "127.0.0.1");
await once(verdict, "listening");

const pages = createHttps({ key, cert }, (request, response) => {
  if (request.url !== "/") return void response.writeHead(404).end();
  response.writeHead(200, { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" });
  response.end(page(randomUUID()));
}).listen(0, "0.0.0.0");
await once(pages, "listening");

const origin = `https://${address}:${portOf(pages.address())}`;
const origins = createOriginRule([origin]);
if (origins === undefined) throw new Error(`${origin} is no origin`);
const edge = await createEdge({
  role: "edge",
  name: "lab",
  location: { latitude: 50.11, longitude: 8.68 },
  host: "0.0.0.0",
  port: 0,
  tls: { options: () => ({ key, cert }) },
  origins,
  icmp: true,
  log,
});
edge.provision({
  // The server here asks for none.
  license: "octet_test_lab",
  signer,
  url: () => `http://127.0.0.1:${portOf(verdict.address())}`,
  tls: () => ({}),
});
print({ url: `${origin}/` });
process.stdin.resume().once("end", () => process.exit(0));

function page(sessionRef: string): string {
  const apiUrl = `https://${address}:${edge.port}`;
  return `<!doctype html><title>waiting</title><script src="${apiUrl}/octet-collector.js" crossorigin="anonymous"></script>
<script>
octet.verify(${JSON.stringify({ apiUrl, sessionRef })}).then(
  () => { document.title = "done"; },
  (error) => { document.title = "failed: " + error.message; },
);
</script>`;
}

function portOf(listening: AddressInfo | string | null): number {
  if (listening === null || typeof listening === "string") throw new Error("no port");
  return listening.port;
}
