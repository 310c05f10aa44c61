import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { type ConnectionOptions, connect, type SecureVersion, type TLSSocket } from "node:tls";
import { pino } from "pino";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { EdgeConnection } from "./connection.ts";
import { edgeConnectionOf, edgeOfCertificate, edgeSpiffeIdOf } from "./edge-connection.ts";
import { edgePortTls } from "./edge-port.ts";
import { newId } from "./ids.ts";
import { type Listener, listen, socketOf } from "./listen.ts";
import {
  createTestAuthority,
  createTestIdentity,
  type LeafOptions,
  type TestAuthority,
} from "./test/certificate-fixture.ts";
import type { IdentityMaterial } from "./tls.ts";
import * as x509 from "./x509.ts";

const trustDomain = "octomesh.internal";
const orgId = newId("org");
const licenseId = newId("lic");
const certificateId = newId("ecr");
const spiffeId = edgeSpiffeIdOf(trustDomain, orgId, certificateId);
const log = pino({ level: "silent" });
const good: LeafOptions = {
  uris: [spiffeId],
  subject: `O=${orgId}, OU=${licenseId}, CN=${certificateId}`,
  usages: [x509.ExtendedKeyUsage.clientAuth],
};

let server: TestAuthority;
let edges: TestAuthority;
let successor: TestAuthority;
let serverIdentity: ReturnType<typeof createTestIdentity>;
let listener: Listener;
let authorities: string[];
let now: number;
const changed = new Set<() => void>();
const seen: EdgeConnection[] = [];
const closers: (() => unknown)[] = [];

beforeAll(async () => {
  [server, edges, successor] = await Promise.all([createTestAuthority(), createTestAuthority(), createTestAuthority()]);
});

