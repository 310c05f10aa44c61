import { defaultLimits, type LimitSurface } from "./admit.ts";
import { type CidrList, parseCidrList } from "./cidr.ts";
import * as config from "./config.ts";
import { admitsEdges } from "./contract.ts";
import type { Limit } from "./ratelimit.ts";
import { portsOf, type ServiceName, serviceNames, variableOf } from "./service-name.ts";
import { samplerNames, type TracingConfig } from "./telemetry.ts";
import { defaultTrustDomain } from "./tls.ts";

/** Everything that the runtime of one service reads from the environment. */
export interface RuntimeConfig {
  readonly stateDir: string;
  readonly production: boolean;
  readonly host: string;
  readonly meshHost: string;
  readonly adminHost: string;
  readonly ports: { readonly mesh: number; readonly public: number; readonly admin: number };
  readonly allowPlaintext: boolean;
  readonly trustDomain: string;
  readonly identityFiles: { keyFile: string; certificateFile: string; bundleFile: string } | undefined;
  readonly publicTls: { keyFile: string; certificateFile: string } | undefined;
  readonly siblingUrls: Readonly<Partial<Record<ServiceName, string>>>;
  readonly publicUrl: string;
  /** Where edges and backends reach the verdict service, where that is told. */
  readonly verdictUrl: string | undefined;
  /** The verdict service's public port, which all services know so that they can tell others. */
  readonly verdictPort: number;
  readonly databaseUrl: string | undefined;
  readonly migrationUrl: string | undefined;
  readonly masterKey: string | undefined;
  readonly redisUrl: string | undefined;
  readonly replicas: number;
  readonly trustedProxies: CidrList;
  readonly proxyProtocol: boolean;
  readonly corsOrigins: readonly string[];
  readonly limits: Readonly<Record<LimitSurface, Limit>>;
  readonly logLevel: string;
  /** Where traces go; undefined while they are off. */
  readonly tracing: TracingConfig | undefined;
  readonly graceMs: number;
}

/** Variables that every service knows, and what they are for: the source of docs/configuration.md. */
export const variables: Readonly<Record<string, string>> = {
  OCTOMESH_STATE_DIR: "Folder for state: embedded database, artifacts, development keys. Default .octomesh",
  OCTOMESH_PRODUCTION: "true demands certificates, a master key and encrypted databases. Default false",
  OCTOMESH_HOST: "Address of the public port. Default 127.0.0.1",
  OCTOMESH_MESH_HOST: "Address of the mutual-TLS mesh port. Default OCTOMESH_HOST",
  OCTOMESH_ADMIN_HOST: "Address of the admin port. Default 127.0.0.1",
  OCTOMESH_ALLOW_PLAINTEXT:
    "true lets public and admin ports be plaintext off loopback, behind an ingress. Default false",
  OCTOMESH_PUBLIC_URL: "Where users reach the mesh. Default http://localhost:8080",
  OCTOMESH_VERDICT_PUBLIC_URL:
    "Where edges and backends reach the verdict service, `https://…`. Default https://localhost and its public port",
  OCTOMESH_TRUST_DOMAIN: `SPIFFE trust domain. Default ${defaultTrustDomain}`,
  OCTOMESH_TLS_KEY_FILE: "Key of the service's mesh certificate; with the next two. Development keys if not set",
  OCTOMESH_TLS_CERT_FILE: "The service's mesh certificate chain",
  OCTOMESH_TLS_BUNDLE_FILE: "Trust bundle of the mesh",
  OCTOMESH_PUBLIC_TLS_KEY_FILE:
    "Key of the public port's certificate; plaintext if not set, but for verdict, whose public port is never: it takes a development certificate then, and in production it needs this",
  OCTOMESH_PUBLIC_TLS_CERT_FILE: "Certificate chain of the public port",
  OCTOMESH_MASTER_KEY: "Master key (or _FILE) that seals keys at rest. A file in the state folder if not set",
  REDIS_URL: "Redis for rate limits across replicas; this process's memory if not set",
  OCTOMESH_REPLICAS: "How many replicas of the service run; more than one needs REDIS_URL. Default 1",
  OCTOMESH_TRUSTED_PROXIES: "Networks whose X-Forwarded-For is believed. None by default",
  OCTOMESH_PROXY_PROTOCOL: "true: trusted proxies speak PROXY protocol. Default false",
  OCTOMESH_CORS_ORIGINS: "Origins of browser pages that may call. None by default",
  OCTOMESH_LOG_LEVEL: "trace, debug, info, warn or error. Default info",
  OTEL_EXPORTER_OTLP_ENDPOINT:
    "Base URL of an OpenTelemetry collector, which gets traces at `/v1/traces` (OTLP over HTTP, JSON). Off if not set",
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "The same for traces alone, used as it stands, before the other",
  OTEL_EXPORTER_OTLP_HEADERS:
    "Headers for the collector, `name=value,…`; this and `_TIMEOUT`, `_COMPRESSION`, `_CERTIFICATE`, `_CLIENT_KEY` and `_CLIENT_CERTIFICATE` are OpenTelemetry's, also as `OTEL_EXPORTER_OTLP_TRACES_…`",
  OTEL_TRACES_SAMPLER: `${samplerNames.slice(0, -1).join(", ")} or ${samplerNames.at(-1)}. Default parentbased_always_on`,
  OTEL_TRACES_SAMPLER_ARG: "Share of traces that the ratio samplers keep, 0 to 1. Default 1",
  OTEL_RESOURCE_ATTRIBUTES: "More about the deployment, `name=value,…`. `service.name` is always `octomesh-<service>`",
  OTEL_BSP_SCHEDULE_DELAY:
    "Milliseconds between batches of spans; this and `OTEL_BSP_MAX_QUEUE_SIZE`, `_MAX_EXPORT_BATCH_SIZE` and `_EXPORT_TIMEOUT` are OpenTelemetry's. Default 5000",
  OTEL_SDK_DISABLED: "true turns traces off whatever else is set. Default false",
  OCTOMESH_DRAIN_GRACE: "How long calls under way may take to end at shutdown. Default 10s",
};

