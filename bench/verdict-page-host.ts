import { spawn } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, get } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { LicenseKey_ClientCertificateMode as CertificateMode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { apiKey, bearer, createClients, readVerdict } from "@octomesh/sdk";
import { createSigningRequest } from "../cli/signing-request.ts";
import { startMesh } from "../launcher/demo/mesh-process.ts";
import { waitUntil } from "../launcher/demo/wait-until.ts";

// A program for the servers' namespace: a mesh in one process, a stand-alone edge with licence, client certificate and
// signing key, and a site whose backend waits for the verdict of each page that it serves. It prints {"url"} of the site,
// and {"ref","readMs"} for each verdict that was read; it ends with its input.
const { address } = JSON.parse(process.argv[2] ?? "{}") as { address: string };
const print = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const root = fileURLToPath(new URL("../", import.meta.url));
const edgePort = 8443;

const folder = await mkdtemp(join(tmpdir(), "octomesh-bench-page-"));
const file = async (name: string, content: string): Promise<string> => {
  const path = join(folder, name);
  await writeFile(path, content, { mode: 0o600 });
  return path;
};
const { key, certificate } = await (await createTestAuthority()).issue();
const collector = await readFile(join(root, "services/edge-relay/collector/dist/octet-collector.js"));
const stateDir = join(folder, "state");
const mesh = await startMesh({ stateDir, processes: false, env: { OCTOMESH_LIMIT_EDGE: "1000000" } });

const anonymous = createClients({ baseUrl: mesh.url });
const { session } = await anonymous.organizations.setUpOrganization({
  setupCode: mesh.setUpCode,
  displayName: "Bench",
  ownerEmail: "bench@example.com",
});
const owner = createClients({ baseUrl: mesh.url, credential: bearer(session?.accessToken ?? "") });
const { partnerKey } = await owner.edgeCredentials.createPartnerKey({ name: "bench" });
const backend = createClients({ baseUrl: mesh.url, credential: apiKey(partnerKey), timeoutMs: 20_000 });

const site = createServer({ key, cert: certificate }, (request, response) => {
  const { pathname, searchParams } = new URL(request.url ?? "/", "https://site.invalid");
  response.setHeader("cache-control", "no-store");
  if (pathname === "/octet-collector.js")
    return void response.setHeader("content-type", "text/javascript").end(collector);
  if (pathname !== "/") return void response.writeHead(404).end();
  const ref = randomBytes(16).toString("base64url");
  void read(ref);
  response.setHeader("content-type", "text/html; charset=utf-8").end(page(ref, searchParams.get("mode") ?? "full"));
}).listen(0, "0.0.0.0");
await once(site, "listening");
const origin = `https://${address}:${(site.address() as AddressInfo).port}`;

const edge = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), "services/edge-relay/octet-edge.ts"], {
  cwd: root,
  stdio: ["ignore", "ignore", "inherit"],
  env: { PATH: process.env.PATH, ...(await edgeEnvironment()) },
});
process.stdin.resume().once("end", () => void stop());
const isReady = await waitUntil(() => answers(`https://127.0.0.1:${edgePort}/ready`), {
  timeoutMs: 30_000,
  everyMs: 200,
});
if (!isReady) throw new Error("the edge is not ready after half a minute");
print({ url: `${origin}/` });

async function edgeEnvironment(): Promise<Record<string, string>> {
  const license = await owner.edgeCredentials.createLicenseKey({
    name: "bench",
    clientCertificate: CertificateMode.REQUIRE,
  });
  const request = await createSigningRequest();
  const issued = await owner.edgeCredentials.issueEdgeCertificate({
    licenseKeyId: license.id,
    csrPem: request.csrPem,
  });
  const pair = generateKeyPairSync("ed25519");
  const signing = await owner.edgeCredentials.registerEdgeSigningKey({
    licenseKeyId: license.id,
    publicKey: pair.publicKey.export({ format: "der", type: "spki" }).subarray(-32),
  });
  return {
    OCTET_URL: mesh.verdictUrl,
    OCTET_CA_FILE: join(stateDir, "ca/authority.pem"),
    LICENSE: license.license,
    EDGE_CLIENT_CERT_FILE: await file("edge.crt", issued.certificatePem),
    EDGE_CLIENT_KEY_FILE: await file("edge.key", request.keyPem),
    EDGE_SIGNING_KEY: pair.privateKey.export({ format: "der", type: "pkcs8" }).subarray(-32).toString("base64"),
    EDGE_SIGNING_KEY_ID: signing.id,
    EDGE_TLS_CERT_FILE: await file("site.crt", certificate),
    EDGE_TLS_KEY_FILE: await file("site.key", key),
    EDGE_LOCATION: "50.11,8.68",
    PORT: String(edgePort),
    ALLOWED_ORIGIN: origin,
    EDGE_LOG_LEVEL: "error",
  };
}

/** Whether a server with a certificate that nobody knows answers 200. */
function answers(url: string): Promise<boolean> {
  return new Promise((resolve) => {
    get(url, { rejectUnauthorized: false }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    }).on("error", () => resolve(false));
  });
}

async function read(ref: string): Promise<void> {
  const reading = await readVerdict(backend, ref, { waitMs: 10_000 });
  if (reading.state === "ready") print({ ref, readMs: Date.now() });
  else process.stderr.write(`the verdict is ${reading.pending}\n`);
}

function page(sessionRef: string, mode: string): string {
  const options = JSON.stringify({ apiUrl: `https://${address}:${edgePort}`, sessionRef, mode });
  return `<!doctype html><title>waiting</title><script src="/octet-collector.js"></script><script>
octet.verify(${options}).then(
  () => { document.title = "done ${sessionRef}"; },
  (error) => { document.title = "failed " + error.code; },
);
</script>`;
}

async function stop(): Promise<void> {
  edge.kill();
  await mesh.stop();
  await rm(folder, { recursive: true, force: true });
  process.exit(0);
}
