import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { type ClientHttp2Session, connect } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls, type TLSSocket } from "node:tls";
import fc from "fast-check";
import { pino } from "pino";
import { afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { ConfigError } from "./config.ts";
import { type Listener, listenMutualTls, socketOf } from "./listen.ts";
import { serviceNames } from "./service-name.ts";
import {
  createTestAuthority,
  createTestIdentity,
  type LeafOptions,
  type TestAuthority,
} from "./test/certificate-fixture.ts";
import {
  clientTlsOptions,
  type IdentityMaterial,
  type MeshIdentity,
  openDevelopmentAuthority,
  openIdentityFiles,
  peerOf,
  serviceOfSpiffeId,
  spiffeIdOf,
  spiffeIdOfCertificate,
} from "./tls.ts";
import * as x509 from "./x509.ts";

const trustDomain = "octomesh.internal";
const rolloutId = spiffeIdOf(trustDomain, "rollout");
const log = pino({ level: "silent" });

let folder: string;
const closers: (() => Promise<void> | void)[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "octomesh-tls-"));
});

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  rmSync(folder, { recursive: true, force: true });
  vi.useRealTimers();
});

describe("a SPIFFE ID", () => {
  it("names each service of the trust domain and is read back", () => {
    for (const name of serviceNames) {
      expect(serviceOfSpiffeId(trustDomain, spiffeIdOf(trustDomain, name))).toBe(name);
    }
  });

  it.each([
    "spiffe://octomesh.internal/edge/org_a/edge_b",
    "spiffe://octomesh.internal/edge/rollout/rollout",
    "spiffe://octomesh.internal/rollout/",
    "spiffe://octomesh.internal/rollout/extra",
    "spiffe://octomesh.internal//rollout",
    "spiffe://octomesh.internal/Rollout",
    "spiffe://octomesh.internal/",
    "spiffe://octomesh.internal",
    "spiffe://octomesh.internal.example/rollout",
    "spiffe://other/rollout",
    "https://octomesh.internal/rollout",
    "spiffe://octomesh.internal/__proto__",
    "",
  ])("is not a service's when it is %s", (id) => {
    expect(serviceOfSpiffeId(trustDomain, id)).toBeUndefined();
  });

  it("of any other text names nobody", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const service = serviceOfSpiffeId(trustDomain, text);
        expect(service === undefined || text === spiffeIdOf(trustDomain, service)).toBe(true);
      }),
    );
  });

  it("is read from a certificate only where there is exactly one URI and no quote", () => {
    expect(spiffeIdOfCertificate(`DNS:localhost, URI:${rolloutId}, IP Address:127.0.0.1`)).toBe(rolloutId);
    expect(spiffeIdOfCertificate(`URI:${rolloutId}, URI:spiffe://other/x`)).toBeUndefined();
    expect(spiffeIdOfCertificate(`URI:${rolloutId}, DNS:"a, URI:b"`)).toBeUndefined();
    expect(spiffeIdOfCertificate("DNS:localhost")).toBeUndefined();
    expect(spiffeIdOfCertificate("URI:https://octomesh.internal/rollout")).toBeUndefined();
    expect(spiffeIdOfCertificate(undefined)).toBeUndefined();
  });
});

