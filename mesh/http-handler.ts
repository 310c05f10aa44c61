import type { ServerResponse } from "node:http";
import { constants, type Http2ServerResponse } from "node:http2";
import type { DescMethod, JsonValue, Message } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import { ConnectError, type ContextValues, createContextValues } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerResponse } from "@connectrpc/connect/protocol";
import { errorFromJson } from "@connectrpc/connect/protocol-connect";
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from "@connectrpc/connect-node";
import type { Logger } from "pino";
import { type AdmissionDeps, admit, admitFields } from "./admit.ts";
import type { Call } from "./call.ts";
import { type Connection, connectionKey } from "./connection.ts";
import type { Cors } from "./cors.ts";
import { isGuarded } from "./credentials.ts";
import { decodeRefusal } from "./decode-error.ts";
import { demandAudit } from "./enforce-policy.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { presentable, type RpcMetrics, recordCall, requestIdHeader, requestIdOf } from "./observe.ts";
import type { Policy } from "./policy.ts";
import { problemOf } from "./problem.ts";
import { limitHeaders } from "./ratelimit-headers.ts";
import { messageOfParams, paramsOfMessage, type RestMatch, type RestRouter, toRequestJson } from "./rest.ts";
import type { HttpRequest, HttpResponse, HttpRoute } from "./service.ts";
import type { Telemetry } from "./telemetry.ts";
import { refuseUnknownKeys } from "./unknown-json-keys.ts";

/** Answers one HTTP request; false if it is none of this handler's, and then nothing was written. */
export type HttpHandler = (request: HttpRequest, response: HttpResponse) => boolean;

/** What a handler serves. */
export interface HttpHandlerOptions {
  readonly handlers: readonly UniversalHandler[];
  readonly policies: ReadonlyMap<DescMethod, Policy>;
  readonly routes: readonly HttpRoute[];
  readonly rest?: RestRouter;
  readonly cors?: Cors;
  readonly admission: AdmissionDeps;
  readonly log: Logger;
  /** Counts HTTP that is no rpc, which passes no interceptor. */
  readonly metrics: RpcMetrics;
  /** Traces of the same. */
  readonly telemetry: Telemetry;
  connectionOf(request: HttpRequest): Connection;
}

const maxJsonBytes = 1024 * 1024;

/**
 * Serves rpc (Connect, gRPC, gRPC-Web), REST by `google.api.http`, and HTTP that is no rpc, all through the same policy.
 * Never throws: what cannot be understood is answered 400.
 */
export function createHttpHandler(options: HttpHandlerOptions): HttpHandler {
  const rpcs = new Map(options.handlers.map((handler) => [handler.requestPath, handler]));
  const byMethod = new Map(options.handlers.map((handler) => [handler.method, handler]));
  const httpRoutes = new Map(options.routes.map((route) => [route.method, route]));

  return (request, response) => {
    const path = pathOf(request);
    if (path === undefined) {
      respond(response, 400, { "content-type": "text/plain" }, "the request's target cannot be understood\n");
      return true;
    }
    const rpc = rpcs.get(path);
    const isRpc = rpc !== undefined && isVisible(options, rpc.method, request);
    const verbs = isRpc ? ["POST", "GET"] : (options.rest?.allow(path) ?? []);
    if (!isRpc && verbs.length === 0) return false;
    if (options.cors?.answer(request, response, verbs) === true) return true;
    const work = isRpc
      ? serveRpc(rpc, request, response, options)
      : serveRest(path, verbs, request, response, options, byMethod, httpRoutes);
    work.catch((error: unknown) => {
      options.log.error({ err: error, path }, "request failed outside its handler");
      abandon(response);
    });
    return true;
  };
}

function isVisible(options: HttpHandlerOptions, method: DescMethod, request: HttpRequest): boolean {
  return options.connectionOf(request).listener === "mesh" || options.policies.get(method)?.isPublic === true;
}

function pathOf(request: HttpRequest): string | undefined {
  const target = request.url ?? "";
  if (!target.startsWith("/") || target.length > 8192) return undefined;
  const end = target.indexOf("?");
  return end === -1 ? target : target.slice(0, end);
}

