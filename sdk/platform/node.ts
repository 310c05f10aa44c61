import { createHash, createPublicKey, verify } from "node:crypto";
import { setMaxListeners } from "node:events";
import { Agent as HttpAgent, type IncomingMessage, request as requestHttp } from "node:http";
import { Agent as HttpsAgent, request as requestHttps } from "node:https";
import { connect as connectTcp, isIP } from "node:net";
import { release } from "node:os";
import type { Duplex } from "node:stream";
import { connect as connectTls } from "node:tls";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { Platform as DevicePlatform } from "@octomesh/proto/octomesh/device/v1/device_pb";
import type { HttpClient, Platform } from "./platform.ts";

/** Settings of connections that only Node has. */
export interface NodeOptions {
  /**
   * Version of HTTP. Default `1.1`, which every proxy passes on, streams of the Connect protocol included; `2` shares
   * one connection among all calls and is what gRPC always uses.
   */
  httpVersion?: "1.1" | "2";
  /** The local address that connections are made from. The system chooses if it is not given. */
  localAddress?: string;
  /** Certificates, PEM, of the authorities to trust in place of the system's. */
  ca?: string | Buffer | (string | Buffer)[];
}

const idleMs = 30_000;
const maxMessageBytes = 16 * 1024 * 1024;

/** Node, over its own HTTP, cryptography and operating system modules. */
export const nodePlatform: Platform<NodeOptions> = {
  connect(baseUrl, options) {
    const useBinaryFormat = options.format !== "json";
    const shared = { baseUrl, useBinaryFormat, readMaxBytes: maxMessageBytes, writeMaxBytes: maxMessageBytes };
    if (options.httpVersion !== "2" && options.protocol !== "grpc") {
      const agent = createAgent(baseUrl, options);
      const http1 = { ...shared, httpVersion: "1.1" as const, nodeOptions: { agent } };
      return {
        transport: options.protocol === "grpc-web" ? createGrpcWebTransport(http1) : createConnectTransport(http1),
        close: () => agent.destroy(),
      };
    }
    if (options.httpVersion === "1.1") throw new TypeError("gRPC needs HTTP/2: httpVersion must be 2 or be left out");
    const sessionManager = new Http2SessionManager(
      new URL(baseUrl).origin,
      { idleConnectionTimeoutMs: 5 * 60_000, pingIntervalMs: 60_000 },
      { createConnection: (authority) => connectHttp2(authority, options) },
    );
    const http2 = { ...shared, httpVersion: "2" as const, sessionManager };
    return {
      transport:
        options.protocol === "grpc"
          ? createGrpcTransport(http2)
          : options.protocol === "grpc-web"
            ? createGrpcWebTransport(http2)
            : createConnectTransport(http2),
      close: () => sessionManager.abort(new ConnectError("the client was closed", Code.Canceled)),
    };
  },
  http: nodeHttp,
  sha256() {
    const hash = createHash("sha256");
    return {
      update: (bytes) => void hash.update(bytes),
      digest: async () => new Uint8Array(hash.digest()),
    };
  },
  async verifyEd25519(publicKey, message, signature) {
    if (publicKey.length !== 32 || signature.length !== 64) return false;
    try {
      // SubjectPublicKeyInfo of an Ed25519 key: a fixed prefix before the 32 bytes (RFC 8410 section 4).
      const prefix = Buffer.from("302a300506032b6570032100", "hex");
      const key = createPublicKey({ key: Buffer.concat([prefix, publicKey]), format: "der", type: "spki" });
      return verify(null, message, key, signature);
    } catch {
      return false;
    }
  },
  abortController() {
    const controller = new AbortController();
    setMaxListeners(0, controller.signal);
    return controller;
  },
  devicePlatform:
    process.platform === "darwin"
      ? DevicePlatform.MACOS
      : process.platform === "win32"
        ? DevicePlatform.WINDOWS
        : process.platform === "android"
          ? DevicePlatform.ANDROID
          : DevicePlatform.LINUX,
  osVersion: release().slice(0, 64),
  maxArtifactBytes: 2 * 1024 ** 3,
};

/**
 * Makes GET requests with Node's own HTTP/1.1 client, from `localAddress` if given. A connection that stays silent for
 * 30 seconds is given up. Redirects are answers, not followed.
 */
export function nodeHttp(options: NodeOptions = {}): HttpClient {
  return async ({ url, headers, signal }) => {
    const target = new URL(url);
    const request = target.protocol === "https:" ? requestHttps : requestHttp;
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const sent = request(target, {
        headers: { ...headers },
        localAddress: options.localAddress,
        signal,
        ...(target.protocol === "https:" ? { ca: options.ca } : {}),
      });
      sent.setTimeout(idleMs, () => sent.destroy(new Error(`no data for ${idleMs / 1000} s`)));
      sent.on("error", reject);
      sent.on("response", resolve);
      sent.end();
    });
    const received = new Headers();
    for (const [name, value] of Object.entries(response.headers)) {
      if (value !== undefined) received.set(name, Array.isArray(value) ? value.join(", ") : value);
    }
    return { status: response.statusCode ?? 0, headers: received, body: response };
  };
}

function connectHttp2(authority: URL, options: NodeOptions): Duplex {
  const host = authority.hostname.replace(/^\[|\]$/g, "");
  const { localAddress, ca } = options;
  if (authority.protocol !== "https:") {
    return connectTcp({ host, port: Number(authority.port || 80), localAddress });
  }
  const servername = isIP(host) === 0 ? host : undefined;
  return connectTls({
    host,
    port: Number(authority.port || 443),
    ALPNProtocols: ["h2"],
    ca,
    servername,
    ...(localAddress === undefined ? {} : { localAddress }),
  });
}

function createAgent(baseUrl: string, options: NodeOptions): HttpAgent | HttpsAgent {
  const shared = { keepAlive: true, maxFreeSockets: 8, localAddress: options.localAddress };
  if (new URL(baseUrl).protocol === "https:") return new HttpsAgent({ ...shared, ca: options.ca });
  return new HttpAgent(shared);
}