describe("a mesh port", () => {
  let authority: TestAuthority;
  let foreign: TestAuthority;
  let serverIdentity: ReturnType<typeof createTestIdentity>;
  let listener: Listener;
  const peers: unknown[] = [];

  beforeAll(async () => {
    authority = await createTestAuthority();
    foreign = await createTestAuthority();
  });

  beforeEach(async () => {
    peers.length = 0;
    serverIdentity = createTestIdentity(rolloutId, await authority.issue());
    listener = await listenMutualTls({
      host: "127.0.0.1",
      port: 0,
      identity: serverIdentity,
      log,
      handler(request, response) {
        const socket = socketOf(request) as TLSSocket;
        const peer = peerOf(socket, trustDomain);
        expect(peerOf(socket, trustDomain)).toBe(peer);
        peers.push(peer);
        response.end("hello");
      },
    });
    closers.push(() => listener.close(0));
  });

  async function identityOf(options: LeafOptions, from = authority): Promise<MeshIdentity> {
    const material = await from.issue(options);
    return createTestIdentity("", { ...material, bundle: authority.bundle });
  }

  it("knows a service by its certificate", async () => {
    const identity = await identityOf({ uris: ["spiffe://octomesh.internal/telemetry"] });
    expect(await call(listener.port, identity)).toBe("hello");
    expect(peers).toEqual([{ service: "telemetry", spiffeId: "spiffe://octomesh.internal/telemetry" }]);
  });

  it("refuses a client without a certificate", async () => {
    const socket = connectTls({ host: "127.0.0.1", port: listener.port, ca: authority.bundle, ALPNProtocols: ["h2"] });
    const [error] = await Promise.race([
      once(socket, "error"),
      once(socket, "close").then(() => [new Error("closed")]),
    ]);
    expect(error).toBeInstanceOf(Error);
    expect(peers).toEqual([]);
  });

  it.each<[string, () => Promise<MeshIdentity>]>([
    ["of a foreign authority", () => identityOf({}, foreign)],
    ["that has expired", () => identityOf({ notBefore: hoursFromNow(-3), notAfter: hoursFromNow(-1) })],
    ["that is not good yet", () => identityOf({ notBefore: hoursFromNow(1), notAfter: hoursFromNow(2) })],
    ["that may only serve", () => identityOf({ usages: [x509.ExtendedKeyUsage.serverAuth] })],
  ])("refuses a certificate %s", async (_, make) => {
    await expect(call(listener.port, await make())).rejects.toThrow();
    expect(peers).toEqual([]);
  });

  it.each<[string, LeafOptions]>([
    ["of an edge", { uris: ["spiffe://octomesh.internal/edge/org_a/edge_b"] }],
    ["of another trust domain", { uris: ["spiffe://example.org/rollout"] }],
    ["with two SPIFFE IDs", { uris: [rolloutId, "spiffe://octomesh.internal/identity"] }],
    ["with none", { uris: [] }],
  ])("holds a client with a certificate %s for nobody", async (_, options) => {
    await call(listener.port, await identityOf(options));
    expect(peers).toEqual([undefined]);
  });

  it.each<[string, LeafOptions]>([
    ["of another service", { uris: ["spiffe://octomesh.internal/identity"] }],
    ["that begins alike", { uris: [`${rolloutId}-2`] }],
    ["with two SPIFFE IDs", { uris: [rolloutId, "spiffe://octomesh.internal/identity"] }],
    ["that may only call", { usages: [x509.ExtendedKeyUsage.clientAuth] }],
    ["that has expired", { notBefore: hoursFromNow(-3), notAfter: hoursFromNow(-1) }],
  ])("is refused by a client when it shows a certificate %s, whatever its host name", async (_, options) => {
    serverIdentity.replace(await authority.issue(options));
    await expect(call(listener.port, await identityOf({}))).rejects.toThrow();
    expect(peers).toEqual([]);
  });

  it("shows a replaced certificate to new connections and keeps the old ones", async () => {
    const identity = await identityOf({});
    const before = await open(listener.port, identity);
    const first = (before.socket as TLSSocket).getPeerCertificate().fingerprint256;
    serverIdentity.replace(await authority.issue());
    const after = await open(listener.port, identity);
    expect((after.socket as TLSSocket).getPeerCertificate().fingerprint256).not.toBe(first);
    expect(await request(before)).toBe("hello");
    expect(await request(after)).toBe("hello");
    before.close();
    after.close();
  });

  it("stops believing an authority that left the bundle", async () => {
    const identity = await identityOf({});
    expect(await call(listener.port, identity)).toBe("hello");
    serverIdentity.replace({ ...serverIdentity.current(), bundle: foreign.bundle });
    await expect(call(listener.port, identity)).rejects.toThrow();
  });

  it("speaks nothing below TLS 1.3", async () => {
    const { key, certificate, bundle } = await authority.issue();
    const socket = connectTls({
      host: "127.0.0.1",
      port: listener.port,
      key,
      cert: certificate,
      ca: bundle,
      maxVersion: "TLSv1.2",
      ALPNProtocols: ["h2"],
    });
    const [error] = await once(socket, "error");
    expect(error).toBeInstanceOf(Error);
  });
});

