import { existsSync } from "node:fs";
import { create } from "@bufbuild/protobuf";
import { listenTls } from "@octomesh/mesh/listen";
import type { HttpRequest } from "@octomesh/mesh/service";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { type ConnectionTiming, ConnectionTimingSchema } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import { pino } from "pino";
import { chromium } from "playwright-core";
import { describe, expect, it } from "vitest";
import { WebSocketServer } from "ws";
import { createConnectionSignals } from "./connection-signals.ts";

// A machine without the browser skips this: what needs none of it is in connection-signals.test.ts.
const executablePath = [
  process.env.CHROMIUM_PATH ?? "",
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
].find((path) => path !== "" && existsSync(path));

describe.skipIf(executablePath === undefined || process.platform !== "linux")("the signals of Chromium", () => {
  it("are whole over HTTP/2 and over a WebSocket, which keeps working", async () => {
    const { key, certificate } = await (await createTestAuthority()).issue();
    const log = pino({ level: "silent" });
    const signals = createConnectionSignals({ log });
    const timings = new Map<string, ConnectionTiming>();
    const note = (request: HttpRequest): void => {
      timings.set(request.url ?? "", create(ConnectionTimingSchema, signals.timingOf(request)));
    };
    const sockets = new WebSocketServer({ noServer: true });
    const listener = await listenTls({
      host: "127.0.0.1",
      port: 0,
      log,
      key,
      certificate,
      observe: signals,
      handler(request, response) {
        note(request);
        response.setHeader("content-type", "text/html");
        response.end("<!doctype html><title>page</title>");
      },
      upgrade(request, socket, head) {
        if ("stream" in request) return;
        sockets.handleUpgrade(request, socket, head, (webSocket) => {
          webSocket.on("pong", () => {
            note(request);
            webSocket.send("answered");
          });
          webSocket.ping();
        });
      },
    });
    const browser = await chromium.launch({
      executablePath,
      args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
    });
    try {
      const page = await browser.newPage({ ignoreHTTPSErrors: true });
      await page.goto(`https://localhost:${listener.port}/page`);
      const answer = await page.evaluate(
        (url) =>
          new Promise<string>((resolve, reject) => {
            const webSocket = new WebSocket(url);
            webSocket.onmessage = ({ data }) => resolve(String(data));
            webSocket.onerror = () => reject(new Error("the WebSocket failed"));
          }),
        `wss://localhost:${listener.port}/socket`,
      );
      expect(answer).toBe("answered");
    } finally {
      await browser.close();
      await listener.close(0);
    }
    const [overHttp2, overWebSocket] = [timings.get("/page"), timings.get("/socket")];
    expect(overHttp2?.protocol).toBe("h2");
    expect(overHttp2?.clientHello?.ja4).toMatch(/^t13d\d{4}h2_[0-9a-f]{12}_[0-9a-f]{12}$/);
    expect(overWebSocket?.protocol).toBe("http/1.1");
    expect(overWebSocket?.clientHello?.ja4).toMatch(/^t13d\d{4}h1_[0-9a-f]{12}_[0-9a-f]{12}$/);
    for (const timing of [overHttp2, overWebSocket]) {
      expect(timing?.minRttUs).toBeGreaterThan(0n);
      expect(timing?.acceptRttUs).toBeGreaterThan(0n);
      expect(timing?.helloDelayUs).toBeGreaterThan(0n);
      expect(timing?.tlsHandshakeUs).toBeGreaterThan(0n);
      expect(timing?.syn).toMatchObject({ ipVersion: 4, options: "mss,sok,ts,nop,ws" });
    }
  });
});
