import http2 from "node:http2";
import { routeTable } from "@octomesh/mesh/contract";
import { respond } from "@octomesh/mesh/http-handler";
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
const hopByHop = new Set([
  "connection",
  "host",
  "http2-settings",
  "keep-alive",
  "proxy-connection",
  "te",
  "transfer-encoding",
  "upgrade",
  "x-forwarded-for",
]);

/**
 * Forwards by the route table of the contract over HTTP/2, trailers included, which gRPC needs and the proxy libraries
 * for Node leave out. For development on one machine; production has nginx or a Gateway there.
 */
export function createForwarder(options: { urlOf(service: ServiceName): string; log: Logger }): Forwarder {
  const table = routeTable();
  const owners = new Map(table.map((route) => [route.rpcPrefix, route.owner]));
  const rest = createRestRouter(table.flatMap((route) => route.bindings));
  const ownersOfRest = new Map(table.flatMap((route) => route.bindings.map((each) => [each, route.owner] as const)));
  const sessions = new Map<ServiceName, http2.ClientHttp2Session>();

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
  const sessionOf = (service: ServiceName): http2.ClientHttp2Session => {
    const known = sessions.get(service);
    if (known !== undefined && !known.closed && !known.destroyed) return known;
    const session = http2.connect(options.urlOf(service), { settings: { initialWindowSize: 1024 * 1024 } });
    session.on("error", (error) => options.log.debug({ err: error, service }, "forwarding connection failed"));
    sessions.set(service, session);
    return session;
  };

  return {
    handle(request, response) {
      if (request.url?.split("?")[0] === "/healthz")
        return respond(response, 200, { "content-type": "text/plain" }, "ok\n");
      const service = ownerOf(request);
      if (service === undefined) return answerUnknown(request, response);
      const headers: http2.OutgoingHttpHeaders = {
        ":method": request.method ?? "GET",
        ":path": request.url ?? "/",
        ":authority": request.headers[":authority"] ?? request.headers.host ?? "localhost",
        "x-forwarded-for": socketAddressOf(request) ?? "",
        te: "trailers",
      };
      for (const [name, value] of Object.entries(request.headers)) {
        if (!name.startsWith(":") && !hopByHop.has(name)) headers[name] = value;
      }
      const upstream = sessionOf(service).request(headers);
      const end = (): void => upstream.close(http2.constants.NGHTTP2_CANCEL);
      response.once("close", () => {
        if (!response.writableFinished) end();
      });
      upstream.on("response", (answer) => {
        const out: http2.OutgoingHttpHeaders = {};
        for (const [name, value] of Object.entries(answer)) {
          if (!name.startsWith(":") && !hopByHop.has(name)) out[name] = value;
        }
        response.writeHead(answer[":status"] ?? 502, out as never);
        upstream.pipe(response as NodeJS.WritableStream, { end: false });
      });
      upstream.on("trailers", (trailers) => {
        const out: Record<string, string> = {};
        for (const [name, value] of Object.entries(trailers)) if (!name.startsWith(":")) out[name] = String(value);
        if (Object.keys(out).length > 0) response.addTrailers(out);
      });
      upstream.on("end", () => response.end());
      upstream.on("error", (error) => {
        options.log.debug({ err: error, service }, "forwarding failed");
        if (response.headersSent) response.destroy();
        else respond(response, 503, { "content-type": "text/plain", "retry-after": "1" }, `${service} is not there\n`);
      });
      (request as NodeJS.ReadableStream).pipe(upstream);
    },
    close() {
      for (const session of sessions.values()) session.destroy();
    },
  };
}
