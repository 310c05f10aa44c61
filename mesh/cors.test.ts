import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createCors } from "./cors.ts";

const allowed = "https://app.example.com";
const cors = createCors([allowed, "http://localhost:5173"]);
const server = createServer((request, response) => {
  if (!cors.answer(request, response, ["GET", "POST"])) response.end("answered");
});
let url = "";

beforeAll(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

afterAll(() => void server.close());

async function ask(method: string, origin?: string): Promise<{ status: number; headers: Headers; body: string }> {
  const answer = await fetch(url, { method, headers: origin === undefined ? {} : { origin } });
  return { status: answer.status, headers: answer.headers, body: await answer.text() };
}

test("a page of a listed origin may read the answer, and is told which fields of it", async () => {
  const { headers, body } = await ask("GET", allowed);
  expect(body).toBe("answered");
  expect(headers.get("access-control-allow-origin")).toBe(allowed);
  expect(headers.get("access-control-expose-headers")).toContain("grpc-status");
  expect(headers.get("access-control-allow-credentials")).toBeNull();
  expect(headers.get("vary")).toBe("origin");
});

test("its preflight is answered with the verbs of the path", async () => {
  const { status, headers, body } = await ask("OPTIONS", allowed);
  expect([status, body]).toEqual([204, ""]);
  expect(headers.get("access-control-allow-methods")).toBe("GET, POST, OPTIONS");
  expect(headers.get("access-control-allow-headers")).toContain("authorization");
});

test.each([
  "https://app.example.com.evil.example",
  "https://evil-app.example.com",
  "http://app.example.com",
  "https://app.example.com:8443",
  "https://APP.example.com",
  "null",
  "*",
])("%s is another origin, to which nothing is granted", async (origin) => {
  for (const method of ["GET", "OPTIONS"]) {
    const { headers } = await ask(method, origin);
    const granted = [...headers.keys()].filter((name) => name.startsWith("access-control-"));
    expect(granted).toEqual([]);
    expect(headers.get("vary")).toBe("origin");
  }
});

test("OPTIONS without an origin is a question about the path, and answered as that", async () => {
  const { status, headers } = await ask("OPTIONS");
  expect([status, headers.get("allow"), headers.get("access-control-allow-methods")]).toEqual([
    204,
    "GET, POST, OPTIONS",
    null,
  ]);
});
