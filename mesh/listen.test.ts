import { once } from "node:events";
import { get, request as httpRequest, type ServerResponse } from "node:http";
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants,
  type Http2ServerResponse,
} from "node:http2";
import { get as getHttps } from "node:https";
import { connect, type Socket } from "node:net";
import { Duplex } from "node:stream";
import { connect as connectTls, type TLSSocket } from "node:tls";
import fc from "fast-check";
import { pino } from "pino";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { parseCidrList } from "./cidr.ts";
import { ConfigError } from "./config.ts";
import {
  type ConnectionObserver,
  type Listener,
  type ListenOptions,
  listen,
  listenPlain,
  listenTls,
  type ObservedConnection,
  observedOf,
  socketAddressOf,
} from "./listen.ts";
import type { HttpRequest, HttpResponse } from "./service.ts";
import { createTestAuthority } from "./test/certificate-fixture.ts";
import type { IdentityMaterial } from "./tls.ts";

const log = pino({ level: "silent" });
const loopback = parseCidrList("127.0.0.0/8");
const closers: (() => Promise<void> | void)[] = [];
let material: IdentityMaterial;

beforeAll(async () => {
  material = await (await createTestAuthority()).issue();
});

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function opened(work: Promise<Listener>): Promise<Listener> {
  const listener = await work;
  closers.push(() => listener.close(0));
  return listener;
}

function plain(options: Partial<ListenOptions> = {}): Promise<Listener> {
  return opened(listenPlain({ host: "127.0.0.1", port: 0, log, handler: tell, ...options }));
}

function tls(options: Partial<ListenOptions> = {}): Promise<Listener> {
  const { key, certificate } = material;
  return opened(listenTls({ host: "127.0.0.1", port: 0, log, handler: tell, key, certificate, ...options }));
}

/** Tells what the server saw of a request, its body included. */
async function tell(request: HttpRequest, response: HttpResponse): Promise<void> {
  let body = "";
  request.setEncoding("utf8");
  for await (const chunk of request) body += chunk;
  response.end(JSON.stringify({ version: request.httpVersion, body, address: socketAddressOf(request) }));
}

const get11 = "GET / HTTP/1.1\r\nHost: mesh\r\nConnection: close\r\n\r\n";