/** Reads the configuration of a service. Throws one ConfigError that lists every problem. */
export function readRuntimeConfig(name: ServiceName, environment: config.Environment): RuntimeConfig {
  const own = `OCTOMESH_${variableOf(name)}`;
  const ports = portsOf(name);
  const basics = config.readEnvironment(environment, {
    OCTOMESH_STATE_DIR: config.text(".octomesh"),
    OCTOMESH_PRODUCTION: config.boolean(false),
    OCTOMESH_HOST: config.text("127.0.0.1"),
    OCTOMESH_MESH_HOST: config.optionalText(),
    OCTOMESH_ADMIN_HOST: config.text("127.0.0.1"),
    [`${own}_MESH_PORT`]: config.port(ports.mesh),
    [`${own}_PUBLIC_PORT`]: config.port(ports.public),
    [`${own}_ADMIN_PORT`]: config.port(ports.admin),
    OCTOMESH_ALLOW_PLAINTEXT: config.boolean(false),
    OCTOMESH_TRUST_DOMAIN: matching(
      /^[a-z0-9._-]{1,255}$/,
      "a SPIFFE trust domain such as mesh.example.com",
      defaultTrustDomain,
    ),
    OCTOMESH_TLS_KEY_FILE: config.optionalText(),
    OCTOMESH_TLS_CERT_FILE: config.optionalText(),
    OCTOMESH_TLS_BUNDLE_FILE: config.optionalText(),
    OCTOMESH_PUBLIC_TLS_KEY_FILE: config.optionalText(),
    OCTOMESH_PUBLIC_TLS_CERT_FILE: config.optionalText(),
    OCTOMESH_PUBLIC_URL: config.url(["http:", "https:"], "http://localhost:8080"),
    OCTOMESH_VERDICT_PUBLIC_URL: optional(config.url(["https:"])),
    OCTOMESH_VERDICT_PUBLIC_PORT: config.port(portsOf("verdict").public),
    DATABASE_URL: config.secret(),
    OCTOMESH_MIGRATION_URL: config.secret(),
    [`${own}_DATABASE_URL`]: config.secret(),
    [`${own}_MIGRATION_URL`]: config.secret(),
    OCTOMESH_MASTER_KEY: config.secret(),
    REDIS_URL: config.secret(),
    OCTOMESH_REPLICAS: config.integer(1, 10_000, 1),
    OCTOMESH_TRUSTED_PROXIES: config.cidrList(),
    OCTOMESH_PROXY_PROTOCOL: config.boolean(false),
    OCTOMESH_CORS_ORIGINS: config.list(),
    OCTOMESH_LOG_LEVEL: matching(
      /^(trace|debug|info|warn|error|fatal|silent)$/,
      "trace, debug, info, warn or error",
      "info",
    ),
    OTEL_EXPORTER_OTLP_ENDPOINT: optional(config.url(["http:", "https:"])),
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: optional(config.url(["http:", "https:"])),
    OTEL_TRACES_SAMPLER: config.oneOf(samplerNames, "parentbased_always_on"),
    OTEL_TRACES_SAMPLER_ARG: share(1),
    OTEL_SDK_DISABLED: config.boolean(false),
    OCTOMESH_DRAIN_GRACE: config.duration(10_000, 0, 3_600_000),
    ...siblingReaders,
    ...limitReaders,
  });
  const value = basics as typeof basics & Record<string, unknown>;
  const problems: string[] = [];
  const production = value.OCTOMESH_PRODUCTION;
  const files = together(
    value.OCTOMESH_TLS_KEY_FILE,
    value.OCTOMESH_TLS_CERT_FILE,
    value.OCTOMESH_TLS_BUNDLE_FILE,
    "OCTOMESH_TLS_KEY_FILE, OCTOMESH_TLS_CERT_FILE and OCTOMESH_TLS_BUNDLE_FILE",
    problems,
  );
  const publicFiles = together(
    value.OCTOMESH_PUBLIC_TLS_KEY_FILE,
    value.OCTOMESH_PUBLIC_TLS_CERT_FILE,
    "-",
    "OCTOMESH_PUBLIC_TLS_KEY_FILE and OCTOMESH_PUBLIC_TLS_CERT_FILE",
    problems,
  );
  if (production && files === undefined) {
    problems.push("OCTOMESH_TLS_KEY_FILE is not set: in production the mesh needs certificates that you issue");
  }
  if (production && publicFiles === undefined && admitsEdges(name)) {
    problems.push(
      "OCTOMESH_PUBLIC_TLS_KEY_FILE is not set: in production the port that edges reach needs a certificate that you issue",
    );
  }
  if (production && value.OCTOMESH_MASTER_KEY === undefined) {
    problems.push("OCTOMESH_MASTER_KEY (or _FILE) is not set: in production keys are sealed by a key that you keep");
  }
  const redisUrl = value.REDIS_URL;
  if (redisUrl !== undefined && production && !redisUrl.startsWith("rediss://") && !isLocalUrl(redisUrl)) {
    problems.push("REDIS_URL must begin with rediss:// in production");
  }
  if (redisUrl !== undefined && !/^rediss?:\/\//.test(redisUrl)) {
    problems.push("REDIS_URL must begin with redis:// or rediss://");
  }
  if (value.OCTOMESH_PROXY_PROTOCOL && value.OCTOMESH_TRUSTED_PROXIES.size === 0) {
    problems.push("OCTOMESH_PROXY_PROTOCOL is true and OCTOMESH_TRUSTED_PROXIES is not set: nobody would be believed");
  }
  if (value.OCTOMESH_REPLICAS > 1 && redisUrl === undefined) {
    problems.push("OCTOMESH_REPLICAS is more than 1 and REDIS_URL is not set: limits would count per replica");
  }
  if (value.OCTOMESH_CORS_ORIGINS.some((origin) => !URL.canParse(origin) || new URL(origin).origin !== origin)) {
    problems.push("OCTOMESH_CORS_ORIGINS must be origins such as https://app.example.com, separated by commas");
  }
  if (problems.length > 0) throw new config.ConfigError(problems);
  const collector = value.OTEL_EXPORTER_OTLP_ENDPOINT;
  // Checked as a URL, and used as it stands: a slash at its end may matter to the collector.
  const tracesUrl =
    value.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT === undefined
      ? collector && `${collector}/v1/traces`
      : environment.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT;
  const own_ = (suffix: string): string | undefined => value[`${own}_${suffix}`] as string | undefined;
  return {
    stateDir: value.OCTOMESH_STATE_DIR,
    production,
    host: value.OCTOMESH_HOST,
    meshHost: value.OCTOMESH_MESH_HOST ?? value.OCTOMESH_HOST,
    adminHost: value.OCTOMESH_ADMIN_HOST,
    ports: {
      mesh: value[`${own}_MESH_PORT`] as number,
      public: value[`${own}_PUBLIC_PORT`] as number,
      admin: value[`${own}_ADMIN_PORT`] as number,
    },
    allowPlaintext: value.OCTOMESH_ALLOW_PLAINTEXT,
    trustDomain: value.OCTOMESH_TRUST_DOMAIN,
    identityFiles: files && { keyFile: files[0], certificateFile: files[1], bundleFile: files[2] },
    publicTls: publicFiles && { keyFile: publicFiles[0], certificateFile: publicFiles[1] },
    siblingUrls: Object.fromEntries(
      serviceNames.flatMap((each) => {
        const url = value[`OCTOMESH_${variableOf(each)}_URL`] as string | undefined;
        return url === undefined ? [] : [[each, url]];
      }),
    ),
    publicUrl: value.OCTOMESH_PUBLIC_URL,
    verdictUrl: value.OCTOMESH_VERDICT_PUBLIC_URL,
    verdictPort: value.OCTOMESH_VERDICT_PUBLIC_PORT,
    databaseUrl: own_("DATABASE_URL") ?? value.DATABASE_URL,
    migrationUrl: own_("MIGRATION_URL") ?? value.OCTOMESH_MIGRATION_URL,
    masterKey: value.OCTOMESH_MASTER_KEY,
    redisUrl,
    replicas: value.OCTOMESH_REPLICAS,
    trustedProxies: value.OCTOMESH_TRUSTED_PROXIES,
    proxyProtocol: value.OCTOMESH_PROXY_PROTOCOL,
    corsOrigins: value.OCTOMESH_CORS_ORIGINS,
    limits: Object.fromEntries(
      limitSurfaces.map((surface) => [
        surface,
        { points: value[limitVariable(surface)] as number, windowMs: defaultLimits[surface].windowMs },
      ]),
    ) as Record<LimitSurface, Limit>,
    logLevel: value.OCTOMESH_LOG_LEVEL,
    tracing:
      tracesUrl === undefined || value.OTEL_SDK_DISABLED
        ? undefined
        : { url: tracesUrl, sampler: value.OTEL_TRACES_SAMPLER, ratio: value.OTEL_TRACES_SAMPLER_ARG },
    graceMs: value.OCTOMESH_DRAIN_GRACE,
  };
}

