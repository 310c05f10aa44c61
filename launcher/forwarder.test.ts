import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import { Readable } from "node:stream";
import { type Listener, listenPlain, listenTls } from "@octomesh/mesh/listen";
import type { HttpRequest, HttpResponse } from "@octomesh/mesh/service";
import type { ServiceName } from "@octomesh/mesh/service-name";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { pino } from "pino";
import { afterEach, expect, test } from "vitest";
import { createForwarder } from "./forwarder.ts";

const log = pino({ level: "silent" });
const closers: (() => unknown)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function open(handler: (request: HttpRequest, response: HttpResponse) => void): Promise<Listener> {
  const listener = await listenPlain({ host: "127.0.0.1", port: 0, log, handler });
  closers.push(() => listener.close(0));
  return listener;
}

/** A service that answers as the test says, and the forwarder before it. */
async function start(handler: (request: HttpRequest, response: HttpResponse) => void): Promise<string> {
  const service = await open(handler);
  const owners: ServiceName[] = [];
  const forwarder = createForwarder({
    urlOf: (name) => {
      owners.push(name);
      return `http://127.0.0.1:${service.port}`;
    },
    log,
  });
  const front = await open(forwarder.handle);
  closers.push(() => forwarder.close());
  return `http://127.0.0.1:${front.port}`;
}

const modelsPath = "/api/v1/models";
const rpcPath = "/octomesh.model.v1.ModelService/GetModel";

function answerJson(response: HttpResponse, value: unknown): void {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(value));
}

test("passes on verb, path, query and body, and says where the caller came from", async () => {
  const url = await start(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { method, url: path, headers } = request;
    answerJson(response, { method, path, body: Buffer.concat(chunks).toString(), from: headers["x-forwarded-for"] });
  });
  const answer = await fetch(`${url}${modelsPath}?page_size=2`, { method: "POST", body: "hello" });
  expect(await answer.json()).toEqual({
    method: "POST",
    path: `${modelsPath}?page_size=2`,
    body: "hello",
    from: "127.0.0.1",
  });
});

test("believes no client about where it comes from, nor passes on what belongs to the connection", async () => {
  const url = await start((request, response) => answerJson(response, request.headers));
  const seen = await new Promise<Record<string, string>>((resolve, reject) => {
    const headers = {
      "x-forwarded-for": "203.0.113.9",
      "x-real-ip": "203.0.113.9",
      forwarded: "for=203.0.113.9",
      connection: "close, x-private",
      "x-private": "of this connection",
      te: "gzip",
      "keep-alive": "timeout=5",
      "x-public": "passed on",
    };
    http
      .get(`${url}${modelsPath}`, { headers }, async (response) => {
        const chunks: Buffer[] = [];
        for await (const chunk of response) chunks.push(chunk as Buffer);
        resolve(JSON.parse(Buffer.concat(chunks).toString()));
      })
      .on("error", reject);
  });
  expect(seen["x-forwarded-for"]).toBe("127.0.0.1");
  expect(seen.te).toBe("trailers");
  expect(seen["x-public"]).toBe("passed on");
  for (const name of ["x-real-ip", "forwarded", "x-private", "keep-alive", "connection"]) {
    expect(seen).not.toHaveProperty(name);
  }
});

test("carries the trailers of gRPC, over HTTP/2 and HTTP/1.1", async () => {
  const url = await start((_request, response) => {
    response.setHeader("content-type", "application/grpc");
    const body = response as NodeJS.WritableStream;
    body.write("message");
    response.addTrailers({ "grpc-status": "5", "grpc-message": "nowhere" });
    body.end();
  });
  const session = http2.connect(url);
  closers.push(() => session.destroy());
  const stream = session.request({ ":path": rpcPath, ":method": "POST", te: "trailers" });
  stream.end("request");
  stream.resume();
  const [trailers] = (await once(stream, "trailers")) as [http2.IncomingHttpHeaders];
  expect(trailers).toMatchObject({ "grpc-status": "5", "grpc-message": "nowhere" });
  const overHttp1 = await new Promise<http.IncomingMessage>((resolve, reject) => {
    http
      .request(`${url}${rpcPath}`, { method: "POST", headers: { te: "trailers" } }, (response) => {
        response.resume();
        response.on("end", () => resolve(response));
      })
      .on("error", reject)
      .end();
  });
  expect(overHttp1.trailers).toMatchObject({ "grpc-status": "5" });
});

test("does not let a part pass for the whole where the service breaks off", async () => {
  const url = await start((_request, response) => {
    (response as NodeJS.WritableStream).write("first ");
    setImmediate(() => (response as http2.Http2ServerResponse).stream.close(http2.constants.NGHTTP2_CANCEL));
  });
  const answer = await fetch(`${url}${modelsPath}`);
  await expect(answer.text()).rejects.toThrow();
  const session = http2.connect(url);
  closers.push(() => session.destroy());
  const stream = session.request({ ":path": modelsPath });
  stream.on("error", () => undefined);
  stream.resume();
  await once(stream, "close");
  expect(stream.rstCode).not.toBe(http2.constants.NGHTTP2_NO_ERROR);
});

