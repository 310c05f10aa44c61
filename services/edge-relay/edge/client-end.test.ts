import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { type CidrList, parseCidrList } from "@octomesh/mesh/cidr";
import { createTestAuthority, type TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  ask,
  createTestLog,
  makeKit,
  newRef,
  report,
  reportOf,
  runChannel,
  type TestKit,
} from "../test/edge-fixture.ts";
import { startVerdictServer, type VerdictServer } from "../test/verdict-server.ts";
import { createEdge, type Edge, type EdgeOptions } from "./edge.ts";
import { createOriginRule, type OriginRule } from "./origin-rule.ts";

const origins = createOriginRule(["https://shop.example"]) as OriginRule;
const loopback = parseCidrList("127.0.0.0/8") as CidrList;
let authority: TestAuthority;
let verdict: VerdictServer;
let kit: TestKit;
const opened: Edge[] = [];

beforeAll(async () => {
  authority = await createTestAuthority();
  kit = await makeKit(authority);
  verdict = await startVerdictServer({ authority, keys: new Map([[kit.signingKeyId, kit.signer.publicKey]]) });
});

afterAll(() => verdict.stop());

afterEach(async () => {
  await Promise.all(opened.splice(0).map((edge) => edge.close(500)));
});

async function open(options: Partial<EdgeOptions> = {}): Promise<{ port: number; url: string; logged: string[] }> {
  const { log, logged } = createTestLog();
  const edge = await createEdge({ role: "edge", name: "e", host: "127.0.0.1", port: 0, origins, log, ...options });
  edge.provision(kit.at(() => verdict.url));
  opened.push(edge);
  return { port: edge.port, url: `http://127.0.0.1:${edge.port}`, logged };
}

/** Address and degradation of the last report. */
const seen = () => {
  const bundle = verdict.taken.at(-1)?.bundle;
  return [bundle?.sourceAddress, Degradation[bundle?.connection?.degradation ?? 0]];
};

