import type { Transport } from "@connectrpc/connect";
import type { Platform as DevicePlatform } from "@octomesh/proto/octomesh/device/v1/device_pb";

/** How the mesh is spoken to. */
export interface ProtocolOptions {
  /** The protocol. Default `connect`; `grpc` needs HTTP/2 with trailers, which browsers do not offer. */
  protocol?: "connect" | "grpc" | "grpc-web";
  /** How messages are written. Default `binary`; `json` is readable on the wire and slower. */
  format?: "binary" | "json";
}

/** A connection to the mesh. */
export interface Connection {
  /** Carries calls. */
  transport: Transport;
  /** Drops idle connections and ends the calls that are under way. */
  close(): void;
}

/** A GET request for bytes. */
export interface HttpRequest {
  /** Where to. */
  url: string;
  /** Headers, names in lower case. */
  headers: Readonly<Record<string, string>>;
  /** Ends the request. */
  signal: AbortSignal;
}

/** The answer to a GET request, its body still to be read. */
export interface HttpResponse {
  /** The status code. */
  status: number;
  /** The headers. */
  headers: Headers;
  /** The body. Throws when the connection is lost before its end; may be left half-read. */
  body: AsyncIterable<Uint8Array>;
}

/** Makes plain GET requests: for artifacts, which are no rpc. Follows no redirects, so no credential goes astray. */
export type HttpClient = (request: HttpRequest) => Promise<HttpResponse>;

/** Computes a SHA-256 digest piece by piece. */
export interface Sha256 {
  /** Takes the next bytes. They must not change afterwards. */
  update(bytes: Uint8Array): void;
  /** The digest of everything taken, 32 bytes. Called once. */
  digest(): Promise<Uint8Array>;
}

/** What differs between Node and browsers. `Options` are the settings that only this platform has. */
export interface Platform<Options> {
  /** Connects to the mesh. */
  connect(baseUrl: string, options: ProtocolOptions & Options): Connection;
  /** Makes plain GET requests. */
  http(options: Options): HttpClient;
  /** Begins a SHA-256 digest. */
  sha256(): Sha256;
  /** Verifies an Ed25519 signature (RFC 8032) by a raw 32-byte public key. Never throws for bad input: answers false. */
  verifyEd25519(publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array): Promise<boolean>;
  /** Makes an abort controller that as many may listen to as like. */
  abortController(): AbortController;
  /** The platform that devices register as. */
  devicePlatform: DevicePlatform;
  /** Version of the operating system or browser, at most 64 characters. */
  osVersion: string;
  /** Largest artifact that is downloaded where the caller says nothing, in bytes. */
  maxArtifactBytes: number;
}
