import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { request as httpsRequest } from "node:https";
import { connect } from "node:net";
import { Duplex } from "node:stream";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { create } from "@bufbuild/protobuf";
import { type Listener, listenPlain, listenTls } from "@octomesh/mesh/listen";
import type { HttpRequest } from "@octomesh/mesh/service";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import type { IdentityMaterial } from "@octomesh/mesh/tls";
import {
  type ConnectionTiming,
  ConnectionTimingSchema,
  ConnectionTiming_Degradation as Degradation,
} from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { pino } from "pino";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import { type ConnectionSignals, createConnectionSignals } from "./connection-signals.ts";
import { type Libc, openLibc } from "./libc.ts";

const log = pino({ level: "silent" });
const closers: (() => Promise<void> | void)[] = [];
let material: IdentityMaterial;

beforeAll(async () => {
  material = await (await createTestAuthority()).issue();
});

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** A listener that puts down the timing of each request's connection. */
async function open(kind: "tls" | "plain", signals: ConnectionSignals) {
  const timings: ConnectionTiming[] = [];
  const seen: HttpRequest[] = [];
  const note = (request: HttpRequest): void => {
    seen.push(request);
    timings.push(create(ConnectionTimingSchema, signals.timingOf(request)));
  };
  const sockets = new WebSocketServer({ noServer: true });
  const { key, certificate } = material;
  const options = {
    host: "127.0.0.1",
    port: 0,
    log,
    observe: signals,
    handler: (request: HttpRequest, response: { end(text: string): unknown }) => {
      note(request);
      response.end("{}");
    },
    upgrade: ((request, socket, head) => {
      note(request);
      if ("stream" in request) return;
      sockets.handleUpgrade(request, socket, head, (webSocket) => {
        webSocket.on("message", (data) => {
          note(request);
          webSocket.send(data);
        });
      });
    }) satisfies Parameters<typeof listenPlain>[0]["upgrade"],
  };
  const listener: Listener = await (kind === "tls"
    ? listenTls({ ...options, key, certificate })
    : listenPlain(options));
  closers.push(() => listener.close(0));
  return { port: listener.port, timings, seen };
}