/** Sends bytes first, then a report over HTTP/1.1; answers the status line, or nothing where the edge hung up. */
async function throughProxy(port: number, header: Buffer | string, ref: string, tls?: string): Promise<string> {
  const raw = connect(port, "127.0.0.1");
  await once(raw, "connect");
  raw.write(header);
  let socket: Socket = raw;
  if (tls !== undefined) {
    const secure = connectTls({ socket: raw, servername: "localhost", ca: tls, ALPNProtocols: ["http/1.1"] });
    await once(secure, "secureConnect");
    socket = secure;
  }
  const body = reportOf(ref);
  socket.write(
    `POST /v1/signals HTTP/1.1\r\nhost: edge\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  let answer = "";
  socket.on("data", (chunk) => {
    answer += String(chunk);
  });
  socket.on("error", () => undefined);
  await new Promise((resolve) => raw.once("close", resolve));
  return answer.split("\r\n")[0] ?? "";
}

/** A PROXY protocol header, version 2, for TCP over IPv4. */
function version2(address: string): Buffer {
  const signature = Buffer.from("0d0a0d0a000d0a515549540a", "hex");
  const addresses = Buffer.from([...address.split(".").map(Number), 127, 0, 0, 1, 0x10, 0, 0x01, 0xbb]);
  return Buffer.concat([signature, Buffer.from([0x21, 0x11, 0, addresses.length]), addresses]);
}

describe("the other end of a connection", () => {
  it("is the socket's own, whatever a client writes into headers", async () => {
    const { key, certificate } = await authority.issue();
    const { port } = await open({ tls: { options: () => ({ key, cert: certificate }) } });
    await report(`https://localhost:${port}`, newRef(), { ca: authority.bundle });
    expect(seen()).toEqual(["127.0.0.1", "UNSPECIFIED"]);
    const headers = { "x-forwarded-for": "198.51.100.9" };
    await report(`https://localhost:${port}`, newRef(), { ca: authority.bundle, headers });
    expect(seen()[0]).toBe("127.0.0.1");
  });

  it("is what the nearest proxy that is not trusted wrote, from the right; and then nothing is timed", async () => {
    const { url } = await open({ trustedProxies: parseCidrList("127.0.0.0/8,10.0.0.0/8") as CidrList });
    const headers = { "x-forwarded-for": "1.2.3.4, 198.51.100.9, 10.1.1.1" };
    await report(url, newRef(), { headers });
    expect(seen()).toEqual(["198.51.100.9", "BEHIND_PROXY"]);
    await report(url, newRef());
    expect(seen()).toEqual(["127.0.0.1", "BEHIND_PROXY"]);
    const channel = await runChannel(`${url.replace("http", "ws")}/v1/ws`, { headers });
    await report(url, newRef(), { headers, more: { channel: channel.hello.channel } });
    expect(verdict.taken.at(-1)?.bundle.latencyChannel).toMatchObject({
      sourceAddress: "198.51.100.9",
      connection: { degradation: Degradation.BEHIND_PROXY },
    });
  });

  it("is what PROXY protocol says, in either version, before plaintext and before TLS", async () => {
    const plain = await open({ trustedProxies: loopback, proxyProtocol: true });
    const text = "PROXY TCP4 198.51.100.7 127.0.0.1 4096 443\r\n";
    expect(await throughProxy(plain.port, text, newRef())).toContain("200");
    expect(seen()).toEqual(["198.51.100.7", "BEHIND_PROXY"]);
    expect(await throughProxy(plain.port, version2("198.51.100.8"), newRef())).toContain("200");
    expect(seen()).toEqual(["198.51.100.8", "BEHIND_PROXY"]);
    const { key, certificate } = await authority.issue();
    const tls = { options: () => ({ key, cert: certificate }) };
    const secure = await open({ trustedProxies: loopback, proxyProtocol: true, tls });
    expect(await throughProxy(secure.port, version2("198.51.100.9"), newRef(), authority.bundle)).toContain("200");
    expect(seen()).toEqual(["198.51.100.9", "BEHIND_PROXY"]);
    expect(verdict.taken.at(-1)?.bundle.connection?.clientHello?.ja4).toMatch(/^t13/);
  });

  it("is nobody without the header that a trusted proxy must send", async () => {
    const { port } = await open({ trustedProxies: loopback, proxyProtocol: true });
    const before = verdict.taken.length;
    expect(await throughProxy(port, "", newRef())).toBe("");
    expect(await throughProxy(port, "PROXY TCP4 nonsense\r\n", newRef())).toBe("");
    expect(verdict.taken.length).toBe(before);
  });

  it("takes no PROXY protocol of whom it does not trust", async () => {
    const { port } = await open({ trustedProxies: parseCidrList("10.0.0.0/8") as CidrList, proxyProtocol: true });
    const before = verdict.taken.length;
    expect(await throughProxy(port, "PROXY TCP4 198.51.100.7 127.0.0.1 4096 443\r\n", newRef())).not.toContain("200");
    expect(verdict.taken.length).toBe(before);
  });

  it("gives a proxy away that nobody named: it is not timed, and the log says what to do, once", async () => {
    const { url, logged } = await open();
    for (let i = 0; i < 2; i += 1) await report(url, newRef(), { headers: { via: "1.1 nginx" } });
    expect(seen()).toEqual(["127.0.0.1", "BEHIND_PROXY"]);
    expect(logged.filter((line) => line.includes("EDGE_TRUSTED_PROXIES"))).toHaveLength(1);
  });

  it("is stood in for by EXIT_IP in what is forwarded", async () => {
    const { url } = await open({ exitIp: "203.0.113.5" });
    const channel = await runChannel(`${url.replace("http", "ws")}/v1/ws`);
    await report(url, newRef(), { more: { channel: channel.hello.channel } });
    expect(seen()[0]).toBe("203.0.113.5");
    expect(verdict.taken.at(-1)?.bundle.latencyChannel?.sourceAddress).toBe("203.0.113.5");
  });
});

it("plaintext off loopback is refused but where it is allowed", async () => {
  await expect(open({ host: "0.0.0.0", hostVariable: "EDGE_HOST" })).rejects.toThrow("EDGE_HOST");
  const { url } = await open({ host: "0.0.0.0", allowPlaintext: true });
  expect((await ask(`${url}/health`)).status).toBe(200);
});
