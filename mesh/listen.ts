import { createServer as createHttpServer, type Server as HttpServer } from "node:http";
import {
  createServer as createHttp2Server,
  createSecureServer,
  type Http2SecureServer,
  type Http2Server,
  type SecureServerOptions,
  type ServerHttp2Session,
  type ServerOptions,
} from "node:http2";
import type { AddressInfo, Server, Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import type { Logger } from "pino";
import type { CidrList } from "./cidr.ts";
import { isLoopbackHost, normalizeAddress } from "./cidr.ts";
import { ConfigError } from "./config.ts";
import { readProxyHeader } from "./proxy-protocol.ts";
import type { HttpRequest, HttpResponse } from "./service.ts";
import { type MeshIdentity, serverTlsOptions } from "./tls.ts";

/** Bounds of a listener. All have a default that holds on an open network. */
export interface ListenLimits {
  /** How long a connection may take to say what it speaks, to shake hands, and to send a request's header. 10 s. */
  readonly headersTimeoutMs: number;
  /** How long an HTTP/1.1 request may take to arrive whole, its body included; 0 for no bound. 300 s. */
  readonly requestTimeoutMs: number;
  /** How long a connection may stay open without a request. 75 s, longer than load balancers keep theirs. */
  readonly idleTimeoutMs: number;
  /** Bytes of a request's header at most. 32 KiB. */
  readonly maxHeaderBytes: number;
  /** Streams of an HTTP/2 connection that may be open at a time. 256. */
  readonly maxConcurrentStreams: number;
  /** Memory that one HTTP/2 connection may hold, in megabytes. 32. */
  readonly maxSessionMemoryMb: number;
  /** Flow-control window of an HTTP/2 stream, in bytes: how much a sender may have under way. 1 MiB. */
  readonly streamWindowBytes: number;
  /** Flow-control window of a whole HTTP/2 connection, in bytes. 4 MiB. */
  readonly connectionWindowBytes: number;
  /** Connections that are open at a time; more are closed as they come. 20,000. */
  readonly maxConnections: number;
}

/** The bounds of a listener that sets none. */
export const defaultListenLimits: ListenLimits = {
  headersTimeoutMs: 10_000,
  requestTimeoutMs: 300_000,
  idleTimeoutMs: 75_000,
  maxHeaderBytes: 32 * 1024,
  maxConcurrentStreams: 256,
  maxSessionMemoryMb: 32,
  streamWindowBytes: 1024 * 1024,
  connectionWindowBytes: 4 * 1024 * 1024,
  maxConnections: 20_000,
};

/** What a TLS listener serves with, and how it learns that this was replaced. */
export interface ListenTls {
  /** Key, certificate and demands, as they stand now. */
  options(): SecureServerOptions;
  /** Calls back when `options` gives something new, which new connections then get. Returns the way to stop it. */
  onChange?(callback: () => void): () => void;
}

/**
 * Watches one accepted connection. Its functions are called on the connection's way and must neither throw nor keep the
 * bytes that they are shown, which the connection goes on to read.
 */
export interface ObservedConnection {
  /** The first byte of the connection's own arrived, behind a PROXY protocol header if there was one. */
  began?(): void;
  /**
   * The first bytes of the connection's own, at most 16 KiB, before anything else has read them: on a TLS port at least
   * the whole record of the ClientHello, in plaintext as much as says what the connection speaks.
   */
  firstBytes(bytes: Buffer): void;
  /** The TLS handshake is over. Not called in plaintext. */
  secured(socket: TLSSocket): void;
  /** The connection is closed. Called once. */
  closed(): void;
}

/** Watches the connections of a listener. Its functions must not throw. */
export interface ConnectionObserver {
  /** The port is open; few connections may have been accepted by the kernel before this. */
  listening?(server: Server): void;
  /** A connection was accepted and nothing was read from it yet. `undefined` leaves it unwatched. */
  accepted(socket: Socket): ObservedConnection | undefined;
}

/** What a listener is made of. */
export interface ListenOptions {
  /** Address or name to listen on, such as `127.0.0.1`. */
  readonly host: string;
  /** Port; 0 lets the system choose. */
  readonly port: number;
  /** With it, TLS with ALPN; without it, plaintext, which is refused off loopback unless `allowPlaintext`. */
  readonly tls?: ListenTls;
  readonly allowPlaintext?: boolean;
  /** Whether HTTP/1.1 is spoken beside HTTP/2. True by default; a mesh port needs none. */
  readonly http1?: boolean;
  /** Demands a PROXY protocol header of connections from these networks. Others are taken as they are. */
  readonly proxyProtocolFrom?: CidrList;
  /** Answers a request. What it throws is logged and answered with 500. */
  handler(request: HttpRequest, response: HttpResponse): unknown;
  /** Takes over an HTTP/1.1 connection that asks for an upgrade; without it the request is answered as any other. */
  upgrade?(request: HttpRequest, socket: Duplex, head: Buffer): void;
  /** Watches connections; see `observedOf`. Without it a listener looks at TLS connections no sooner than TLS does. */
  readonly observe?: ConnectionObserver;
  readonly limits?: Partial<ListenLimits>;
  /** The variable of the port, which an error tells the reader to change. */
  readonly portVariable?: string;
  /** The variable of the host, `OCTOMESH_HOST` by default. */
  readonly hostVariable?: string;
  readonly log: Logger;
}

/** An open listener. */
export interface Listener {
  readonly host: string;
  /** The port, also where the system chose it. */
  readonly port: number;
  /**
   * Stops accepting, tells HTTP/2 clients to go away, lets requests under way finish for up to `graceMs`, then cuts
   * what is left and logs how much that was. Resolves when every connection is closed. Idempotent.
   */
  close(graceMs: number): Promise<void>;
}

/**
 * Opens one port that speaks HTTP/2 and HTTP/1.1: over TLS by ALPN, in plaintext by looking at a connection's first
 * bytes (HTTP/2 with prior knowledge, RFC 9113 section 3.3). Throws a ConfigError for a port in use, an address that
 * the machine does not have, and plaintext off loopback.
 */
export async function listen(options: ListenOptions): Promise<Listener> {
  refuseExposedPlaintext(options);
  const limits = { ...defaultListenLimits, ...options.limits };
  const connections = createConnections(limits, options.log);
  const answer = createAnswer(options, limits, connections);
  const server =
    options.tls === undefined
      ? createPlaintextServer(options, limits, connections, answer)
      : createTlsServer(options, options.tls, limits, connections, answer);
  server.maxConnections = limits.maxConnections;
  await bind(server, options);
  options.observe?.listening?.(server);
  const { port } = server.address() as AddressInfo;
  let closing: Promise<void> | undefined;
  return {
    host: options.host,
    port,
    close(graceMs) {
      closing ??= closeServer(server, connections, graceMs);
      return closing;
    },
  };
}

/** Opens a plaintext port: HTTP/2 with prior knowledge and HTTP/1.1. */
export function listenPlain(options: Omit<ListenOptions, "tls">): Promise<Listener> {
  return listen(options);
}

/** Opens a TLS port that asks no certificate of clients: HTTP/2 and HTTP/1.1 by ALPN, TLS 1.2 and 1.3. */
export function listenTls(
  options: Omit<ListenOptions, "tls"> & { readonly key: string; readonly certificate: string },
): Promise<Listener> {
  const { key, certificate, ...rest } = options;
  return listen({ ...rest, tls: { options: () => ({ key, cert: certificate }) } });
}

/** Opens a port of the mesh: HTTP/2 over TLS 1.3, for clients with a certificate from the bundle; follows the identity. */
export function listenMutualTls(
  options: Omit<ListenOptions, "tls" | "http1"> & { readonly identity: MeshIdentity },
): Promise<Listener> {
  const { identity, ...rest } = options;
  const tls: ListenTls = {
    options: () => serverTlsOptions(identity),
    onChange: (callback) => identity.onChange(callback),
  };
  return listen({ ...rest, tls, http1: false });
}

type Answer = (request: HttpRequest, response: HttpResponse) => void;

function refuseExposedPlaintext(options: ListenOptions): void {
  if (options.tls !== undefined || options.allowPlaintext === true || isLoopbackHost(options.host)) return;
  throw new ConfigError([
    `${hostVariableOf(options)} is ${JSON.stringify(options.host)}: a loopback address is expected where there is no TLS; set OCTOMESH_ALLOW_PLAINTEXT=true only where something in front ends TLS`,
  ]);
}

/** Every request passes here first: what no handler must see is answered, what a handler throws is caught. */
function createAnswer(options: ListenOptions, limits: ListenLimits, connections: Connections): Answer {
  const { handler, log } = options;
  return (request, response) => {
    // An aborted HTTP/2 stream emits its error on the request, which would end the process if nobody listened.
    request.on("error", (error) => log.debug({ err: error }, "request broke off"));
    response.on("error", (error) => log.debug({ err: error }, "response broke off"));
    connections.begin(request, response);
    if (headerBytesOf(request) > limits.maxHeaderBytes) {
      refuse(response, request, 431, "Request Header Fields Too Large\n");
      return;
    }
    if (!hasAuthority(request)) {
      refuse(response, request, 400, "Bad Request: the request has no Host\n");
      return;
    }
    const failed = (error: unknown): void => {
      log.error({ err: error }, "handler failed");
      try {
        if (response.headersSent) response.destroy();
        else refuse(response, request, 500, "Internal Server Error\n");
      } catch (refusal) {
        // A field that HTTP/2 does not take may stand in the answer still: nobody else would catch what comes of it.
        log.debug({ err: refusal }, "there is no answer to give");
        response.destroy();
      }
    };
    try {
      Promise.resolve(handler(request, response)).catch(failed);
    } catch (error) {
      failed(error);
    }
  };
}

/**
 * Bytes of a header as RFC 9113 section 6.5.2 counts them. Node applies the bound that it announces only once the client
 * has acknowledged it, which a client may put off.
 */
function headerBytesOf(request: HttpRequest): number {
  if (request.httpVersionMajor === 1) return 0;
  let bytes = 0;
  for (const text of request.rawHeaders) bytes += text.length + 16;
  return bytes;
}

/** HTTP/1.0 may leave Host out, and HTTP/2 its `:authority`; what builds a URL of the request then throws. */
function hasAuthority(request: HttpRequest): boolean {
  const authority = request.headers[":authority"] ?? request.headers.host;
  return typeof authority === "string" && /^[^\s/?#@\\]{1,259}$/.test(authority);
}

function refuse(response: HttpResponse, request: HttpRequest, status: number, text: string): void {
  response.setHeader("content-type", "text/plain; charset=utf-8");
  if (request.httpVersionMajor === 1) response.setHeader("connection", "close");
  response.statusCode = status;
  response.end(text);
}

function http2Options(limits: ListenLimits): ServerOptions {
  return {
    settings: {
      maxConcurrentStreams: limits.maxConcurrentStreams,
      initialWindowSize: limits.streamWindowBytes,
      maxHeaderListSize: limits.maxHeaderBytes,
      enablePush: false,
    },
    maxSessionMemory: limits.maxSessionMemoryMb,
    maxSendHeaderBlockLength: limits.maxHeaderBytes,
    maxSessionInvalidFrames: 100,
    maxSessionRejectedStreams: 100,
    maxHeaderListPairs: 128,
  };
}

function createPlaintextServer(
  options: ListenOptions,
  limits: ListenLimits,
  connections: Connections,
  answer: Answer,
): Server {
  // The HTTP/1.1 server owns the port, so that its checks for slow requests run; HTTP/2 connections are handed over.
  const http1 = createHttpServer({ connectionsCheckingInterval: checkingIntervalOf(limits) }, answer);
  const http2 = createHttp2Server(http2Options(limits), answer);
  const handOver = followSessions(http2);
  http2.on("session", (session) => connections.addSession(session));
  if (options.upgrade !== undefined) http1.on("upgrade", options.upgrade);
  applyHttp1Limits(http1, limits);
  const serveHttp1 = takeConnectionListener(http1);
  http1.on("connection", (socket: Socket) => {
    connections.addSocket(socket);
    observe(socket, options);
    sniff(socket, options, limits, (protocol, address) => {
      if (connections.isDraining()) socket.destroy();
      else if (protocol === "h2") {
        connections.noteAddress(socket, address);
        handOver(socket, () => http2.emit("connection", socket));
      } else if (options.http1 === false) {
        socket.end("HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
      } else {
        connections.noteAddress(socket, address);
        connections.addHttp1(socket);
        serveHttp1(socket);
      }
    });
  });
  return http1;
}

function createTlsServer(
  options: ListenOptions,
  tls: ListenTls,
  limits: ListenLimits,
  connections: Connections,
  answer: Answer,
): Server {
  const withHttp1 = options.http1 !== false;
  const server = createSecureServer(
    {
      ...http2Options(limits),
      minVersion: "TLSv1.2",
      ...tls.options(),
      allowHTTP1: withHttp1,
      ALPNProtocols: withHttp1 ? ["h2", "http/1.1"] : ["h2"],
      handshakeTimeout: limits.headersTimeoutMs,
    },
    answer,
  );
  if (options.upgrade !== undefined) server.on("upgrade", options.upgrade);
  if (withHttp1) applyHttp1Limits(server, limits);
  server.on("session", (session) => connections.addSession(session));
  server.on("tlsClientError", (error) => options.log.debug({ err: error }, "TLS handshake refused"));
  server.on("secureConnection", (socket: TLSSocket) => {
    if (connections.isDraining()) socket.destroy();
    else if (socket.alpnProtocol !== "h2") connections.addHttp1(socket);
  });
  if (options.observe !== undefined) observeHandshakes(server);
  const serveTls = takeConnectionListener(server);
  server.on("connection", (socket: Socket) => {
    connections.addSocket(socket);
    const observed = observe(socket, options);
    if (options.proxyProtocolFrom === undefined && observed === undefined) {
      serveTls(socket);
      return;
    }
    sniffProxyHeader(socket, options, limits, (address) => {
      connections.noteAddress(socket, address);
      if (observed === undefined) serveTls(socket);
      else sniffClientHello(socket, observed, limits, () => serveTls(socket));
    });
  });
  const stop = tls.onChange?.(() => server.setSecureContext(tls.options()));
  server.on("close", () => stop?.());
  return server;
}

/** How often slow requests are looked for. */
function checkingIntervalOf(limits: ListenLimits): number {
  const shortest = Math.min(limits.headersTimeoutMs, limits.requestTimeoutMs || Number.POSITIVE_INFINITY);
  return Math.max(50, Math.min(5_000, shortest / 4));
}

/** Both kinds of server read these properties when they serve HTTP/1.1. */
function applyHttp1Limits(server: HttpServer | Http2SecureServer, limits: ListenLimits): void {
  Object.assign(server, {
    headersTimeout: limits.headersTimeoutMs,
    requestTimeout: limits.requestTimeoutMs,
    keepAliveTimeout: limits.idleTimeoutMs,
    connectionsCheckingInterval: checkingIntervalOf(limits),
    maxHeadersCount: 128,
    maxHeaderSize: limits.maxHeaderBytes,
  });
}

/** Takes the server's own listener for new connections off, to be called once we know what a connection is. */
function takeConnectionListener(server: Server): (socket: Socket) => void {
  const listeners = server.listeners("connection");
  server.removeAllListeners("connection");
  return (socket) => {
    for (const listener of listeners) listener.call(server, socket);
  };
}

const preface = Buffer.from("PRI * HTTP/2.0");

/** Finds out from the first bytes what a plaintext connection speaks, and gives the bytes back to it. */
function sniff(
  socket: Socket,
  options: ListenOptions,
  limits: ListenLimits,
  decided: (protocol: "h2" | "http/1.1", address: string | undefined) => void,
): void {
  sniffProxyHeader(socket, options, limits, (address) => {
    peek(socket, limits.headersTimeoutMs, (bytes, first) => {
      const observed = observedConnections.get(socket);
      if (first) observed?.began?.();
      const length = Math.min(bytes.length, preface.length);
      const isStart = bytes.compare(preface, 0, length, 0, length) === 0;
      if (isStart && length < preface.length) return undefined;
      observed?.firstBytes(bytes.subarray(0, maxObservedBytes));
      return { take: 0, go: () => decided(isStart ? "h2" : "http/1.1", address) };
    });
  });
}

/** Takes the PROXY protocol header off a connection that must have one. */
function sniffProxyHeader(
  socket: Socket,
  options: ListenOptions,
  limits: ListenLimits,
  decided: (address: string | undefined) => void,
): void {
  const { proxyProtocolFrom, log } = options;
  const peer = normalizeAddress(socket.remoteAddress ?? "") ?? "";
  if (proxyProtocolFrom === undefined || !proxyProtocolFrom.includes(peer)) {
    decided(undefined);
    return;
  }
  peek(socket, limits.headersTimeoutMs, (bytes) => {
    const header = readProxyHeader(bytes);
    if (header.state === "incomplete") return undefined;
    if (header.state === "complete") return { take: header.length, go: () => decided(header.address) };
    log.warn({ peer, problem: header.problem }, "a trusted proxy sent no usable PROXY protocol header");
    return { take: 0, go: () => socket.destroy() };
  });
}

/** Bytes that are waited for and shown at most: a TLS record's, RFC 8446 section 5.1. */
const maxObservedBytes = 16 * 1024;

/** Shows the record of the ClientHello before TLS reads it; what begins like no handshake is left for TLS to refuse. */
function sniffClientHello(
  socket: Socket,
  observed: ObservedConnection,
  limits: ListenLimits,
  decided: () => void,
): void {
  peek(socket, limits.headersTimeoutMs, (bytes, first) => {
    if (first) observed.began?.();
    const isHandshake = bytes[0] === 22;
    if (isHandshake && bytes.length < 5) return undefined;
    const needed = isHandshake ? Math.min(5 + bytes.readUInt16BE(3), maxObservedBytes) : 1;
    if (bytes.length < needed) return undefined;
    observed.firstBytes(bytes.subarray(0, maxObservedBytes));
    return { take: 0, go: decided };
  });
}

/**
 * Reads from a connection until `decide` decides, takes off so many bytes as it says, puts the others back and goes on.
 * A connection that ends or dawdles before that is closed.
 */
function peek(
  socket: Socket,
  timeoutMs: number,
  decide: (bytes: Buffer, first: boolean) => { take: number; go: () => void } | undefined,
): void {
  let bytes: Buffer = Buffer.alloc(0);
  const timer = setTimeout(() => socket.destroy(), timeoutMs);
  const stop = (): void => {
    clearTimeout(timer);
    socket.off("readable", read).off("end", end).off("close", stop);
  };
  const end = (): void => {
    stop();
    socket.destroy();
  };
  const read = (): void => {
    for (let chunk: Buffer | null = socket.read(); chunk !== null; chunk = socket.read()) {
      const first = bytes.length === 0;
      bytes = first ? chunk : Buffer.concat([bytes, chunk]);
      const decision = decide(bytes, first);
      if (decision === undefined) continue;
      stop();
      const rest = bytes.subarray(decision.take);
      if (rest.length > 0) socket.unshift(rest);
      decision.go();
      return;
    }
  };
  socket.on("readable", read).on("end", end).on("close", stop);
}

async function bind(server: Server, options: ListenOptions): Promise<void> {
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: options.host, port: options.port }, () => {
        server.off("error", reject);
        resolve();
      });
    });
  } catch (error) {
    throw bindError(error, options);
  }
  server.on("error", (error) => options.log.error({ err: error }, "listener failed"));
}

