import { generateKeyPairSync, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { LicenseKey_ClientCertificateMode as CertificateMode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { apiKey, bearer, createClients } from "@octomesh/sdk";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { createSigningRequest } from "../cli/signing-request.ts";
import { createEdge, type Edge } from "../services/edge-relay/edge/edge.ts";
import { createOriginRule } from "../services/edge-relay/edge/origin-rule.ts";
import { createSigner } from "../services/edge-relay/edge/sign-bundle.ts";
import { type StartedMesh, startMesh } from "./start-mesh.ts";

/** How soon after the answer of a revocation what was revoked must be refused. */
const limitMs = 1000;
let mesh: StartedMesh;
let owner: ReturnType<typeof createClients>;
let edge: Edge | undefined;

beforeAll(async () => {
  mesh = await startMesh();
  const setupCode = (await readFile(join(mesh.stateDir, "secrets/set-up-code"), "utf8")).trim();
  const anonymous = createClients({ baseUrl: mesh.publicUrl });
  const { session } = await anonymous.organizations.setUpOrganization({
    setupCode,
    displayName: "Acme",
    ownerEmail: "owner@example.com",
  });
  anonymous.close();
  owner = createClients({ baseUrl: mesh.publicUrl, credential: bearer(session?.accessToken ?? "") });
}, 60_000);

afterEach(() => edge?.close(0));

afterAll(async () => {
  owner?.close();
  await mesh?.stop();
});

/** Starts an edge of its own with everything it proves itself by, and says what that is known by. */
async function startEdge(): Promise<{ license: string; certificate: string; signingKey: string }> {
  const credentials = owner.edgeCredentials;
  const license = await credentials.createLicenseKey({ name: "edge", clientCertificate: CertificateMode.REQUIRE });
  const { csrPem, keyPem } = await createSigningRequest();
  const certificate = await credentials.issueEdgeCertificate({ licenseKeyId: license.id, csrPem });
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const signingKey = await credentials.registerEdgeSigningKey({
    licenseKeyId: license.id,
    publicKey: publicKey.export({ format: "der", type: "spki" }).subarray(-32),
  });
  const seed = privateKey.export({ format: "der", type: "pkcs8" }).subarray(-32);
  const ca = await readFile(join(mesh.stateDir, "ca/authority.pem"), "utf8");
  const origins = createOriginRule(["https://shop.example"]);
  if (origins === undefined) throw new Error("no origin");
  const log = pino({ level: "silent" });
  edge = await createEdge({ role: "edge", name: "own", host: "127.0.0.1", port: 0, origins, log });
  edge.provision({
    license: license.license,
    signer: createSigner(signingKey.id, seed),
    url: () => mesh.verdictUrl,
    tls: () => ({ ca, key: keyPem, certificate: certificate.certificatePem }),
  });
  return { license: license.id, certificate: certificate.id, signingKey: signingKey.id };
}

/** What the edge answers a page: the status, and the code of a refusal. */
async function report(): Promise<string> {
  const body = JSON.stringify({
    v: 1,
    ref: randomBytes(16).toString("base64url"),
    mode: "passive",
    env: { languages: ["de"], tz: "Europe/Berlin", offset: -60, platform: "Linux x86_64" },
    timing: { step: 0.1, pings: 0, ms: 1 },
  });
  const headers = { "content-type": "application/json", origin: "https://shop.example" };
  const answer = await fetch(`http://127.0.0.1:${edge?.port}/v1/signals`, { method: "POST", headers, body });
  const { error } = (await answer.json()) as { error?: string };
  return `${answer.status}${error === undefined ? "" : ` ${error}`}`;
}

/** How long it takes until the answer is no longer what it was, and what it is then. */
async function untilRefused(ask: () => Promise<string>): Promise<{ answer: string; tookMs: number }> {
  const begin = performance.now();
  for (;;) {
    const answer = await ask();
    const tookMs = performance.now() - begin;
    if (answer !== "200" || tookMs > 10_000) return { answer, tookMs };
  }
}

test.each([
  ["licence", "403 license_revoked", ({ license }) => owner.edgeCredentials.revokeLicenseKey({ id: license })],
  [
    "client certificate",
    "403 client_cert_revoked",
    ({ certificate }) => owner.edgeCredentials.revokeEdgeCertificate({ id: certificate }),
  ],
  [
    "signing key",
    "401 edge_key_unknown",
    ({ signingKey }) => owner.edgeCredentials.revokeEdgeSigningKey({ id: signingKey }),
  ],
] as const satisfies readonly (readonly [
  string,
  string,
  (kit: Awaited<ReturnType<typeof startEdge>>) => Promise<unknown>,
])[])("an edge whose %s was revoked is refused within a second", async (_name, refusal, revoke) => {
  const kit = await startEdge();
  await expect.poll(report, { timeout: 10_000 }).toBe("200");
  await revoke(kit);
  const { answer, tookMs } = await untilRefused(report);
  expect(answer).toBe(refusal);
  expect(tookMs).toBeLessThan(limitMs);
  expect([await report(), await report()]).toEqual([refusal, refusal]);
});

test("a backend whose partner key was revoked reads nothing from within a second on", async () => {
  const { id, partnerKey } = await owner.edgeCredentials.createPartnerKey({ name: "backend" });
  const backend = createClients({ baseUrl: mesh.publicUrl, credential: apiKey(partnerKey) });
  const sessionRef = randomBytes(16).toString("base64url");
  await backend.verdicts.createVerdictSession({ sessionRef });
  backend.close();
  const read = async (): Promise<string> => {
    const headers = { "x-octet-partner-key": partnerKey };
    const answer = await fetch(`${mesh.publicUrl}/v1/verdict/${sessionRef}`, { headers });
    const { code = "" } = (await answer.json()) as { code?: string };
    return answer.status === 404 ? "200" : `${answer.status} ${code}`;
  };
  expect(await read()).toBe("200");
  await owner.edgeCredentials.revokePartnerKey({ id });
  const { answer, tookMs } = await untilRefused(read);
  expect(answer).toBe("401 CREDENTIAL_REVOKED");
  expect(tookMs).toBeLessThan(limitMs);
});