describe("the development authority", () => {
  it("is made once, is its owner's alone, and issues certificates that the mesh takes", async () => {
    const first = await openDevelopmentAuthority(folder, trustDomain);
    const second = await openDevelopmentAuthority(folder, trustDomain);
    expect(second.bundle).toBe(first.bundle);
    expect(statSync(join(folder, "ca")).mode & 0o777).toBe(0o700);
    expect(readdirSync(join(folder, "ca"))).toEqual(["authority.json", "authority.pem"]);
    expect(readFileSync(join(folder, "ca", "authority.pem"), "utf8")).toBe(first.bundle);
    expect(statSync(join(folder, "ca", "authority.json")).mode & 0o777).toBe(0o600);

    const identity = await second.issue("rollout");
    closers.push(() => identity.close());
    const leaf = new X509Certificate(identity.current().certificate);
    expect(leaf.ca).toBe(false);
    expect(leaf.verify(new X509Certificate(first.bundle).publicKey)).toBe(true);
    expect(Date.parse(leaf.validTo) - Date.now()).toBeLessThanOrEqual(24 * 3_600_000);
    const listener = await listenMutualTls({
      host: "127.0.0.1",
      port: 0,
      identity,
      log,
      handler: (request, response) => response.end(peerOf(socketOf(request) as TLSSocket, trustDomain)?.service ?? ""),
    });
    closers.push(() => listener.close(0));
    const client = await first.issue("telemetry");
    closers.push(() => client.close());
    expect(await call(listener.port, client)).toBe("telemetry");
  });

  it("is one, however many processes make it at once", async () => {
    const bundles = await Promise.all(Array.from({ length: 8 }, () => openDevelopmentAuthority(folder, trustDomain)));
    expect(new Set(bundles.map(({ bundle }) => bundle)).size).toBe(1);
  });

  it("renews a certificate at half its life", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    let now = Date.now();
    const authority = await openDevelopmentAuthority(folder, trustDomain, { now: () => now });
    const identity = await authority.issue("rollout");
    closers.push(() => identity.close());
    const { certificate } = identity.current();
    now += 11 * 3_600_000;
    vi.advanceTimersByTime(60_000);
    expect(identity.current().certificate).toBe(certificate);
    const changed = new Promise<void>((resolve) => {
      identity.onChange(resolve);
    });
    now += 2 * 3_600_000;
    vi.advanceTimersByTime(60_000);
    await changed;
    const renewed = new X509Certificate(identity.current().certificate);
    expect(Date.parse(renewed.validTo)).toBeGreaterThan(now + 23 * 3_600_000);
  });

  it("says what is wrong with its folder", async () => {
    writeFileSync(join(folder, "ca"), "in the way");
    await expect(openDevelopmentAuthority(folder, trustDomain)).rejects.toThrow(
      /OCTOMESH_STATE_DIR: .* cannot be written/,
    );
  });

  it("refuses another trust domain than its own, and one that is none", async () => {
    await openDevelopmentAuthority(folder, trustDomain);
    await expect(openDevelopmentAuthority(folder, "example.org")).rejects.toThrow(/OCTOMESH_TRUST_DOMAIN/);
    await expect(openDevelopmentAuthority(folder, "a/b")).rejects.toThrow(/OCTOMESH_TRUST_DOMAIN/);
  });

  it("refuses a file that is damaged or has expired", async () => {
    await openDevelopmentAuthority(folder, trustDomain);
    const later = { now: () => Date.now() + 3650 * 86_400_000 };
    await expect(openDevelopmentAuthority(folder, trustDomain, later)).rejects.toThrow(/expires/);
    writeFileSync(join(folder, "ca", "authority.json"), "{");
    await expect(openDevelopmentAuthority(folder, trustDomain)).rejects.toThrow(ConfigError);
  });
});