function contextOf(request: HttpRequest, options: HttpHandlerOptions): ContextValues {
  return createContextValues().set(connectionKey, options.connectionOf(request));
}

async function serveRpc(
  rpc: UniversalHandler,
  request: HttpRequest,
  response: HttpResponse,
  options: HttpHandlerOptions,
): Promise<void> {
  let universal: ReturnType<typeof universalRequestFromNodeRequest>;
  try {
    universal = universalRequestFromNodeRequest(
      request,
      response as ServerResponse,
      undefined,
      contextOf(request, options),
    );
  } catch {
    // An HTTP/1.0 request without Host has no authority.
    respond(response, 400, { "content-type": "text/plain" }, "the request needs a Host header\n");
    return;
  }
  const answer = await rpc(universal);
  await send(withDefaults(answer), response);
}

/** Answers are not stored anywhere on their way unless they say so themselves. */
function withDefaults(answer: UniversalServerResponse): UniversalServerResponse {
  const header = new Headers(answer.header);
  if (!header.has("cache-control")) header.set("cache-control", "no-store");
  header.set("x-content-type-options", "nosniff");
  return { ...answer, header };
}

/** A caller that went away while its answer was written is no fault of ours. */
async function send(answer: UniversalServerResponse, response: HttpResponse): Promise<void> {
  try {
    await universalResponseToNodeResponse(answer, response as ServerResponse);
  } catch (error) {
    if (!isGone(response)) throw error;
  }
}

async function serveRest(
  path: string,
  verbs: readonly string[],
  request: HttpRequest,
  response: HttpResponse,
  options: HttpHandlerOptions,
  byMethod: ReadonlyMap<DescMethod, UniversalHandler>,
  httpRoutes: ReadonlyMap<DescMethod, HttpRoute>,
): Promise<void> {
  const header = headersOf(request);
  const requestId = requestIdOf(header);
  try {
    // HEAD is GET without the body.
    const isHead = request.method === "HEAD";
    const verb = isHead ? "GET" : (request.method ?? "");
    const match = options.rest?.match(verb, path);
    if (match === undefined && verbs.includes(verb)) {
      throw fail(Reason.REQUEST_MALFORMED, "the path is not well encoded", {});
    }
    if (match === undefined) {
      const { headers, body } = problemOf(fail(Reason.METHOD_NOT_FOUND, "the path has no such method", {}), requestId);
      respond(response, 405, { ...headers, allow: verbs.join(", ") }, JSON.stringify({ ...body, status: 405 }));
      return;
    }
    const route = httpRoutes.get(match.binding.method);
    if (route !== undefined) {
      const { method, verb, template } = match.binding;
      const connection = options.connectionOf(request);
      const span = options.telemetry.serverSpan({ method, header, connection, http: { verb, route: template } });
      const record = recordCall(options.log, options.metrics, method, requestId, span);
      await span.run(() => serveHttpRoute(route, match, header, requestId, record, request, response, options));
      return;
    }
    const handler = byMethod.get(match.binding.method);
    if (handler === undefined || match.binding.method.methodKind !== "unary") {
      throw fail(Reason.METHOD_NOT_FOUND, "there is no such method here", {});
    }
    const query = new URLSearchParams((request.url ?? "").slice(path.length + 1));
    const body = match.binding.body === "" ? undefined : await readJson(request);
    const json = toRequestJson(match.binding, match.params, query, body);
    refuseUnknownKeys(match.binding.method.input, json);
    await transcode(handler, match, json, header, isHead, request, response, options);
  } catch (error) {
    const name = path.slice(0, 128);
    const refused = presentable(error, options.log, name, requestId);
    sendProblem(refused, requestId, response);
  }
}

