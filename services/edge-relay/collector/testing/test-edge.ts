import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocketServer } from "ws";

/** A report as the edge took it. */
export interface TakenReport {
  readonly contentType: string | undefined;
  readonly cookie: string | undefined;
  readonly bytes: number;
  readonly report: Record<string, unknown>;
}

/** A small edge or landmark that speaks to collectors as the real one does, and tells what it saw. */
export interface TestEdge {
  readonly url: string;
  readonly wsUrl: string;
  readonly reports: TakenReport[];
  /** Digests that channels were opened with. */
  readonly digests: (string | null)[];
  /** Pongs that browsers sent, by channel. */
  readonly pongs: Map<string, number>;
  /** URLs of ping requests. */
  readonly pings: string[];
  /** How many channels are open now. */
  readonly open: number;
  close(): Promise<void>;
}

/** Starts one on a free port of 127.0.0.1. */
export async function startTestEdge(
  options: {
    landmarks?: readonly string[];
    /** Before a ping request is answered. */
    delayMs?: number;
    /** Greets and pings, but never says that it is done. */
    isSilent?: boolean;
    /** In place of `{"ok":true}`. */
    answer?: { status: number; body: string };
    /** What other paths answer. */
    page?: (request: IncomingMessage, response: ServerResponse) => void;
  } = {},
): Promise<TestEdge> {
  const reports: TakenReport[] = [];
  const digests: (string | null)[] = [];
  const pongs = new Map<string, number>();
  const pings: string[] = [];
  const sockets = new WebSocketServer({ noServer: true });
  const server = createServer((request, response) => {
    const path = request.url?.split("?")[0];
    response.setHeader("access-control-allow-origin", "*");
    // Whoever sent credentials would come back with this.
    response.setHeader("set-cookie", "edge=seen");
    if (path === "/v1/ping") {
      pings.push(request.url ?? "");
      response.writeHead(204, { "timing-allow-origin": "*", "cache-control": "no-store" });
      setTimeout(() => response.end(), options.delayMs ?? 0);
    } else if (path === "/v1/signals" && request.method === "POST") {
      const chunks: Buffer[] = [];
      request.on("data", (chunk: Buffer) => chunks.push(chunk));
      request.on("end", () => {
        const body = Buffer.concat(chunks);
        const { "content-type": contentType, cookie } = request.headers;
        reports.push({ contentType, cookie, bytes: body.length, report: JSON.parse(body.toString()) });
        const { status, body: answer } = options.answer ?? { status: 200, body: '{"ok":true}' };
        response.writeHead(status, { "content-type": "application/json" }).end(answer);
      });
    } else if (options.page !== undefined) {
      response.removeHeader("set-cookie");
      options.page(request, response);
    } else response.writeHead(404).end();
  });
  server.on("upgrade", (request, socket, head) => {
    const digest = new URL(request.url ?? "/", "http://edge").searchParams.get("d");
    sockets.handleUpgrade(request, socket, head, (channel) => {
      const id = randomBytes(16).toString("base64url");
      digests.push(digest);
      pongs.set(id, 0);
      channel.on("message", (data) => {
        const start = JSON.parse(String(data)) as { t: string; pings: number };
        if (start.t !== "start") return channel.close(1008);
        for (let sent = 0; sent < start.pings; sent += 1) channel.ping(randomBytes(12));
        channel.on("pong", () => {
          const answered = (pongs.get(id) ?? 0) + 1;
          pongs.set(id, answered);
          if (answered < start.pings || options.isSilent === true) return;
          const m = Buffer.from(`measured ${digest}`).toString("base64url");
          channel.send(JSON.stringify({ t: "done", pings: answered, m }));
          channel.close(1000);
        });
      });
      channel.send(JSON.stringify({ t: "hello", channel: id, landmarks: options.landmarks ?? [], v: 1 }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    wsUrl: `ws://127.0.0.1:${port}/v1/ws`,
    reports,
    digests,
    pongs,
    pings,
    get open() {
      return sockets.clients.size;
    },
    async close() {
      for (const socket of sockets.clients) socket.terminate();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