test("answers 503 where the service gives no answer, or is not there", async () => {
  const url = await start((_request, response) =>
    (response as http2.Http2ServerResponse).stream.close(http2.constants.NGHTTP2_CANCEL),
  );
  expect((await fetch(`${url}${modelsPath}`)).status).toBe(503);
  const forwarder = createForwarder({ urlOf: () => "http://127.0.0.1:9", log });
  const front = await open(forwarder.handle);
  closers.push(() => forwarder.close());
  const answer = await fetch(`http://127.0.0.1:${front.port}${modelsPath}`);
  expect([answer.status, answer.headers.get("retry-after"), await answer.text()]).toEqual([
    503,
    "1",
    "rollout is not there\n",
  ]);
});

test("tells the service that a caller has gone, in the middle of its upload or of its answer", async () => {
  const gone: string[] = [];
  const url = await start((request, response) => {
    request.resume();
    response.on("close", () => gone.push(request.method ?? ""));
    if (request.method === "GET") (response as NodeJS.WritableStream).write("first ");
  });
  const upload = http.request(`${url}${modelsPath}`, { method: "POST", headers: { "content-length": "1000000" } });
  upload.on("error", () => undefined);
  upload.write("a part", () => setImmediate(() => upload.destroy()));
  await expect.poll(() => gone).toEqual(["POST"]);
  const stop = new AbortController();
  const answer = await fetch(`${url}${modelsPath}`, { signal: stop.signal });
  await answer.body?.getReader().read();
  stop.abort();
  await expect.poll(() => gone).toEqual(["POST", "GET"]);
});

test("more streams than one connection holds keep nobody waiting", async () => {
  const url = await start((_request, response) => {
    (response as NodeJS.WritableStream).write("open");
  });
  const sessions = [http2.connect(url), http2.connect(url)];
  for (const session of sessions) closers.push(() => session.destroy());
  const streams = Array.from({ length: 300 }, (_, i) => {
    const stream = sessions[i % 2]?.request({ ":path": modelsPath });
    if (stream === undefined) throw new Error("no session");
    stream.on("error", () => undefined);
    return once(stream, "response");
  });
  expect(await Promise.all(streams)).toHaveLength(300);
});

test("holds a fast service back while a slow caller reads", async () => {
  let written = 0;
  const chunk = Buffer.alloc(256 * 1024);
  const url = await start((_request, response) => {
    async function* chunks() {
      for (let i = 0; i < 400; i += 1) {
        written += chunk.length;
        yield chunk;
      }
    }
    Readable.from(chunks()).pipe(response as NodeJS.WritableStream);
  });
  const response = await new Promise<http.IncomingMessage>((resolve) => http.get(`${url}${modelsPath}`, resolve));
  response.pause();
  let before = -1;
  await expect
    .poll(
      () => {
        const settled = written === before;
        before = written;
        return settled && written > 0;
      },
      { interval: 200 },
    )
    .toBe(true);
  expect(written).toBeLessThan(60 * 1024 * 1024);
  let read = 0;
  for await (const part of response) read += (part as Buffer).length;
  expect(read).toBe(400 * chunk.length);
});

test("answers what no service owns itself", async () => {
  const url = await start((_request, response) => response.end("never"));
  expect((await fetch(`${url}/nowhere`)).status).toBe(404);
  expect(await (await fetch(`${url}/healthz`)).text()).toBe("ok\n");
  const hidden = await fetch(`${url}/octomesh.rollout.v1.AssignmentService/ResolveDesiredStates`, { method: "POST" });
  expect(hidden.status).toBe(404);
});

test("reaches a service over TLS by its authority and by no other, and leaves licences behind", async () => {
  const authority = await createTestAuthority();
  const foreign = await createTestAuthority();
  const { key, certificate } = await authority.issue();
  const handler = (request: HttpRequest, response: HttpResponse): void => answerJson(response, request.headers);
  const service = await listenTls({ host: "127.0.0.1", port: 0, log, key, certificate, handler });
  closers.push(() => service.close(0));
  const statusBy = async (...authorities: string[]): Promise<[number, boolean]> => {
    const forwarder = createForwarder({ urlOf: () => `https://127.0.0.1:${service.port}`, authorities, log });
    closers.push(() => forwarder.close());
    const front = await open(forwarder.handle);
    const headers = { "x-octet-license": "octet_live_x", "x-public": "passed on" };
    const answer = await fetch(`http://127.0.0.1:${front.port}${modelsPath}`, { headers });
    const text = await answer.text();
    return [answer.status, text.includes("passed on") && !text.includes("octet_live_x")];
  };
  expect(await statusBy(authority.bundle)).toEqual([200, true]);
  expect(await statusBy(foreign.bundle)).toEqual([503, false]);
  expect(await statusBy()).toEqual([503, false]);
});
