import http2 from "node:http2";
import { routeTable } from "@octomesh/mesh/contract";
import { licenseHeader } from "@octomesh/mesh/edge-license";
import { abandon, respond } from "@octomesh/mesh/http-handler";
import { socketAddressOf } from "@octomesh/mesh/listen";
import { answerUnknown } from "@octomesh/mesh/origin";
import { createRestRouter } from "@octomesh/mesh/rest";
import type { HttpRequest, HttpResponse } from "@octomesh/mesh/service";
import type { ServiceName } from "@octomesh/mesh/service-name";
import type { Logger } from "pino";

/** The one public origin in front of services that run as processes of their own. */
export interface Forwarder {
  handle(request: HttpRequest, response: HttpResponse): void;
  close(): void;
}

/** Fields that belong to one connection and are not passed on (RFC 9110 section 7.6.1). */
const hopByHop: readonly string[] = [
  "connection",
  "http2-settings",
  "keep-alive",
  "proxy-connection",
  "te",
  "transfer-encoding",
  "upgrade",
];

/** Fields that this forwarder writes itself, and never takes from a client. */
const ownFields: readonly string[] = ["forwarded", "host", "x-forwarded-for", "x-real-ip"];

/** Fields that mean something only where an edge connects by itself, with its own certificate. */
const edgeFields: readonly string[] = [licenseHeader];

const neverPassed: ReadonlySet<string> = new Set([...hopByHop, ...ownFields, ...edgeFields]);

/** Streams of one upstream connection at most; the services allow 256. */
const maxStreams = 200;

/**
 * Forwards by the route table of the contract over HTTP/2, trailers included, which gRPC needs and the proxy libraries
 * for Node leave out. For development on one machine; production has nginx or a Gateway there.
 */
export function createForwarder(options: {
  urlOf(service: ServiceName): string;
  /** Certificates, PEM, of the authorities by which services whose URL is `https://…` are known. */
  readonly authorities?: readonly string[];
  readonly log: Logger;
}): Forwarder {
  const table = routeTable();
  const owners = new Map(table.map((route) => [route.rpcPrefix, route.owner]));
  const rest = createRestRouter(table.flatMap((route) => route.bindings));
  const ownersOfRest = new Map(table.flatMap((route) => route.bindings.map((each) => [each, route.owner] as const)));
  const pools = new Map<ServiceName, Upstream[]>();

  const ownerOf = (request: HttpRequest): ServiceName | undefined => {
    const path = (request.url ?? "").split("?")[0] ?? "";
    if (path.startsWith("/grpc.")) return "identity";
    const rpc = owners.get(path.slice(0, path.lastIndexOf("/") + 1));
    if (rpc !== undefined) return rpc;
    const verbs = rest.allow(path);
    const verb = request.method === "HEAD" ? "GET" : (request.method ?? "");
    const match = rest.match(verbs.includes(verb) ? verb : (verbs[0] ?? ""), path);
    return match === undefined ? undefined : ownersOfRest.get(match.binding);
  };
  /** A connection with room for one more stream: watches last for hours, and must not keep others waiting. */
  const upstreamOf = (service: ServiceName): Upstream => {
    const pool = (pools.get(service) ?? []).filter(({ session }) => !session.closed && !session.destroyed);
    pools.set(service, pool);
    const known = pool.find((each) => each.streams < maxStreams);
    if (known !== undefined) return known;
    const url = options.urlOf(service);
    const session = http2.connect(url, {
      settings: { initialWindowSize: 1024 * 1024 },
      // Nobody is believed by the machine's own authorities: the services' certificates are this deployment's.
      ...(url.startsWith("https:") ? { ca: [...(options.authorities ?? [])] } : {}),
    });
    session.on("error", (error) => options.log.debug({ err: error, service }, "forwarding connection failed"));
    const upstream: Upstream = { session, streams: 0 };
    pool.push(upstream);
    return upstream;
  };

  return {
    handle(request, response) {
      if (request.url?.split("?")[0] === "/healthz")
        return respond(response, 200, { "content-type": "text/plain" }, "ok\n");
      const service = ownerOf(request);
      if (service === undefined) return answerUnknown(request, response);
      let isAway = false;
      const away = (error?: unknown): void => {
        if (isAway) return;
        isAway = true;
        options.log.debug({ err: error, service }, "forwarding failed");
        const headers = { "content-type": "text/plain", "retry-after": "1" };
        if (response.headersSent) abandon(response);
        else respond(response, 503, headers, `${service} is not there\n`);
      };
      const upstream = upstreamOf(service);
      let stream: http2.ClientHttp2Stream;
      try {
        stream = upstream.session.request({
          ...passedOn(request.headers),
          ":method": request.method ?? "GET",
          ":path": request.url ?? "/",
          ":authority": request.headers[":authority"] ?? request.headers.host ?? "localhost",
          "x-forwarded-for": socketAddressOf(request) ?? "",
          te: "trailers",
        });
      } catch (error) {
        away(error);
        return;
      }
      upstream.streams += 1;
      response.once("close", () => stream.close(http2.constants.NGHTTP2_CANCEL));
      stream.on("response", (answer) => {
        response.writeHead(answer[":status"] ?? 502, passedOn(answer) as never);
        stream.pipe(response as NodeJS.WritableStream, { end: false });
      });
      stream.on("trailers", (trailers) => {
        const out: Record<string, string> = {};
        for (const [name, value] of Object.entries(passedOn(trailers))) out[name] = String(value);
        if (Object.keys(out).length > 0) response.addTrailers(out);
      });
      stream.on("error", away);
      stream.on("close", () => {
        upstream.streams -= 1;
        // An answer that the service broke off must not look like a whole one.
        if (stream.rstCode !== http2.constants.NGHTTP2_NO_ERROR || !response.headersSent) away();
        else response.end();
      });
      (request as NodeJS.ReadableStream).pipe(stream);
    },
    close() {
      for (const pool of pools.values()) for (const { session } of pool) session.destroy();
    },
  };
}

interface Upstream {
  readonly session: http2.ClientHttp2Session;
  streams: number;
}

/** Fields without those of the connection, among them the ones that Connection names. */
function passedOn(headers: http2.IncomingHttpHeaders): http2.OutgoingHttpHeaders {
  const named = (headers.connection ?? "").split(",").map((each) => each.trim().toLowerCase());
  const out: http2.OutgoingHttpHeaders = {};
  for (const [name, value] of Object.entries(headers)) {
    if (name.startsWith(":") || neverPassed.has(name) || named.includes(name)) continue;
    out[name] = value;
  }
  return out;
}