async function serveHttpRoute(
  route: HttpRoute,
  match: RestMatch,
  header: Headers,
  requestId: string,
  record: ReturnType<typeof recordCall>,
  request: HttpRequest,
  response: HttpResponse,
  options: HttpHandlerOptions,
): Promise<void> {
  const policy = options.policies.get(route.method);
  if (policy === undefined) throw fail(Reason.CALLER_KIND_NOT_ALLOWED, "the method has no policy", {});
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  let call: Call | undefined;
  try {
    const connection = options.connectionOf(request);
    const admission = await admit(
      { method: route.method, policy, connection, header, requestId, signal: gone.signal },
      options.admission,
    );
    call = admission.call;
    const message = messageOfParams(route.method, match.params);
    admitFields(message, call, policy, route.method, options.admission);
    refuseInvalidParams(route.method, message, match.params);
    const params = paramsOfMessage(route.method, message, match.params);
    const guard = isGuarded(call.caller.kind) ? options.admission.credentials.guard(call.caller) : undefined;
    try {
      response.setHeader(requestIdHeader, requestId);
      response.setHeader("cache-control", "no-store");
      response.setHeader("x-content-type-options", "nosniff");
      const { limit } = admission;
      if (limit !== undefined) for (const [name, value] of limitHeaders(limit)) response.setHeader(name, value);
      if (guard === undefined) {
        await route.handle(call, request, response, params);
      } else {
        guard.signal.throwIfAborted();
        // A transfer under way ends with the credential that began it.
        guard.signal.addEventListener("abort", () => abandon(response), { once: true });
        const signal = AbortSignal.any([gone.signal, guard.signal]);
        await route.handle({ ...call, signal }, request, response, params);
      }
      demandAudit(call, route.method, options.log);
    } finally {
      guard?.release();
    }
    record(call);
  } catch (error) {
    throw record(call, error);
  }
}

const validator = createValidator();

/** The path's variables are held to the bounds that the contract gives their fields; other fields are not looked at. */
function refuseInvalidParams(
  method: DescMethod,
  message: Record<string, unknown>,
  params: Readonly<Record<string, string>>,
): void {
  const result = validator.validate(method.input, message as unknown as Message);
  if (result.kind === "error") throw result.error;
  if (result.kind === "valid") return;
  for (const { field, message: problem } of result.violations) {
    const [first] = field;
    if (first?.kind !== "field" || !Object.hasOwn(params, first.name)) continue;
    throw fail(Reason.VALIDATION_FAILED, `${first.name}: ${problem}`, { field: first.name });
  }
}

async function transcode(
  handler: UniversalHandler,
  match: RestMatch,
  json: JsonValue,
  header: Headers,
  isHead: boolean,
  request: HttpRequest,
  response: HttpResponse,
  options: HttpHandlerOptions,
): Promise<void> {
  for (const name of ["content-length", "content-encoding", "transfer-encoding", "accept-encoding"])
    header.delete(name);
  header.set("content-type", "application/json");
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  const answer = await handler({
    httpVersion: request.httpVersion,
    method: "POST",
    url: `http://localhost${handler.requestPath}`,
    header,
    body: json,
    signal: gone.signal,
    contextValues: contextOf(request, options),
  });
  const bytes = await readAll(answer);
  const requestId = header.get(requestIdHeader) ?? "";
  if (answer.status !== 200) {
    const error = errorFromJson(parseJson(bytes), new Headers(answer.header), new ConnectError("unknown error"));
    // What the transport refused before the interceptors ran names no reason yet.
    const refused =
      reasonOf(error) === undefined
        ? (decodeRefusal(error) ?? presentable(error, options.log, handler.requestPath, requestId))
        : error;
    sendProblem(refused, requestId, response, answer.header);
    return;
  }
  const out: Record<string, string> = {
    "content-type": "application/json",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
  };
  answer.header?.forEach((value, name) => {
    if (name !== "content-type" && name !== "content-length" && name !== "content-encoding") out[name] = value;
  });
  if (match.binding.verb === "DELETE" && match.binding.method.output.typeName === "google.protobuf.Empty") {
    respond(response, 204, out, "");
    return;
  }
  const body = match.binding.responseBody === "" ? bytes : fieldOf(bytes, match.binding.responseBody);
  // HEAD says how long the answer to GET would be (RFC 9110 section 9.3.2).
  if (isHead) out["content-length"] = String(Buffer.byteLength(body));
  respond(response, 200, out, isHead ? "" : body);
}