/** `OCTOMESH_<SERVICE>_URL`: where a sibling's mesh port is. Never without TLS, which alone proves who answers. */
const siblingReaders: Record<string, config.Reader<string | undefined>> = Object.fromEntries(
  serviceNames.map((each) => [`OCTOMESH_${variableOf(each)}_URL`, optional(config.url(["https:"]))]),
);

const limitSurfaces = Object.keys(defaultLimits) as LimitSurface[];

/** `OCTOMESH_LIMIT_<SURFACE>`: calls per minute, 1 to 10,000,000. */
const limitReaders: Record<string, config.Reader<number>> = Object.fromEntries(
  limitSurfaces.map((surface) => [
    limitVariable(surface),
    config.integer(1, 10_000_000, defaultLimits[surface].points),
  ]),
);

function limitVariable(surface: LimitSurface): string {
  return `OCTOMESH_LIMIT_${surface.toUpperCase()}`;
}

function optional<T>(reader: config.Reader<T>): config.Reader<T | undefined> {
  return (name, environment) => (environment[name] ? reader(name, environment) : { value: undefined });
}

/** A share from 0 to 1. */
function share(fallback: number): config.Reader<number> {
  return (name, environment) => {
    const text = environment[name] || String(fallback);
    const value = Number(text);
    if (/^\d*\.?\d+$/.test(text) && value <= 1) return { value };
    return { problem: ` is ${JSON.stringify(text.slice(0, 80))}: a number from 0 to 1 is expected` };
  };
}