function bindError(error: unknown, options: ListenOptions): unknown {
  const { portVariable: port = "the port" } = options;
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  switch (code) {
    case "EADDRINUSE":
      return new ConfigError([
        `${port} is ${options.port}: port ${options.port} on ${options.host} is in use; end what uses it, or set ${port} to a free port`,
      ]);
    case "EACCES":
      return new ConfigError([
        `${port} is ${options.port}: this user may not listen there; a port from 1024 is expected`,
      ]);
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return new ConfigError([
        `${hostVariableOf(options)} is ${JSON.stringify(options.host)}: an address of this machine is expected`,
      ]);
    default:
      return error;
  }
}

function hostVariableOf(options: ListenOptions): string {
  return options.hostVariable ?? "OCTOMESH_HOST";
}

/** Watched connections, by the accepted socket, by the TLS socket on it, and by the HTTP/2 session on either. */
const observedConnections = new WeakMap<object, ObservedConnection>();

/**
 * The watcher of a request's connection, also of a request that asks for an upgrade; undefined where nobody
 * watches.
 */
export function observedOf(request: HttpRequest): ObservedConnection | undefined {
  const session = "stream" in request ? request.stream.session : undefined;
  return observedConnections.get(session ?? request.socket);
}

function observe(socket: Socket, options: ListenOptions): ObservedConnection | undefined {
  const observed = options.observe?.accepted(socket);
  if (observed === undefined) return undefined;
  observedConnections.set(socket, observed);
  socket.once("close", () => observed.closed());
  return observed;
}