describe("an identity from files", () => {
  let authority: TestAuthority;

  beforeAll(async () => {
    authority = await createTestAuthority();
  });

  function write(material: Partial<IdentityMaterial>): {
    keyFile: string;
    certificateFile: string;
    bundleFile: string;
  } {
    const files = {
      keyFile: join(folder, "key.pem"),
      certificateFile: join(folder, "cert.pem"),
      bundleFile: join(folder, "bundle.pem"),
    };
    if (material.key !== undefined) writeFileSync(files.keyFile, material.key);
    if (material.certificate !== undefined) writeFileSync(files.certificateFile, material.certificate);
    if (material.bundle !== undefined) writeFileSync(files.bundleFile, material.bundle);
    return files;
  }

  it("follows its files, and passes over a pair that does not belong together", async () => {
    const first = await authority.issue();
    const files = write(first);
    const identity = openIdentityFiles(files, trustDomain, "rollout");
    closers.push(() => identity.close());
    expect(identity.current()).toEqual(first);
    const next = await authority.issue();
    const seen: IdentityMaterial[] = [];
    const changed = new Promise<void>((resolve) => {
      identity.onChange(() => {
        seen.push(identity.current());
        resolve();
      });
    });
    write({ key: next.key });
    write({ certificate: next.certificate });
    await changed;
    expect(seen).toEqual([next]);
  });

  it("is refused, with the file's name, where the files are not what they should be", async () => {
    const good = await authority.issue();
    const other = await authority.issue({ uris: ["spiffe://octomesh.internal/identity"] });
    const expired = await authority.issue({ notBefore: hoursFromNow(-2), notAfter: hoursFromNow(-1) });
    const open = (material: Partial<IdentityMaterial>) => () =>
      openIdentityFiles(write(material), trustDomain, "rollout");
    expect(existsSync(join(folder, "key.pem"))).toBe(false);
    expect(open({})).toThrow(/key\.pem cannot be read \(ENOENT\)/);
    expect(open(other)).toThrow(/cert\.pem: it is the certificate of spiffe:\/\/octomesh\.internal\/identity/);
    expect(open({ ...good, key: other.key })).toThrow(/cert\.pem: it is not the certificate of the key/);
    expect(open(expired)).toThrow(/cert\.pem: it expired/);
    expect(open({ ...good, key: "x" })).toThrow(/key\.pem: a private key in PEM is expected/);
    expect(open({ ...good, bundle: "x" })).toThrow(/bundle\.pem: /);
    mkdirSync(join(folder, "sub"));
    expect(() => openIdentityFiles({ ...write(good), keyFile: join(folder, "sub") }, trustDomain, "rollout")).toThrow(
      /EISDIR/,
    );
  });
});

function hoursFromNow(hours: number): Date {
  return new Date(Date.now() + hours * 3_600_000);
}

async function open(port: number, identity: MeshIdentity): Promise<ClientHttp2Session> {
  const session = connect(`https://127.0.0.1:${port}`, clientTlsOptions(identity, rolloutId));
  closers.push(() => session.destroy());
  await new Promise<void>((resolve, reject) => {
    session.once("connect", () => resolve());
    session.once("error", reject);
    session.once("close", () => reject(new Error("closed")));
  });
  session.on("error", () => undefined);
  return session;
}

async function request(session: ClientHttp2Session): Promise<string> {
  const stream = session.request({ ":path": "/" });
  stream.setEncoding("utf8");
  let text = "";
  for await (const chunk of stream) text += chunk;
  if (stream.rstCode !== 0 || text === "") throw new Error(`the stream ended with ${stream.rstCode}`);
  return text;
}

/** One request over a connection of its own. In TLS 1.3 a refused client learns it after its own handshake. */
async function call(port: number, identity: MeshIdentity): Promise<string> {
  const session = await open(port, identity);
  try {
    return await request(session);
  } finally {
    session.close();
  }
}
