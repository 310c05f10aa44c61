import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";

/** A span as it came over the wire. */
export interface CollectedSpan {
  /** `service.name` of the resource that sent it. */
  readonly service: string;
  readonly resource: Readonly<Record<string, string>>;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string | undefined;
  readonly name: string;
  readonly kind: "server" | "client" | undefined;
  readonly attributes: Readonly<Record<string, string>>;
  readonly links: readonly string[];
  readonly isError: boolean;
}

/** A collector that takes traces by OTLP over HTTP, JSON, and keeps them. */
export interface CollectorStub {
  /** `http://127.0.0.1:port`, without a path. */
  readonly url: string;
  readonly spans: readonly CollectedSpan[];
  /** Every body as it came. */
  readonly bodies: readonly string[];
  /** How it answers from now on; `silence` takes the request and never answers. */
  behave(as: "take" | "refuse" | "silence"): void;
  close(): Promise<void>;
}

interface KeyValue {
  readonly key: string;
  readonly value: { readonly stringValue?: string; readonly intValue?: number | string };
}

interface TraceRequest {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes: readonly KeyValue[] };
    readonly scopeSpans: readonly {
      readonly spans: readonly {
        readonly traceId: string;
        readonly spanId: string;
        readonly parentSpanId?: string;
        readonly name: string;
        readonly kind: number;
        readonly attributes: readonly KeyValue[];
        readonly links?: readonly { readonly traceId: string }[];
        readonly status?: { readonly code?: number };
      }[];
    }[];
  }[];
}

/** Starts a collector on a port of the system's choice. */
export async function startCollector(): Promise<CollectorStub> {
  const spans: CollectedSpan[] = [];
  const bodies: string[] = [];
  let behaviour: "take" | "refuse" | "silence" = "take";
  const server = http.createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    if (behaviour === "silence") return;
    const isTraces = request.method === "POST" && request.url === "/v1/traces";
    if (behaviour === "refuse" || !isTraces || request.headers["content-type"] !== "application/json") {
      response.writeHead(400).end();
      return;
    }
    const body = Buffer.concat(chunks).toString("utf8");
    bodies.push(body);
    spans.push(...spansOf(JSON.parse(body)));
    response.writeHead(200, { "content-type": "application/json" }).end("{}");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans,
    bodies,
    behave(as) {
      behaviour = as;
    },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

function spansOf(request: TraceRequest): CollectedSpan[] {
  return request.resourceSpans.flatMap(({ resource, scopeSpans }) => {
    const about = recordOf(resource.attributes);
    return scopeSpans
      .flatMap((scope) => scope.spans)
      .map((span) => ({
        service: about["service.name"] ?? "",
        resource: about,
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId || undefined,
        name: span.name,
        // SPAN_KIND_SERVER and SPAN_KIND_CLIENT of opentelemetry/proto/trace/v1.
        kind: span.kind === 2 ? "server" : span.kind === 3 ? "client" : undefined,
        attributes: recordOf(span.attributes),
        links: (span.links ?? []).map((link) => link.traceId),
        // STATUS_CODE_ERROR.
        isError: span.status?.code === 2,
      }));
  });
}

function recordOf(attributes: readonly KeyValue[]): Record<string, string> {
  return Object.fromEntries(
    attributes.map(({ key, value }) => [key, value.stringValue ?? String(value.intValue ?? JSON.stringify(value))]),
  );
}