/** Tells watchers of handshakes that end, and finds the watcher again by what comes of them. */
function observeHandshakes(server: Http2SecureServer): void {
  const handOver = followSessions(server);
  // Node's own listener makes the session or the HTTP/1.1 parser, so it runs inside of ours.
  const listeners = server.listeners("secureConnection");
  server.removeAllListeners("secureConnection");
  server.on("secureConnection", (socket: TLSSocket) => {
    const observed = observedConnections.get(acceptedSocketOf(socket));
    if (observed !== undefined) {
      observedConnections.set(socket, observed);
      observed.secured(socket);
    }
    handOver(socket, () => {
      for (const listener of listeners) listener.call(server, socket);
    });
  });
}

/**
 * A session shows its socket by a proxy object only, which no map knows; but it is made while its socket is handed to
 * the server. The answer hands a socket over and notes the session that comes of it.
 */
function followSessions(server: Http2Server | Http2SecureServer): (socket: Socket, serve: () => void) => void {
  let current: ObservedConnection | undefined;
  server.prependListener("session", (session: ServerHttp2Session) => {
    if (current !== undefined) observedConnections.set(session, current);
  });
  return (socket, serve) => {
    current = observedConnections.get(socket);
    try {
      serve();
    } finally {
      current = undefined;
    }
  };
}