function fieldOf(bytes: Buffer, name: string): string {
  const json = parseJson(bytes);
  if (typeof json !== "object" || json === null || Array.isArray(json)) return "null";
  return JSON.stringify(json[name] ?? null);
}

function sendProblem(error: ConnectError, requestId: string, response: HttpResponse, header?: Headers): void {
  if (response.headersSent) {
    abandon(response);
    return;
  }
  const problem = problemOf(error, requestId);
  const out: Record<string, string> = { ...problem.headers, [requestIdHeader]: requestId };
  // The rest of a body that was refused is not waited for.
  if (problem.status === 413 && !("stream" in response)) out.connection = "close";
  const retryAfter = header?.get("retry-after");
  if (retryAfter !== null && retryAfter !== undefined) out["retry-after"] = retryAfter;
  respond(response, problem.status, out, JSON.stringify(problem.body));
}

/** Writes a whole answer, unless the caller has gone. */
export function respond(
  response: HttpResponse,
  status: number,
  headers: Record<string, string>,
  body: string | Uint8Array,
): void {
  if (isGone(response) || response.headersSent) return;
  const target = response as ServerResponse & Http2ServerResponse;
  if (body.length === 0) {
    target.writeHead(status, headers);
    target.end();
    return;
  }
  target.writeHead(status, { ...headers, "content-length": String(Buffer.byteLength(body)) });
  target.end(body);
}

/** Whether nobody can be answered any more. An HTTP/2 answer has no `destroyed` of its own. */
function isGone(response: HttpResponse): boolean {
  if ("stream" in response) return response.stream === undefined || response.stream.destroyed || response.stream.closed;
  return response.destroyed;
}

/** Breaks an answer off, so that nobody takes the part for the whole. */
export function abandon(response: HttpResponse): void {
  if (isGone(response)) return;
  if ("stream" in response) response.stream.close(constants.NGHTTP2_CANCEL);
  else response.destroy();
}

function headersOf(request: HttpRequest): Headers {
  const header = new Headers();
  for (const [name, value] of Object.entries(request.headers)) {
    if (name.startsWith(":") || value === undefined) continue;
    for (const each of Array.isArray(value) ? value : [value]) header.append(name, each);
  }
  return header;
}

async function readJson(request: HttpRequest): Promise<JsonValue | undefined> {
  const type = request.headers["content-type"];
  const bytes = await readBounded(request, maxJsonBytes);
  if (bytes.length === 0) return undefined;
  if (type !== undefined && !/^application\/(json|[\w.+-]+\+json)\b/i.test(type)) {
    throw fail(Reason.REQUEST_MALFORMED, "the body must be application/json", {});
  }
  return parseJson(bytes);
}

/** Reads a body; one that is too large is refused at once, and what still comes is thrown away. */
function readBounded(request: HttpRequest, maxBytes: number): Promise<Buffer> {
  const tooLarge = (): Error =>
    fail(Reason.REQUEST_TOO_LARGE, `the body is larger than ${maxBytes} bytes`, { max: String(maxBytes) });
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const refuse = (): void => {
      request.off("data", onData);
      request.resume();
      reject(tooLarge());
    };
    const onData = (chunk: Buffer): void => {
      size += chunk.length;
      if (size > maxBytes) refuse();
      else chunks.push(chunk);
    };
    if (Number(request.headers["content-length"] ?? 0) > maxBytes) return refuse();
    request.on("data", onData);
    request.once("end", () => resolve(Buffer.concat(chunks)));
    request.once("error", reject);
    request.once("close", () => reject(fail(Reason.CANCELLED, "the body broke off", {})));
  });
}

function parseJson(bytes: Buffer): JsonValue {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch {
    throw fail(Reason.REQUEST_MALFORMED, "the body is no JSON", {});
  }
}

async function readAll(answer: UniversalServerResponse): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  if (answer.body !== undefined) for await (const chunk of answer.body) chunks.push(chunk);
  return Buffer.concat(chunks);
}
