import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { Platform as DevicePlatform } from "@octomesh/proto/octomesh/device/v1/device_pb";
import type { HttpClient, Platform } from "./platform.ts";

/** Settings of connections that only browsers have. */
export interface BrowserOptions {
  /** Takes the place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
}

/** Browsers, and workers in them: `fetch` and WebCrypto. */
export const browserPlatform: Platform<BrowserOptions> = {
  connect(baseUrl, options) {
    if (options.protocol === "grpc") throw new TypeError("browsers speak connect or grpc-web, not grpc");
    const ended = new AbortController();
    const fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    const shared = {
      baseUrl,
      useBinaryFormat: options.format !== "json",
      fetch: ((input, init) =>
        fetch(input, {
          ...init,
          redirect: "error",
          // Credentials of this SDK travel in headers; cookies of the origin are none of its business.
          credentials: "omit",
          signal: init?.signal ? AbortSignal.any([init.signal, ended.signal]) : ended.signal,
        })) as typeof globalThis.fetch,
    };
    return {
      transport: options.protocol === "grpc-web" ? createGrpcWebTransport(shared) : createConnectTransport(shared),
      close: () => ended.abort(),
    };
  },
  http: browserHttp,
  sha256() {
    // WebCrypto digests only whole inputs: the pieces are kept until the end. Artifacts are in memory here anyway.
    const pieces: Uint8Array[] = [];
    return {
      update: (bytes) => void pieces.push(bytes),
      async digest() {
        const whole = await new Blob(pieces as Uint8Array<ArrayBuffer>[]).arrayBuffer();
        return new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
      },
    };
  },
  async verifyEd25519(publicKey, message, signature) {
    if (publicKey.length !== 32 || signature.length !== 64) return false;
    try {
      const key = await crypto.subtle.importKey("raw", copyOf(publicKey), "Ed25519", false, ["verify"]);
      return await crypto.subtle.verify("Ed25519", key, copyOf(signature), copyOf(message));
    } catch {
      return false;
    }
  },
  abortController: () => new AbortController(),
  devicePlatform: DevicePlatform.BROWSER,
  osVersion: "",
  maxArtifactBytes: 256 * 1024 ** 2,
};

/** Makes GET requests with `fetch`: no cookies, no cache, no redirects. */
export function browserHttp(options: BrowserOptions = {}): HttpClient {
  const fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
  return async ({ url, headers, signal }) => {
    const response = await fetch(url, {
      headers: { ...headers },
      signal,
      redirect: "error",
      credentials: "omit",
      cache: "no-store",
    });
    return { status: response.status, headers: response.headers, body: piecesOf(response) };
  };
}

async function* piecesOf(response: Response): AsyncIterable<Uint8Array> {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function copyOf(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(bytes);
}