/** The socket that a TLS socket was put on: addresses and ports would not do, since clients use them again. */
function acceptedSocketOf(socket: TLSSocket): object {
  const parent: unknown = "_parent" in socket ? socket._parent : undefined;
  return typeof parent === "object" && parent !== null ? parent : socket;
}

/** Client addresses that proxies told us, by the object that stands for the connection. */
const addresses = new WeakMap<object, string>();

/**
 * The address at the other end of a request's connection: what a trusted proxy said by PROXY protocol, else the
 * socket's; undefined once the connection is gone. Behind HTTP proxies see `clientAddressOf`.
 */
export function socketAddressOf(request: HttpRequest): string | undefined {
  const session = "stream" in request ? request.stream.session : undefined;
  const told = addresses.get(session ?? request.socket);
  return told ?? socketOf(request)?.remoteAddress;
}

/** The socket of a request, a TLSSocket on TLS ports; for HTTP/2 the session's view of it. Undefined once it is gone. */
export function socketOf(request: HttpRequest): Socket | TLSSocket | undefined {
  if (!("stream" in request)) return request.socket;
  const { session } = request.stream;
  return session === undefined || session.destroyed ? undefined : session.socket;
}

/** All that is open on a listener, so that it can be drained. */
interface Connections {
  addSocket(socket: Socket): void;
  addSession(session: ServerHttp2Session): void;
  addHttp1(socket: Socket): void;
  noteAddress(socket: Socket, address: string | undefined): void;
  begin(request: HttpRequest, response: HttpResponse): void;
  isDraining(): boolean;
  /** Resolves when nothing is open. */
  drain(graceMs: number): Promise<void>;
}

