import { randomUUID } from "node:crypto";
import { context, type TextMapPropagator, type Tracer } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { ExportResultCode, W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { defaultResource, detectResources, envDetector, resourceFromAttributes } from "@opentelemetry/resources";
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BasicTracerProvider,
  BatchSpanProcessor,
  ParentBasedSampler,
  type Sampler,
  type SpanExporter,
  TraceIdRatioBasedSampler,
} from "@opentelemetry/sdk-trace-base";
import { ATTR_SERVICE_INSTANCE_ID, ATTR_SERVICE_NAME } from "@opentelemetry/semantic-conventions";
import type { Logger } from "pino";
import type { ServiceName } from "./service-name.ts";
import type { TracingConfig } from "./telemetry.ts";

/** OpenTelemetry's SDK, set up for one service. */
export interface TracerProvider {
  readonly tracer: Tracer;
  /** W3C trace context: `traceparent` and `tracestate`. */
  readonly propagator: TextMapPropagator;
  /** Sends what is still here, then ends. Takes as long as the collector, and fails with it. */
  shutdown(): Promise<void>;
}

let isContextManaged = false;

/**
 * Sets up a provider that sends spans in batches by OTLP over HTTP. The SDK itself reads the `OTEL_…` variables for
 * headers, time-outs, compression, certificates, batches and further resource attributes. Where the queue is full new spans
 * are dropped: a call never waits for the collector.
 */
export function openTracerProvider(service: ServiceName, tracing: TracingConfig, log: Logger): TracerProvider {
  if (!isContextManaged) {
    // One for the process: a second one would not see what the first has stored.
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
    isContextManaged = true;
  }
  const provider = new BasicTracerProvider({
    resource: defaultResource()
      .merge(detectResources({ detectors: [envDetector] }))
      .merge(
        resourceFromAttributes({
          [ATTR_SERVICE_NAME]: `octomesh-${service}`,
          [ATTR_SERVICE_INSTANCE_ID]: randomUUID(),
        }),
      ),
    sampler: samplerOf(tracing),
    spanProcessors: [new BatchSpanProcessor(reporting(new OTLPTraceExporter({ url: tracing.url }), log))],
  });
  return {
    tracer: provider.getTracer("@octomesh/mesh"),
    propagator: new W3CTraceContextPropagator(),
    shutdown: () => provider.shutdown(),
  };
}

function samplerOf({ sampler, ratio }: TracingConfig): Sampler {
  const root = rootSamplerOf(sampler.replace("parentbased_", ""), ratio);
  return sampler.startsWith("parentbased_") ? new ParentBasedSampler({ root }) : root;
}

function rootSamplerOf(name: string, ratio: number): Sampler {
  if (name === "traceidratio") return new TraceIdRatioBasedSampler(ratio);
  return name === "always_off" ? new AlwaysOffSampler() : new AlwaysOnSampler();
}

const warningIntervalMs = 60_000;

/** The SDK is silent where the collector does not take spans: the log says so, once a minute at most. */
function reporting(exporter: SpanExporter, log: Logger): SpanExporter {
  let nextWarningMs = Number.NEGATIVE_INFINITY;
  return {
    export(spans, done) {
      exporter.export(spans, (result) => {
        const now = performance.now();
        if (result.code !== ExportResultCode.SUCCESS && now >= nextWarningMs) {
          nextWarningMs = now + warningIntervalMs;
          log.warn({ spans: spans.length, problem: result.error?.message }, "traces were not delivered");
        }
        done(result);
      });
    },
    forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve(),
    shutdown: () => exporter.shutdown(),
  };
}
