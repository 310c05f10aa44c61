import { type Agent, type IncomingMessage, request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { create, fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import {
  DeviceService,
  RegisterDeviceRequestSchema,
  RegisterDeviceResponseSchema,
} from "@octomesh/proto/octomesh/device/v1/device_service_pb";

const path = "/api/v1/devices/register";
const maxAnswerBytes = 1024 * 1024;

/**
 * Sends registrations as any HTTP client does, `POST /api/v1/devices/register` with JSON, and leaves every other call as
 * it is. A refusal (problem+json, RFC 9457) becomes the error that the call over Connect would have thrown, Retry-After
 * included.
 */
export function registerOverRest(baseUrl: string, agent: Agent): Interceptor {
  return (next) => async (request) => {
    if (request.stream || request.method !== DeviceService.method.registerDevice) return next(request);
    const message = create(RegisterDeviceRequestSchema, request.message as object);
    const body = JSON.stringify(toJson(RegisterDeviceRequestSchema, message, { useProtoFieldName: true }));
    const answer = await post(`${baseUrl}${path}`, agent, request.header, body, request.signal);
    const header = headersOf(answer);
    const text = await textOf(answer);
    if (answer.statusCode !== 200) throw refusalOf(answer.statusCode ?? 0, header, text);
    const response = fromJson(RegisterDeviceResponseSchema, parse(text), { ignoreUnknownFields: true });
    const { service, method } = request;
    return { stream: false, service, method, header, trailer: new Headers(), message: response };
  };
}

function post(url: string, agent: Agent, header: Headers, body: string, signal: AbortSignal): Promise<IncomingMessage> {
  const authorization = header.get("authorization");
  const send = url.startsWith("https:") ? requestHttps : requestHttp;
  return new Promise((resolve, reject) => {
    const sent = send(url, {
      method: "POST",
      agent,
      signal,
      headers: {
        "content-type": "application/json",
        "content-length": Buffer.byteLength(body),
        ...(authorization === null ? {} : { authorization }),
      },
    });
    sent.once("error", (error) =>
      reject(new ConnectError(error.message, Code.Unavailable, undefined, undefined, error)),
    );
    sent.once("response", resolve);
    sent.end(body);
  });
}

async function textOf(answer: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of answer as AsyncIterable<Buffer>) {
    size += piece.length;
    if (size > maxAnswerBytes) throw new ConnectError("the answer is too large", Code.ResourceExhausted);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

function refusalOf(status: number, header: Headers, text: string): ConnectError {
  let problem: { detail?: unknown; code?: unknown; metadata?: unknown } = {};
  try {
    problem = parse(text) as typeof problem;
  } catch {
    // A proxy between may answer in its own way: the status says enough.
  }
  const detail = typeof problem.detail === "string" ? problem.detail : `HTTP ${status}`;
  const metadata: [string, string][] = [];
  const retryAfter = header.get("retry-after");
  if (retryAfter !== null) metadata.push(["retry-after", retryAfter]);
  const error = new ConnectError(detail, codeOf(status), metadata);
  if (typeof problem.code === "string") {
    error.details.push({
      desc: ErrorInfoSchema,
      value: create(ErrorInfoSchema, { reason: problem.code, domain: "octomesh" }),
    });
  }
  return error;
}

function codeOf(status: number): Code {
  switch (status) {
    case 400:
      return Code.InvalidArgument;
    case 401:
      return Code.Unauthenticated;
    case 403:
      return Code.PermissionDenied;
    case 404:
      return Code.NotFound;
    case 409:
      return Code.FailedPrecondition;
    case 429:
      return Code.ResourceExhausted;
    case 502:
    case 503:
    case 504:
      return Code.Unavailable;
    default:
      return Code.Unknown;
  }
}

function headersOf(answer: IncomingMessage): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(answer.headers)) {
    if (value !== undefined) headers.set(name, Array.isArray(value) ? value.join(", ") : value);
  }
  return headers;
}

function parse(text: string): JsonValue {
  return JSON.parse(text) as JsonValue;
}