function createConnections(limits: ListenLimits, log: Logger): Connections {
  const sockets = new Set<Socket>();
  const sessions = new Set<ServerHttp2Session>();
  /** Requests under way on each HTTP/1.1 connection. */
  const http1 = new Map<Socket, number>();
  /** What proxies said, by the remote end, until the session or TLS socket that it belongs to appears. */
  const told = new Map<string, string>();
  let draining = false;
  let emptied: (() => void) | undefined;

  const endKey = (socket: Socket): string => `${socket.remoteAddress}|${socket.remotePort}`;
  const adopt = (object: object, socket: Socket): void => {
    const address = told.get(endKey(socket));
    if (address !== undefined) addresses.set(object, address);
  };

  return {
    addSocket(socket) {
      sockets.add(socket);
      const key = endKey(socket);
      socket.on("error", (error) => log.debug({ err: error }, "connection broke off"));
      socket.on("close", () => {
        sockets.delete(socket);
        told.delete(key);
        if (sockets.size === 0) emptied?.();
      });
    },
    noteAddress(socket, address) {
      if (address !== undefined) told.set(endKey(socket), address);
    },
    addHttp1(socket) {
      adopt(socket, socket);
      http1.set(socket, 0);
      socket.on("close", () => http1.delete(socket));
    },
    addSession(session) {
      adopt(session, session.socket);
      sessions.add(session);
      session.setLocalWindowSize(limits.connectionWindowBytes);
      let streams = 0;
      const idle = setTimeout(() => {
        if (streams === 0) session.close();
      }, limits.idleTimeoutMs);
      idle.unref();
      session.on("stream", (stream) => {
        streams += 1;
        stream.on("close", () => {
          streams -= 1;
          if (streams === 0 && !session.closed) idle.refresh();
        });
      });
      session.on("close", () => {
        clearTimeout(idle);
        sessions.delete(session);
      });
      if (draining) session.close();
    },
    begin(request, response) {
      const { socket } = request;
      const underWay = "stream" in request ? undefined : http1.get(socket);
      if (underWay === undefined) return;
      http1.set(socket, underWay + 1);
      response.on("close", () => {
        const left = (http1.get(socket) ?? 1) - 1;
        if (http1.has(socket)) http1.set(socket, left);
        if (draining && left === 0) socket.destroySoon();
      });
    },
    isDraining: () => draining,
    async drain(graceMs) {
      draining = true;
      for (const session of sessions) session.close();
      for (const [socket, underWay] of http1) if (underWay === 0) socket.destroySoon();
      // What has said nothing yet has nothing to lose.
      for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
      if (sockets.size === 0) return;
      const empty = new Promise<void>((resolve) => {
        emptied = resolve;
      });
      let timer: NodeJS.Timeout | undefined;
      const graceOver = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, graceMs);
      });
      await Promise.race([empty, graceOver]);
      clearTimeout(timer);
      if (sockets.size === 0) return;
      log.warn({ connections: sockets.size }, "the grace is over: connections are cut");
      for (const session of sessions) session.destroy();
      for (const socket of http1.keys()) socket.destroy();
      for (const socket of sockets) socket.destroy();
      await empty;
    },
  };
}

async function closeServer(server: Server, connections: Connections, graceMs: number): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    server.close(() => resolve());
  });
  await connections.drain(graceMs);
  await closed;
}