// What the kernel of another system does not tell is tested by "goes on without" below.
describe.skipIf(process.platform !== "linux")("the signals of a connection", () => {
  it("of HTTP/2 over TLS are whole", async () => {
    const { port, timings } = await open("tls", createConnectionSignals({ log }));
    const session = connectHttp2(`https://localhost:${port}`, { ca: material.bundle });
    closers.push(() => session.destroy());
    for (let i = 0; i < 2; i += 1) {
      const stream = session.request({ ":path": "/" });
      await once(stream.resume(), "close");
    }
    expect(timings).toHaveLength(2);
    for (const timing of timings) {
      expectKernel(timing);
      expect(timing.protocol).toBe("h2");
      expect(timing.helloDelayUs).toBeGreaterThan(0n);
      expect(timing.tlsHandshakeUs).toBeGreaterThan(0n);
      expect(timing.clientHello?.ja4).toMatch(/^t13d\d{4}h2_[0-9a-f]{12}_[0-9a-f]{12}$/);
    }
    expect(timings[0]?.clientHello).toEqual(timings[1]?.clientHello);
  });

  it("of HTTP/1.1 over TLS are whole, and tell connections apart", async () => {
    const { port, timings } = await open("tls", createConnectionSignals({ log }));
    await get(port, { ALPNProtocols: ["http/1.1"] });
    await get(port, { ALPNProtocols: ["http/1.1"], ciphers: "TLS_AES_128_GCM_SHA256", minVersion: "TLSv1.3" });
    for (const timing of timings) {
      expectKernel(timing);
      expect(timing.protocol).toBe("http/1.1");
    }
    expect(timings[0]?.clientHello?.ja4).toMatch(/^t13d\d{4}h1_/);
    expect(timings[1]?.clientHello?.ja4).toMatch(/^t13d\d{4}h1_/);
    expect(timings[0]?.clientHello?.ja4).not.toBe(timings[1]?.clientHello?.ja4);
  });

  it("of a WebSocket are whole before and after its upgrade", async () => {
    for (const kind of ["tls", "plain"] as const) {
      const { port, timings } = await open(kind, createConnectionSignals({ log }));
      const webSocket = new WebSocket(`${kind === "tls" ? "wss" : "ws"}://localhost:${port}/`, {
        ca: material.bundle,
        family: 4,
      });
      closers.push(() => webSocket.terminate());
      await once(webSocket, "open");
      webSocket.send("hello");
      const [data] = await once(webSocket, "message");
      expect(String(data)).toBe("hello");
      expect(timings).toHaveLength(2);
      for (const timing of timings) {
        expectKernel(timing);
        expect(timing.protocol).toBe("http/1.1");
        expect(timing.clientHello === undefined).toBe(kind === "plain");
      }
    }
  });

  it("of a ClientHello in pieces are whole", async () => {
    const { port, timings } = await open("tls", createConnectionSignals({ log }));
    const secure = dribble(port);
    await once(secure, "secureConnect");
    secure.end("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    await once(secure.resume(), "close");
    expectKernel(timings[0]);
    expect(timings[0]?.clientHello?.ja4).toMatch(/^t13d/);
  });

  it("in plaintext have no handshake, over both protocols", async () => {
    const { port, timings } = await open("plain", createConnectionSignals({ log }));
    const session = connectHttp2(`http://127.0.0.1:${port}`);
    closers.push(() => session.destroy());
    await once(session.request({ ":path": "/" }).resume(), "close");
    const socket = connect(port, "127.0.0.1");
    socket.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    await once(socket.resume(), "close");
    expect(timings.map((timing) => timing.protocol)).toEqual(["h2", "http/1.1"]);
    for (const timing of timings) {
      expectKernel(timing);
      expect(timing).toMatchObject({ helloDelayUs: 0n, tlsHandshakeUs: 0n });
      expect(timing.clientHello).toBeUndefined();
    }
  });

  it("of a closed connection are those of its beginning", async () => {
    const signals = createConnectionSignals({ log });
    const { port, seen } = await open("tls", signals);
    await get(port, {});
    const [request] = seen;
    await expect.poll(() => request?.socket?.destroyed ?? true).toBe(true);
    const timing = create(ConnectionTimingSchema, signals.timingOf(request!));
    expect(timing).toMatchObject({ minRttUs: 0n, rttUs: 0n, mss: 0 });
    expect(timing.clientHello).toBeDefined();
  });

  it("go without the kernel where it refuses or is another system's, and say so", async () => {
    const real = openLibc().libc!;
    const refused: Libc = { ...real, getsockopt: () => -1, errno: () => 1 };
    const missing = () => {
      throw new Error("Cannot find the native module");
    };
    for (const [libc, degradation] of [
      [{ libc: refused }, Degradation.NO_PERMISSION],
      [{ libc: { ...refused, errno: () => 38 } }, Degradation.UNAVAILABLE],
      [openLibc("darwin"), Degradation.NOT_LINUX],
      [openLibc("linux", missing), Degradation.UNAVAILABLE],
    ] as const) {
      const lines: string[] = [];
      const told = pino({ level: "info" }, { write: (line) => lines.push(line) });
      const signals = createConnectionSignals({ log: told, libc });
      expect(signals.degradation).toBe(degradation);
      const { port, timings } = await open("tls", signals);
      await get(port, {});
      expect(timings[0]).toMatchObject({ degradation, minRttUs: 0n, mss: 0 });
      expect(timings[0]?.syn).toBeUndefined();
      expect(timings[0]?.clientHello).toBeDefined();
      expect(lines).toHaveLength(1);
      expect(lines[0]).toContain(Degradation[degradation]);
    }
  });
});

function expectKernel(timing: ConnectionTiming | undefined): void {
  expect(timing?.degradation).toBe(Degradation.UNSPECIFIED);
  expect(timing?.minRttUs).toBeGreaterThan(0n);
  // Loopback: bounds that only a wrong field or unit breaks.
  expect(timing?.minRttUs).toBeLessThan(1_000_000n);
  expect(timing?.acceptRttUs).toBeGreaterThan(0n);
  expect(timing?.mss).toBeGreaterThan(500);
  expect(timing?.pathMtu).toBeGreaterThan(1_000);
  expect(timing?.syn).toMatchObject({ ipVersion: 4, ttl: 64, dontFragment: true });
  expect(timing?.syn?.mss).toBeGreaterThan(500);
  expect(timing?.syn?.window).toBeGreaterThan(0);
  expect(timing?.syn?.options).toMatch(/^mss,/);
}

async function get(port: number, options: object): Promise<void> {
  const request = httpsRequest({
    host: "127.0.0.1",
    servername: "localhost",
    port,
    ca: material.bundle,
    agent: false,
    ...options,
  });
  request.end();
  const [response] = await once(request, "response");
  await once(response.resume(), "close");
}

/** A TLS client of whose bytes seven leave at a time. */
function dribble(port: number): TLSSocket {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  const pieces = new Duplex({
    read: () => undefined,
    write(chunk: Buffer, _, done) {
      const next = (offset: number): void => {
        if (offset >= chunk.length) done();
        else socket.write(chunk.subarray(offset, offset + 7), () => setImmediate(next, offset + 7));
      };
      next(0);
    },
    final(done) {
      socket.end();
      done();
    },
  });
  socket.on("data", (chunk) => pieces.push(chunk)).on("end", () => pieces.push(null));
  return connectTls({ socket: pieces, servername: "localhost", ca: material.bundle });
}