const logLevels = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;

/** The configured log level where it is one, else `info`: for those who log before the configuration is read. */
export function logLevelOf(environment: config.Environment): string {
  const level = environment.OCTOMESH_LOG_LEVEL ?? "";
  return (logLevels as readonly string[]).includes(level) ? level : "info";
}

function matching(pattern: RegExp, expected: string, fallback: string): config.Reader<string> {
  return (name, environment) => {
    const value = environment[name] || fallback;
    if (pattern.test(value)) return { value };
    return { problem: ` is ${JSON.stringify(value.slice(0, 80))}: ${expected} is expected` };
  };
}

function together(
  first: string | undefined,
  second: string | undefined,
  third: string | undefined,
  names: string,
  problems: string[],
): [string, string, string] | undefined {
  if (first !== undefined && second !== undefined && third !== undefined) return [first, second, third];
  const some = [first, second, third === "-" ? undefined : third].some((each) => each !== undefined);
  if (some) problems.push(`${names} belong together: set all of them or none`);
  return undefined;
}

function isLocalUrl(url: string): boolean {
  if (!URL.canParse(url)) return false;
  const { hostname } = new URL(url);
  return (
    hostname === "localhost" || (parseCidrList("127.0.0.0/8,::1")?.includes(hostname.replace(/^\[|\]$/g, "")) ?? false)
  );
}