beforeEach(async () => {
  now = Date.now();
  seen.length = 0;
  authorities = [edges.bundle];
  serverIdentity = createTestIdentity("", await server.issue());
  const trust = {
    authorities: () => authorities,
    onChange(callback: () => void) {
      changed.add(callback);
      return () => changed.delete(callback);
    },
  };
  listener = await listen({
    host: "127.0.0.1",
    port: 0,
    log,
    tls: edgePortTls(serverIdentity, trust),
    handler(request, response) {
      const socket = socketOf(request) as TLSSocket;
      seen.push(edgeConnectionOf(socket, trustDomain, now));
      response.end("hello");
    },
  });
  closers.push(() => listener.close(0));
});

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** One request over HTTP/1.1 and one over HTTP/2, each on a connection of its own; what the server made of each. */
async function show(material?: Pick<IdentityMaterial, "key" | "certificate">, ca = server.bundle): Promise<unknown[]> {
  seen.length = 0;
  const shown = material === undefined ? {} : { key: material.key, cert: material.certificate };
  const socket = await open({ ...shown, ca });
  socket.end("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  socket.resume();
  await once(socket, "close");
  const session = connectHttp2(`https://localhost:${listener.port}`, { ...shown, ca });
  const stream = session.request({ ":path": "/" });
  stream.resume();
  await once(stream, "close");
  session.close();
  await once(session, "close");
  return seen.map(({ certificate }) => certificate?.certificateId);
}

async function open(options: ConnectionOptions): Promise<TLSSocket> {
  const socket = connect({ host: "localhost", port: listener.port, servername: "localhost", ...options });
  await once(socket, "secureConnect");
  return socket;
}

describe("the port that edges reach", () => {
  test("knows an edge by its certificate, and demands none", async () => {
    expect(await show(await edges.issue(good))).toEqual([certificateId, certificateId]);
    expect(seen[0]).toEqual({ certificate: { spiffeId, orgId, licenseId, certificateId } });
    expect(await show()).toEqual([undefined, undefined]);
  });

  const refused: [string, LeafOptions][] = [
    ["for servers only", { ...good, usages: [x509.ExtendedKeyUsage.serverAuth] }],
    ["that has expired", { ...good, notBefore: new Date(0), notAfter: new Date(1_000_000_000_000) }],
    ["of a service of the mesh", { ...good, uris: ["spiffe://octomesh.internal/identity"] }],
    ["of another trust domain", { ...good, uris: [edgeSpiffeIdOf("elsewhere", orgId, certificateId)] }],
    ["with two names", { ...good, uris: [spiffeId, spiffeId] }],
    ["without a name", { ...good, uris: [] }],
    [
      "whose subject names another organisation",
      { ...good, subject: `O=${newId("org")}, OU=${licenseId}, CN=${certificateId}` },
    ],
    [
      "whose subject names another certificate",
      { ...good, subject: `O=${orgId}, OU=${licenseId}, CN=${newId("ecr")}` },
    ],
    ["whose subject names no licence", { ...good, subject: `O=${orgId}, CN=${certificateId}` }],
    [
      "whose subject names two licences",
      { ...good, subject: `O=${orgId}, OU=${licenseId}, OU=${newId("lic")}, CN=${certificateId}` },
    ],
    ["whose subject says more", { ...good, subject: `O=${orgId}, OU=${licenseId}, CN=${certificateId}, L=Berlin` }],
  ];
  test.each(refused)("makes nothing of a certificate %s", async (_, options) => {
    expect(await show(await edges.issue(options))).toEqual([undefined, undefined]);
  });

  test("makes nothing of certificates of other authorities, the mesh's own among them", async () => {
    expect(await show(await server.issue(good))).toEqual([undefined, undefined]);
    expect(await show(await successor.issue(good))).toEqual([undefined, undefined]);
  });

  test("believes nobody before the authorities are known, and whom they vouch for from then on", async () => {
    const edge = await edges.issue(good);
    authorities = [];
    for (const callback of changed) callback();
    expect(await show(edge)).toEqual([undefined, undefined]);
    authorities = [successor.bundle, edges.bundle];
    for (const callback of changed) callback();
    expect(await show(edge)).toEqual([certificateId, certificateId]);
    expect(await show(await successor.issue(good))).toEqual([certificateId, certificateId]);
    authorities = [successor.bundle];
    for (const callback of changed) callback();
    expect(await show(edge)).toEqual([undefined, undefined]);
  });

  test("follows its own certificate", async () => {
    serverIdentity.replace(await successor.issue());
    expect(await show(await edges.issue(good), successor.bundle)).toEqual([certificateId, certificateId]);
  });

  test("forgets an edge whose certificate expires while the connection is open", async () => {
    const edge = await edges.issue(good);
    const session = connectHttp2(`https://localhost:${listener.port}`, {
      key: edge.key,
      cert: edge.certificate,
      ca: server.bundle,
    });
    closers.push(() => session.destroy());
    const answers: unknown[] = [];
    for (const laterMs of [0, 3_590_000, 3_610_000]) {
      now = Date.now() + laterMs;
      const stream = session.request({ ":path": "/" });
      stream.resume();
      await once(stream, "close");
      answers.push(seen.at(-1)?.certificate?.certificateId);
    }
    expect(answers).toEqual([certificateId, certificateId, undefined]);
  });

  test.each<SecureVersion>(["TLSv1.2", "TLSv1.3"])(
    "resumes no session of %s, so that each proves its certificate",
    async (version) => {
      const edge = await edges.issue(good);
      const shown = {
        key: edge.key,
        cert: edge.certificate,
        ca: server.bundle,
        minVersion: version,
        maxVersion: version,
      };
      const sessions: Buffer[] = [];
      const first = await open(shown);
      first.on("session", (session: Buffer) => void sessions.push(session));
      const session = first.getSession();
      if (session !== undefined) sessions.push(session);
      first.end("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
      first.resume();
      await once(first, "close");
      for (const each of sessions) {
        const again = await open({ ca: server.bundle, minVersion: version, maxVersion: version, session: each });
        expect(again.isSessionReused()).toBe(false);
        again.destroy();
      }
      expect(seen.map(({ certificate }) => certificate?.certificateId)).toEqual([certificateId]);
    },
  );

  test("speaks nothing older than TLS 1.2", async () => {
    const socket = connect({
      host: "localhost",
      port: listener.port,
      ca: server.bundle,
      minVersion: "TLSv1",
      maxVersion: "TLSv1.1",
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    const [error] = await once(socket, "error");
    expect(String(error)).toMatch(/protocol|version/i);
  });
});

test("a name that Node had to quote is no edge's", () => {
  const subject = { O: orgId, OU: licenseId, CN: certificateId };
  const names = [`URI:${spiffeId}`, `URI:"${spiffeId}"`, `URI:${spiffeId}, DNS:"a, URI:b"`, "", undefined];
  const found = names.map((subjectaltname) =>
    edgeOfCertificate({ subject, ...(subjectaltname === undefined ? {} : { subjectaltname }) }, trustDomain),
  );
  expect(found.map((each) => each?.certificateId)).toEqual([certificateId, undefined, undefined, undefined, undefined]);
});
