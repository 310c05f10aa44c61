import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { reasonOf } from "@octomesh/mesh/errors";
import { RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import type { SubmitSignalsResponse } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { type BrowserError, refusalOf } from "./browser-error.ts";

/** A bundle as it is forwarded. */
export interface SignedBundle {
  readonly bytes: Uint8Array;
  readonly keyId: string;
  readonly signature: Uint8Array;
}

/** What came of one attempt to forward. */
export type ForwardOutcome =
  | { readonly kind: "accepted"; readonly response: SubmitSignalsResponse }
  /** The same bundle would be refused again. */
  | { readonly kind: "refused"; readonly error: BrowserError; readonly retryAfterMs: number | undefined }
  /** The licence has used up what it may for now. */
  | { readonly kind: "limited"; readonly error: BrowserError; readonly retryAfterMs: number | undefined }
  /** The service answered that it failed on this bundle. */
  | { readonly kind: "failed"; readonly retryAfterMs: number | undefined }
  /** Nobody could take it; `problem` says why in a word, and holds nothing secret. */
  | { readonly kind: "away"; readonly retryAfterMs: number | undefined; readonly problem: string };

/** PEM of what TLS to the verdict service needs. */
export interface VerdictTls {
  readonly ca?: string | undefined;
  readonly certificate?: string | undefined;
  readonly key?: string | undefined;
}

/** Forwards to the verdict service. */
export interface VerdictClient {
  /** One attempt. Never rejects. */
  submit(bundle: SignedBundle, signal?: AbortSignal): Promise<ForwardOutcome>;
  /** Opens a connection, or gives the error why there is none. */
  connect(): Promise<unknown>;
  close(): void;
}

/** What a client of the verdict service is made of. */
export interface VerdictClientOptions {
  /** Base URL; asked at each connection. */
  url(): string;
  readonly license: string;
  readonly returnVerdict: boolean;
  /** TLS material as it stands now. A change opens a new connection at the next attempt. */
  tls(): VerdictTls;
  /** How long one attempt may take, milliseconds. 10 s by default. */
  readonly timeoutMs?: number;
}

/** What a service that is away may ask for at most; a bundle lives little longer. */
const maxAwayMs = 60_000;

/** Opens a client that speaks Connect over HTTP/2 with the licence in `x-octet-license`. */
export function createVerdictClient(options: VerdictClientOptions): VerdictClient {
  const { timeoutMs = 10_000 } = options;
  let current: { url: string; tls: VerdictTls; sessions: Http2SessionManager; submit: Submit } | undefined;

  const open = (): NonNullable<typeof current> => {
    const url = options.url();
    const tls = options.tls();
    if (current !== undefined && current.url === url && isSame(current.tls, tls)) return current;
    const retired = current?.sessions;
    const sessions = new Http2SessionManager(
      url,
      { pingIntervalMs: 20_000, idleConnectionTimeoutMs: 300_000 },
      url.startsWith("https:")
        ? {
            minVersion: "TLSv1.2",
            ...(tls.ca === undefined ? {} : { ca: tls.ca }),
            ...(tls.certificate === undefined ? {} : { cert: tls.certificate }),
            ...(tls.key === undefined ? {} : { key: tls.key }),
          }
        : undefined,
    );
    const transport = createConnectTransport({ baseUrl: url, httpVersion: "2", sessionManager: sessions });
    const client = createClient(VerdictService, transport);
    current = {
      url,
      tls,
      sessions,
      submit: (bundle, signal) =>
        client.submitSignals(
          {
            signedBundle: bundle.bytes,
            keyId: bundle.keyId,
            signature: bundle.signature,
            returnVerdict: options.returnVerdict,
          },
          {
            headers: { "x-octet-license": options.license },
            timeoutMs,
            ...(signal === undefined ? {} : { signal }),
          },
        ),
    };
    // What is under way on the old connection ends there.
    if (retired !== undefined) setTimeout(() => retired.abort(), timeoutMs).unref();
    return current;
  };

  return {
    async submit(bundle, signal) {
      try {
        const response = await open().submit(bundle, signal);
        return { kind: "accepted", response };
      } catch (error) {
        return outcomeOf(error);
      }
    },
    async connect() {
      try {
        const state = await open().sessions.connect();
        return state === "error" ? open().sessions.error() : undefined;
      } catch (error) {
        return error;
      }
    },
    close() {
      current?.sessions.abort();
      current = undefined;
    },
  };
}

function isSame(one: VerdictTls, other: VerdictTls): boolean {
  return one.ca === other.ca && one.certificate === other.certificate && one.key === other.key;
}

type Submit = (bundle: SignedBundle, signal?: AbortSignal) => Promise<SubmitSignalsResponse>;

function outcomeOf(error: unknown): ForwardOutcome {
  const failure = ConnectError.from(error);
  const retryAfterMs = retryAfterOf(failure);
  const refusal = refusalOf(reasonOf(failure), failure.code);
  if (refusal.kind !== "away") return { ...refusal, retryAfterMs };
  return {
    kind: "away",
    retryAfterMs: retryAfterMs === undefined ? undefined : Math.min(maxAwayMs, retryAfterMs),
    problem: problemOf(failure),
  };
}

/** The system's or OpenSSL's own code where there is one, such as ECONNREFUSED; else that of the rpc. */
function problemOf(error: ConnectError): string {
  const { cause } = error;
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  return typeof code === "string" && /^[A-Z][A-Z0-9_]{1,63}$/.test(code) ? code : (Code[error.code] ?? "Unknown");
}

function retryAfterOf(error: ConnectError): number | undefined {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const header = error.metadata.get("retry-after");
  const seconds = header !== null && /^\d{1,9}$/.test(header) ? Number(header) : Number.NaN;
  const ms = delay === undefined ? seconds * 1000 : Number(delay.seconds) * 1000 + delay.nanos / 1e6;
  return Number.isFinite(ms) && ms >= 0 ? ms : undefined;
}