describe("a plaintext port", () => {
  it("speaks HTTP/2 with prior knowledge, with trailers as gRPC needs them", async () => {
    const listener = await plain({
      handler(request, response) {
        if (!("stream" in response)) throw new Error("not HTTP/2");
        response.writeHead(200, { "content-type": "application/grpc+proto" });
        response.addTrailers({ "grpc-status": "0" });
        request.on("data", (chunk) => response.write(chunk)).on("end", () => response.end());
      },
    });
    const session = http2(listener.port);
    const stream = session.request({ ":method": "POST", ":path": "/a.B/C", "content-type": "application/grpc+proto" });
    const trailers = once(stream, "trailers");
    stream.end(Buffer.from([0, 0, 0, 0, 3, 1, 2, 3]));
    expect(await bytesOf(stream)).toEqual(Buffer.from([0, 0, 0, 0, 3, 1, 2, 3]));
    expect((await trailers)[0]).toMatchObject({ "grpc-status": "0" });
  });

  it("announces the windows and bounds that it was given", async () => {
    const listener = await plain();
    const session = http2(listener.port);
    const [settings] = await once(session, "remoteSettings");
    expect(settings).toMatchObject({
      initialWindowSize: 1024 * 1024,
      maxConcurrentStreams: 256,
      maxHeaderListSize: 32768,
    });
    await answerOf(session.request({ ":path": "/" }));
    expect(session.state.remoteWindowSize).toBe(4 * 1024 * 1024);
  });

  it("speaks HTTP/1.1 on the same port, and keeps the connection for the next request", async () => {
    const listener = await plain();
    expect(await raw(listener.port, [get11])).toMatch(/^HTTP\/1\.1 200 OK.*"version":"1\.1"/s);
    const kept = "GET /1 HTTP/1.1\r\nHost: mesh\r\n\r\n";
    const answers = await raw(listener.port, [kept + kept + get11]);
    expect(answers.match(/HTTP\/1\.1 200 OK/g)).toHaveLength(3);
  });

  it("is not confused by bytes that come one at a time", async () => {
    const listener = await plain();
    expect(await raw(listener.port, get11.split(""))).toMatch(/^HTTP\/1\.1 200 OK/);
    expect(
      await raw(listener.port, [
        "P",
        "OST / HTTP/1.1\r\nHost: a\r\nContent-Le",
        "ngth: 2\r\nConnection: close\r\n\r\nh",
        "i",
      ]),
    ).toMatch(/"body":"hi"/);
    const session = connectHttp2(`http://127.0.0.1:${listener.port}`, {
      createConnection: () => dribbling(listener.port),
    });
    closers.push(() => session.destroy());
    expect(await answerOf(session.request({ ":path": "/" }))).toMatchObject({ version: "2.0" });
  });

  it("answers a request that begins like the HTTP/2 preface but is none", async () => {
    const listener = await plain();
    expect(await raw(listener.port, ["PRI * HTTP/1.1\r\nHost: a\r\n\r\n"])).toMatch(/^HTTP\/1\.1 400/);
  });

  it("answers HTTP/1.0 without Host, and Hosts that are none, with 400 and lives on", async () => {
    const listener = await plain();
    expect(await raw(listener.port, ["GET / HTTP/1.0\r\n\r\n"])).toMatch(/^HTTP\/1\.1 400.*no Host/s);
    expect(await raw(listener.port, ["GET / HTTP/1.1\r\n\r\n"])).toMatch(/^HTTP\/1\.1 400/);
    expect(await raw(listener.port, ["GET / HTTP/1.1\r\nHost: a b/c\r\n\r\n"])).toMatch(/^HTTP\/1\.1 400/);
    expect(await raw(listener.port, ["GET / HTTP/1.1\r\nHost:\r\n\r\n"])).toMatch(/^HTTP\/1\.1 400/);
    expect(await raw(listener.port, ["GET / HTTP/1.0\r\nHost: a\r\n\r\n"])).toMatch(/^HTTP\/1\.1 200/);
  });

  it("survives garbage and half a preface", async () => {
    const listener = await plain();
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 200 }), async (bytes) => {
        await raw(listener.port, [Buffer.from(bytes)], { end: true });
      }),
      { numRuns: 50 },
    );
    await raw(listener.port, ["PRI * HT"], { end: true });
    await raw(listener.port, ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Buffer.alloc(64, 0xff)], { end: true });
    expect(await raw(listener.port, [get11])).toMatch(/^HTTP\/1\.1 200/);
  });

  it("closes a connection that says nothing, or not enough, in time", async () => {
    const listener = await plain({ limits: { headersTimeoutMs: 100 } });
    expect(await raw(listener.port, [])).toBe("");
    expect(await raw(listener.port, ["PRI"])).toBe("");
    expect(await raw(listener.port, ["GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])).toMatch(/^HTTP\/1\.1 408/);
  });

  it("closes a connection whose request's body never ends", async () => {
    const listener = await plain({
      limits: { headersTimeoutMs: 100, requestTimeoutMs: 200 },
      handler: () => undefined,
    });
    expect(await raw(listener.port, ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx"])).toMatch(
      /^HTTP\/1\.1 408/,
    );
  });

  it("refuses headers larger than the bound over both protocols", async () => {
    const listener = await plain();
    const large = "x".repeat(40_000);
    expect(await raw(listener.port, [`GET / HTTP/1.1\r\nHost: a\r\nX-Large: ${large}\r\n\r\n`])).toMatch(
      /^HTTP\/1\.1 431/,
    );
    const session = http2(listener.port);
    const early = session.request({ ":path": "/", "x-large": large });
    expect((await once(early, "response"))[0]).toMatchObject({ ":status": 431 });
    await expect(answerOf(session.request({ ":path": "/", "x-large": large }))).rejects.toThrow();
    expect(await answerOf(http2(listener.port).request({ ":path": "/" }))).toMatchObject({ version: "2.0" });
  });

  it("closes an HTTP/2 connection that is idle, and none on which a stream is open", async () => {
    const open: HttpResponse[] = [];
    const listener = await plain({
      limits: { idleTimeoutMs: 100 },
      handler(request, response) {
        if (request.url === "/stream") {
          open.push(response);
          (response as Http2ServerResponse).write("x");
        } else response.end("{}");
      },
    });
    const watching = http2(listener.port);
    const stream = watching.request({ ":path": "/stream" });
    await once(stream, "data");
    const idle = http2(listener.port);
    await answerOf(idle.request({ ":path": "/" }));
    await once(idle, "close");
    expect(watching.closed).toBe(false);
    const closed = once(watching, "close");
    stream.resume();
    open[0]?.end();
    await closed;
  });

  it("answers 500 where a handler throws or rejects, and lives on", async () => {
    const listener = await plain({
      handler(request) {
        if (request.url === "/throws") throw new Error("secret detail");
        return Promise.reject(new Error("secret detail"));
      },
    });
    for (const path of ["/throws", "/rejects"]) {
      const answer = await raw(listener.port, [`GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`]);
      expect(answer).toMatch(/^HTTP\/1\.1 500/);
      expect(answer).not.toContain("secret");
    }
  });

  it("lives on where HTTP/2 takes neither the answer of a handler nor the 500 in its place", async () => {
    const listener = await plain({
      handler(request, response) {
        if (request.url === "/bad") response.setHeader("upgrade", "websocket");
        response.end("good");
      },
    });
    const session = http2(listener.port);
    const stream = session.request({ ":path": "/bad" });
    stream.on("error", () => undefined);
    stream.resume();
    await once(stream, "close");
    expect(await bytesOf(session.request({ ":path": "/" }))).toEqual(Buffer.from("good"));
  });

  it("lives on when a client breaks off in the middle of a request or an answer", async () => {
    const listener = await plain({
      async handler(request, response) {
        for await (const _ of request) (response as ServerResponse).write("x".repeat(100_000));
        response.end();
      },
    });
    const session = http2(listener.port);
    const stream = session.request({ ":method": "POST", ":path": "/" });
    stream.on("error", () => undefined);
    stream.write("x");
    await once(stream, "response");
    stream.close(constants.NGHTTP2_CANCEL);
    session.destroy();
    const request = httpRequest({ port: listener.port, host: "127.0.0.1", method: "POST" });
    request.on("error", () => undefined);
    request.write("x");
    await once(request, "response");
    request.destroy();
    expect(await raw(listener.port, [get11])).toMatch(/^HTTP\/1\.1 200/);
  });

  it("hands a connection that asks for an upgrade over to who takes it", async () => {
    const listener = await plain({
      upgrade: (_, socket) =>
        socket.end("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhi"),
    });
    const asks = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    expect(await raw(listener.port, [asks])).toMatch(/^HTTP\/1\.1 101.*hi$/s);
  });

  it("speaks HTTP/2 alone where HTTP/1.1 is switched off", async () => {
    const listener = await plain({ http1: false });
    expect(await raw(listener.port, [get11])).toMatch(/^HTTP\/1\.1 505/);
    expect(await answerOf(http2(listener.port).request({ ":path": "/" }))).toMatchObject({ version: "2.0" });
  });

  it("is refused off loopback unless that is said", async () => {
    const refused = listenPlain({ host: "0.0.0.0", port: 0, log, handler: tell });
    await expect(refused).rejects.toThrow(/OCTOMESH_HOST is "0\.0\.0\.0".*OCTOMESH_ALLOW_PLAINTEXT=true/);
    await expect(refused).rejects.toBeInstanceOf(ConfigError);
    const listener = await plain({ host: "0.0.0.0", allowPlaintext: true });
    expect(await raw(listener.port, [get11])).toMatch(/^HTTP\/1\.1 200/);
  });

  it("says which variable to change where its port is in use or its address is not the machine's", async () => {
    const { port } = await plain();
    const again = { log, handler: tell, host: "127.0.0.1", port, portVariable: "OCTOMESH_ROLLOUT_PUBLIC_PORT" };
    await expect(listenPlain(again)).rejects.toThrow(
      new RegExp(`OCTOMESH_ROLLOUT_PUBLIC_PORT is ${port}: port ${port} on 127.0.0.1 is in use`),
    );
    const elsewhere = { ...again, host: "192.0.2.1", port: 0, allowPlaintext: true };
    await expect(listenPlain(elsewhere)).rejects.toThrow(/OCTOMESH_HOST is "192\.0\.2\.1": an address of this machine/);
  });
});

describe("a TLS port", () => {
  it("speaks HTTP/2 and HTTP/1.1 as ALPN says", async () => {
    const listener = await tls();
    const session = connectHttp2(`https://localhost:${listener.port}`, { ca: material.bundle });
    closers.push(() => session.destroy());
    expect(await answerOf(session.request({ ":path": "/" }))).toMatchObject({ version: "2.0", address: "127.0.0.1" });
    const body = await new Promise<string>((resolve, reject) => {
      getHttps({ port: listener.port, host: "localhost", ca: material.bundle, agent: false }, async (response) => {
        let text = "";
        for await (const chunk of response) text += chunk;
        resolve(text);
      }).on("error", reject);
    });
    expect(JSON.parse(body)).toMatchObject({ version: "1.1", address: "127.0.0.1" });
  });

  it("bounds HTTP/1.1 as the plaintext port does", async () => {
    const listener = await tls({ limits: { headersTimeoutMs: 100 } });
    expect(await rawTls(listener.port, "GET / HTTP/1.0\r\n\r\n")).toMatch(/^HTTP\/1\.1 400/);
    expect(await rawTls(listener.port, `GET / HTTP/1.1\r\nHost: a\r\nX-Large: ${"x".repeat(40_000)}\r\n\r\n`)).toMatch(
      /^HTTP\/1\.1 431/,
    );
    expect(await rawTls(listener.port, "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")).toMatch(/^HTTP\/1\.1 408/);
  });

  it("closes a connection that never shakes hands, and lives on", async () => {
    const listener = await tls({ limits: { headersTimeoutMs: 100 } });
    expect(await raw(listener.port, [])).toBe("");
    await raw(listener.port, [get11]);
    expect(await rawTls(listener.port, get11)).toMatch(/^HTTP\/1\.1 200/);
  });

  it("shows a replaced certificate to new connections", async () => {
    const next = await (await createTestAuthority()).issue();
    let current = material;
    const callbacks: (() => void)[] = [];
    const listener = await opened(
      listen({
        host: "127.0.0.1",
        port: 0,
        log,
        handler: tell,
        tls: {
          options: () => ({ key: current.key, cert: current.certificate }),
          onChange(callback) {
            callbacks.push(callback);
            return () => undefined;
          },
        },
      }),
    );
    expect(await rawTls(listener.port, get11, material.bundle)).toMatch(/^HTTP\/1\.1 200/);
    current = next;
    for (const callback of callbacks) callback();
    expect(await rawTls(listener.port, get11, next.bundle)).toMatch(/^HTTP\/1\.1 200/);
    await expect(rawTls(listener.port, get11, material.bundle)).rejects.toThrow();
  });
});

describe("PROXY protocol", () => {
  const text = "PROXY TCP4 203.0.113.7 192.0.2.1 5000 443\r\n";
  const binary = Buffer.concat([
    Buffer.from("0d0a0d0a000d0a515549540a21110010", "hex"),
    Buffer.from([203, 0, 113, 8, 192, 0, 2, 1, 0x13, 0x88, 0x01, 0xbb]),
    Buffer.from([0x04, 0, 1, 0]),
  ]);

  it("of a trusted proxy gives the client's address, in both versions and over both protocols", async () => {
    const listener = await plain({ proxyProtocolFrom: loopback });
    expect(await raw(listener.port, [text + get11])).toMatch(/"address":"203\.0\.113\.7"/);
    expect(await raw(listener.port, [...text.split(""), get11])).toMatch(/"address":"203\.0\.113\.7"/);
    expect(await raw(listener.port, [Buffer.concat([binary, Buffer.from(get11)])])).toMatch(
      /"address":"203\.0\.113\.8"/,
    );
    const session = connectHttp2(`http://127.0.0.1:${listener.port}`, {
      createConnection: () => {
        const socket = connect(listener.port, "127.0.0.1");
        socket.write(binary);
        return socket;
      },
    });
    closers.push(() => session.destroy());
    expect(await answerOf(session.request({ ":path": "/" }))).toEqual({
      version: "2.0",
      body: "",
      address: "203.0.113.8",
    });
  });

  it("of a trusted proxy comes before TLS", async () => {
    const listener = await tls({ proxyProtocolFrom: loopback });
    const behindProxy = (alpn: string[]) => {
      const socket = connect(listener.port, "127.0.0.1");
      socket.write(text);
      return connectTls({ socket, ca: material.bundle, servername: "localhost", ALPNProtocols: alpn });
    };
    const http1 = behindProxy(["http/1.1"]);
    http1.write(get11);
    expect(await textOf(http1)).toMatch(/"address":"203\.0\.113\.7"/);
    const session = connectHttp2(`https://localhost:${listener.port}`, { createConnection: () => behindProxy(["h2"]) });
    closers.push(() => session.destroy());
    expect(await answerOf(session.request({ ":path": "/" }))).toMatchObject({ version: "2.0", address: "203.0.113.7" });
  });

  it("that is missing, broken or too slow closes a trusted proxy's connection", async () => {
    const listener = await plain({ proxyProtocolFrom: loopback, limits: { headersTimeoutMs: 100 } });
    expect(await raw(listener.port, [get11])).toBe("");
    expect(await raw(listener.port, ["PROXY TCP4 nonsense\r\n"])).toBe("");
    expect(await raw(listener.port, ["PROXY TCP4 203.0"])).toBe("");
  });

  it("of anyone else is no address: the socket's own counts", async () => {
    const listener = await plain({ proxyProtocolFrom: parseCidrList("198.51.100.0/24") });
    expect(await raw(listener.port, [text + get11])).toMatch(/^HTTP\/1\.1 400/);
    expect(await raw(listener.port, [get11])).toMatch(/"address":"127\.0\.0\.1"/);
    const unconfigured = await plain();
    expect(await raw(unconfigured.port, [text + get11])).toMatch(/^HTTP\/1\.1 400/);
  });

  it("that says nothing of a client leaves the proxy's own address", async () => {
    const listener = await plain({ proxyProtocolFrom: loopback });
    expect(await raw(listener.port, [`PROXY UNKNOWN\r\n${get11}`])).toMatch(/"address":"127\.0\.0\.1"/);
  });
});

describe("watching connections", () => {
  it("sees accept, ClientHello and handshake of TLS connections, and finds the watcher by each request", async () => {
    const watch = watcher();
    const listener = await tls({ observe: watch.observer, handler: watch.tell });
    expect(watch.servers).toBe(1);
    const session = connectHttp2(`https://localhost:${listener.port}`, { ca: material.bundle });
    closers.push(() => session.destroy());
    await answerOf(session.request({ ":path": "/" }));
    await answerOf(session.request({ ":path": "/" }));
    await rawTls(listener.port, get11);
    expect(watch.requests).toEqual([0, 0, 1]);
    for (const { events, bytes } of watch.connections) {
      expect(events.slice(0, 2)).toEqual(["began", "bytes"]);
      expect(bytes.readUInt8(0)).toBe(22);
      expect(bytes.length).toBe(5 + bytes.readUInt16BE(3));
    }
    expect(watch.connections.map(({ events }) => events[2])).toEqual(["secured h2", "secured http/1.1"]);
    session.destroy();
    await expect.poll(() => watch.connections.map(({ events }) => events.at(-1))).toEqual(["closed", "closed"]);
  });

  it("shows a ClientHello whole that comes in pieces, also behind a PROXY protocol header", async () => {
    const watch = watcher();
    const listener = await tls({ observe: watch.observer, handler: watch.tell, proxyProtocolFrom: loopback });
    for (const size of [1, 3, 100_000]) {
      const socket = tlsInPieces(listener.port, "PROXY TCP4 203.0.113.7 192.0.2.1 5000 443\r\n", size);
      await once(socket, "secureConnect");
      const text = textOf(socket);
      socket.end(get11);
      expect(await text).toMatch(/^HTTP\/1\.1 200.*"address":"203\.0\.113\.7"/s);
    }
    expect(watch.requests).toEqual([0, 1, 2]);
    for (const { events, bytes } of watch.connections) {
      expect(events.slice(0, 3)).toEqual(["began", "bytes", "secured false"]);
      expect(bytes.length).toBeGreaterThanOrEqual(5 + bytes.readUInt16BE(3));
    }
  });

  it("lets what is no TLS be refused as before, and closes what says too little in time", async () => {
    const watch = watcher();
    const listener = await tls({ observe: watch.observer, handler: watch.tell, limits: { headersTimeoutMs: 100 } });
    expect(await raw(listener.port, [])).toBe("");
    await raw(listener.port, [get11]);
    expect(await raw(listener.port, [Buffer.from([22, 3, 1, 2, 0, 1])])).toBe("");
    expect(await raw(listener.port, [Buffer.from([22, 3, 1, 0xff, 0xff])])).toBe("");
    await raw(listener.port, [Buffer.concat([Buffer.from([22, 3, 1, 0xff, 0xff]), Buffer.alloc(40_000)])]);
    expect(await rawTls(listener.port, get11)).toMatch(/^HTTP\/1\.1 200/);
    await expect.poll(() => watch.connections.every(({ events }) => events.at(-1) === "closed")).toBe(true);
    expect(watch.connections.map(({ events }) => events.filter((event) => event !== "closed"))).toEqual([
      [],
      ["began", "bytes"],
      ["began"],
      ["began"],
      ["began", "bytes"],
      ["began", "bytes", "secured http/1.1"],
    ]);
    expect(Math.max(...watch.connections.map(({ bytes }) => bytes.length))).toBe(16 * 1024);
  });

  it("sees the first bytes of plaintext connections of both protocols, and of upgrades", async () => {
    const watch = watcher();
    const listener = await plain({
      observe: watch.observer,
      handler: watch.tell,
      upgrade(request, socket) {
        watch.note(request);
        socket.end("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhi");
      },
    });
    await answerOf(http2(listener.port).request({ ":path": "/" }));
    await raw(listener.port, get11.split(""));
    const asks = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    expect(await raw(listener.port, [asks])).toMatch(/^HTTP\/1\.1 101.*hi$/s);
    expect(watch.requests).toEqual([0, 1, 2]);
    expect(watch.connections.map(({ bytes }) => bytes.toString("latin1", 0, 1))).toEqual(["P", "G", "G"]);
  });

  it("finds the watcher of an upgrade over TLS", async () => {
    const watch = watcher();
    const listener = await tls({
      observe: watch.observer,
      upgrade(request, socket) {
        watch.note(request);
        socket.end("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhi");
      },
    });
    const asks = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    expect(await rawTls(listener.port, asks)).toMatch(/^HTTP\/1\.1 101.*hi$/s);
    expect(watch.requests).toEqual([0]);
  });

  it("leaves alone what the observer does not watch, and listeners without one", async () => {
    for (const observe of [undefined, { accepted: () => undefined }]) {
      const watch = watcher();
      for (const open of [plain, tls]) {
        const listener = await open({ handler: watch.tell, observe });
        const answer = open === tls ? rawTls(listener.port, get11) : raw(listener.port, [get11]);
        expect(await answer).toMatch(/^HTTP\/1\.1 200/);
      }
      expect(watch.requests).toEqual([-1, -1]);
    }
  });

  it("tells a connection from the one before it that had the same addresses and ports", async () => {
    const watch = watcher();
    const listener = await tls({ observe: watch.observer, handler: watch.tell });
    let localPort: number | undefined;
    for (let i = 0; i < 3; i += 1) {
      const socket = connect({ port: listener.port, host: "127.0.0.1", localPort });
      const secure = connectTls({ socket, servername: "localhost", ca: material.bundle });
      await once(secure, "secureConnect");
      localPort = socket.localPort;
      secure.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
      await once(secure, "data");
      // A reset leaves no TIME_WAIT behind, so that the port is free for the next.
      socket.resetAndDestroy();
      await once(socket, "close");
    }
    expect(watch.requests).toEqual([0, 1, 2]);
    await expect.poll(() => watch.connections.every(({ events }) => events.at(-1) === "closed")).toBe(true);
    for (const { events } of watch.connections) expect(events).toEqual(["began", "bytes", "secured false", "closed"]);
  });

  it("ends connections that have not said hello when the listener closes", async () => {
    const watch = watcher();
    const listener = await tls({ observe: watch.observer });
    const silent = connect(listener.port, "127.0.0.1");
    await expect.poll(() => watch.connections.length).toBe(1);
    const ended = once(silent.resume(), "close");
    await listener.close(60_000);
    await ended;
    expect(watch.connections[0]?.events).toEqual(["closed"]);
  });
});

/** Puts down what an observer is told of each connection, and which connection each request is found to be of. */
function watcher() {
  const connections: { watch: ObservedConnection; events: string[]; bytes: Buffer }[] = [];
  const requests: number[] = [];
  const told = { servers: 0 };
  const observer: ConnectionObserver = {
    listening() {
      told.servers += 1;
    },
    accepted(socket) {
      expect(socket.bytesRead).toBe(0);
      const connection = { watch: {} as ObservedConnection, events: [] as string[], bytes: Buffer.alloc(0) };
      connection.watch = {
        began: () => connection.events.push("began"),
        firstBytes(bytes) {
          connection.events.push("bytes");
          connection.bytes = Buffer.from(bytes);
        },
        secured: (socket) => connection.events.push(`secured ${socket.alpnProtocol}`),
        closed: () => connection.events.push("closed"),
      };
      connections.push(connection);
      return connection.watch;
    },
  };
  const note = (request: HttpRequest): void => {
    const observed = observedOf(request);
    requests.push(connections.findIndex(({ watch }) => watch === observed));
  };
  return {
    observer,
    connections,
    requests,
    note,
    get servers() {
      return told.servers;
    },
    tell(request: HttpRequest, response: HttpResponse): Promise<void> {
      note(request);
      return tell(request, response);
    },
  };
}

describe("closing", () => {
  it("lets requests under way finish over both protocols, and takes no new connection", async () => {
    const waiting: HttpResponse[] = [];
    const listener = await plain({ handler: (_, response) => waiting.push(response) });
    const session = http2(listener.port);
    const second = answerOf(session.request({ ":path": "/" }));
    const first = new Promise<string | undefined>((resolve, reject) => {
      get(
        { port: listener.port, host: "127.0.0.1", agent: false, headers: { connection: "keep-alive" } },
        (response) => {
          response.resume().on("end", () => resolve(response.statusCode?.toString()));
        },
      ).on("error", reject);
    });
    const idle = connect(listener.port, "127.0.0.1");
    await once(idle, "connect");
    await expect.poll(() => waiting.length).toBe(2);
    const goaway = once(session, "goaway");
    const idleEnded = once(idle.resume(), "close");
    const closed = listener.close(20_000);
    await goaway;
    await expect(raw(listener.port, [get11])).rejects.toThrow(/ECONNREFUSED/);
    await idleEnded;
    for (const response of waiting) response.end(JSON.stringify("done"));
    expect(await second).toBe("done");
    expect(await first).toBe("200");
    await closed;
    expect(listener.close(0)).toBe(listener.close(0));
  });

  it("cuts what outlives the grace", async () => {
    const waiting: HttpResponse[] = [];
    for (const open of [plain, tls]) {
      const listener = await open({ handler: (_, response) => waiting.push(response) });
      const secure = open === tls;
      const session = connectHttp2(`${secure ? "https" : "http"}://localhost:${listener.port}`, {
        ca: material.bundle,
      });
      session.on("error", () => undefined);
      const cut = answerOf(session.request({ ":path": "/" })).then(
        () => "answered",
        () => "cut",
      );
      const http1 = secure
        ? connectTls({ port: listener.port, host: "localhost", ca: material.bundle })
        : connect(listener.port, "127.0.0.1");
      http1.on("error", () => undefined);
      http1.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
      await expect.poll(() => waiting.length).toBe(2);
      const ended = once(http1.resume(), "close");
      await listener.close(50);
      expect(await cut).toBe("cut");
      await ended;
      waiting.length = 0;
    }
  });

  it("ends idle connections at once", async () => {
    const listener = await plain();
    const session = http2(listener.port);
    await answerOf(session.request({ ":path": "/" }));
    const kept = connect(listener.port, "127.0.0.1");
    kept.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    await once(kept, "data");
    const ended = once(kept.resume(), "close");
    await listener.close(60_000);
    await ended;
  });
});

function http2(port: number): ClientHttp2Session {
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  session.on("error", () => undefined);
  closers.push(() => session.destroy());
  return session;
}

async function bytesOf(stream: ClientHttp2Stream): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  if (stream.rstCode !== 0) throw new Error(`the stream was reset with ${stream.rstCode}`);
  return Buffer.concat(chunks);
}

async function answerOf(stream: ClientHttp2Stream): Promise<unknown> {
  stream.end();
  return JSON.parse((await bytesOf(stream)).toString());
}

/** Sends parts one after another, each in a segment of its own, and reads until the server closes. */
async function raw(port: number, parts: readonly (string | Buffer)[], { end = false } = {}): Promise<string> {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  await once(socket, "connect");
  const text = textOf(socket);
  for (const part of parts) {
    if (socket.destroyed) break;
    await new Promise<void>((resolve) => socket.write(part, () => resolve()));
    await new Promise(setImmediate);
  }
  if (end) socket.end();
  return text;
}

async function textOf(socket: Socket): Promise<string> {
  let text = "";
  socket.setEncoding("utf8");
  socket.on("data", (chunk) => {
    text += chunk;
  });
  await new Promise<void>((resolve, reject) => {
    socket.on("close", () => resolve());
    socket.on("error", (error) => {
      // A server that closes while we still write resets the connection.
      if ("code" in error && (error.code === "ECONNRESET" || error.code === "EPIPE")) resolve();
      else reject(error);
    });
  });
  return text;
}

async function rawTls(port: number, request: string, ca = material.bundle): Promise<string> {
  const socket = connectTls({ port, host: "localhost", ca, ALPNProtocols: ["http/1.1"] });
  await once(socket, "secureConnect");
  const text = textOf(socket);
  socket.write(request);
  return text;
}

/** A connection whose writes leave a few bytes at a time. */
function dribbling(port: number): Socket {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  socket.cork();
  const write = socket._write.bind(socket);
  socket._write = (chunk: Buffer, encoding, done) => {
    const rest = Buffer.from(chunk);
    const next = (offset: number): void => {
      if (offset >= rest.length) done();
      else write(rest.subarray(offset, offset + 5), encoding, () => next(offset + 5));
    };
    next(0);
  };
  socket.uncork();
  return socket;
}

/** A TLS connection whose bytes leave a few at a time, behind a header in plaintext. */
function tlsInPieces(port: number, header: string, size: number): TLSSocket {
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  const pieces = new Duplex({
    read: () => undefined,
    write(chunk: Buffer, _, done) {
      const next = (offset: number): void => {
        if (offset >= chunk.length) done();
        else socket.write(chunk.subarray(offset, offset + size), () => setImmediate(next, offset + size));
      };
      next(0);
    },
    final(done) {
      socket.end();
      done();
    },
  });
  socket.on("data", (chunk) => pieces.push(chunk)).on("end", () => pieces.push(null));
  pieces.write(header);
  return connectTls({ socket: pieces, servername: "localhost", ca: material.bundle });
}
