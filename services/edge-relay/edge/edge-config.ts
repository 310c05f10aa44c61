import type { CidrList } from "@octomesh/mesh/cidr";
import { isLoopbackHost, normalizeAddress } from "@octomesh/mesh/cidr";
import {
  boolean,
  ConfigError,
  type Configuration,
  cidrList,
  duration,
  type Environment,
  integer,
  list,
  oneOf,
  optionalFile,
  optionalText,
  port,
  type Reader,
  secret,
  text,
  url,
} from "@octomesh/mesh/config";
import { type LicenseFacts, readLicenseFacts } from "./license-facts.ts";
import { createOriginRule, type OriginRule } from "./origin-rule.ts";
import { createSigner, parseSigningKey, type Signer } from "./sign-bundle.ts";

/** A place in degrees. */
export interface Place {
  readonly latitude: number;
  readonly longitude: number;
}

/** What the stand-alone edge is told by its environment. */
export interface EdgeConfig {
  readonly role: "edge" | "landmark";
  readonly octetUrl: string;
  readonly license: string;
  /** What the licence says of itself; undefined without one. */
  readonly facts: LicenseFacts | undefined;
  readonly host: string;
  readonly port: number;
  readonly origins: OriginRule;
  readonly tlsFiles: { readonly certificate: string; readonly key: string } | undefined;
  readonly exposeVerdict: boolean;
  readonly exitIp: string | undefined;
  readonly debug: boolean;
  readonly caFile: string | undefined;
  readonly clientFiles: { readonly certificate: string; readonly key: string } | undefined;
  readonly signer: Signer;
  readonly name: string;
  readonly location: Place | undefined;
  readonly landmarks: readonly string[];
  readonly trustedProxies: CidrList;
  readonly proxyProtocol: boolean;
  /** Something in front of the edge ends TLS, says the operator. */
  readonly allowPlaintext: boolean;
  readonly icmp: boolean;
  readonly metricsToken: string | undefined;
  readonly forwardWaitMs: number;
  readonly queueMax: number;
  readonly addressLimit: number;
  readonly graceMs: number;
  readonly logLevel: string;
  readonly pathPrefix: string;
}

/**
 * Reads the environment. Throws one ConfigError that lists every problem: nothing that is wrong is passed over. What the
 * files hold is for `openEdgeFiles`.
 *
 * @param nowMs milliseconds since the Unix epoch, by which a licence has expired
 */
export function readEdgeConfig(environment: Environment, nowMs = Date.now()): EdgeConfig {
  const problems: string[] = [];
  const values = readAll(environment, problems, {
    EDGE_ROLE: oneOf(["edge", "landmark"], "edge"),
    OCTET_URL: url(["https:", "http:"], ""),
    LICENSE: secret(),
    EDGE_HOST: text("0.0.0.0"),
    PORT: port(8080),
    ALLOWED_ORIGIN: list(),
    EDGE_TLS_CERT_FILE: optionalFile(),
    EDGE_TLS_KEY_FILE: optionalFile(),
    EDGE_EXPOSE_VERDICT: boolean(false),
    EXIT_IP: optionalText(),
    EDGE_DEBUG: boolean(false),
    OCTET_CA_FILE: optionalFile(),
    EDGE_CLIENT_CERT_FILE: optionalFile(),
    EDGE_CLIENT_KEY_FILE: optionalFile(),
    EDGE_SIGNING_KEY: secret(),
    EDGE_SIGNING_KEY_ID: optionalText(),
    EDGE_NAME: text("edge"),
    EDGE_LOCATION: optionalText(),
    EDGE_LANDMARKS: list(),
    EDGE_TRUSTED_PROXIES: cidrList(),
    EDGE_PROXY_PROTOCOL: boolean(false),
    EDGE_ALLOW_PLAINTEXT: boolean(false),
    EDGE_ICMP: boolean(false),
    EDGE_METRICS_TOKEN: secret(),
    EDGE_FORWARD_WAIT: duration(1_500, 0, 10_000),
    EDGE_QUEUE_MAX: integer(1, 1_000_000, 10_000),
    EDGE_ADDRESS_LIMIT: integer(1, 1_000_000, 600),
    EDGE_GRACE: duration(10_000, 0, 120_000),
    EDGE_LOG_LEVEL: oneOf(["trace", "debug", "info", "warn", "error"], "info"),
    EDGE_PATH_PREFIX: text(""),
  });
  const isEdge = values.EDGE_ROLE === "edge";

  const { OCTET_URL: octetUrl, LICENSE: license = "" } = values;
  if (isEdge && octetUrl === "")
    problems.push("OCTET_URL is not set: the https URL of the verdict service is expected");
  if (octetUrl.startsWith("http:") && !isLoopbackHost(new URL(octetUrl).hostname)) {
    problems.push("OCTET_URL is plain http: https is expected, except on this machine itself");
  }
  const facts = readLicenseFacts(license);
  if (isEdge && license === "")
    problems.push("LICENSE is not set: a licence (octet_live_… or octet_test_…) is expected");
  if (license !== "" && facts === undefined)
    problems.push("LICENSE is no licence: octet_live_… or octet_test_… is expected");
  if (facts !== undefined && facts.expiresMs <= nowMs)
    problems.push(`LICENSE expired at ${new Date(facts.expiresMs).toISOString()}: a licence that is good is expected`);

  const pairOf = (cert: string | undefined, key: string | undefined, names: string) => {
    if ((cert === undefined) !== (key === undefined)) problems.push(`${names}: both are expected, or neither`);
    return cert === undefined || key === undefined ? undefined : { certificate: cert, key };
  };
  const tlsFiles = pairOf(
    values.EDGE_TLS_CERT_FILE,
    values.EDGE_TLS_KEY_FILE,
    "EDGE_TLS_CERT_FILE and EDGE_TLS_KEY_FILE",
  );
  const clientFiles = pairOf(
    values.EDGE_CLIENT_CERT_FILE,
    values.EDGE_CLIENT_KEY_FILE,
    "EDGE_CLIENT_CERT_FILE and EDGE_CLIENT_KEY_FILE",
  );
  if (tlsFiles === undefined && !isLoopbackHost(values.EDGE_HOST) && !values.EDGE_ALLOW_PLAINTEXT) {
    problems.push(
      `EDGE_TLS_CERT_FILE is not set, and EDGE_HOST is ${JSON.stringify(values.EDGE_HOST)}: TLS is expected off loopback; set EDGE_ALLOW_PLAINTEXT=true only where something in front ends TLS, and the timing is lost`,
    );
  }
  if (values.EDGE_PROXY_PROTOCOL && values.EDGE_TRUSTED_PROXIES.size === 0) {
    problems.push(
      "EDGE_TRUSTED_PROXIES is not set: with EDGE_PROXY_PROTOCOL the addresses of the proxies are expected",
    );
  }
  if (isEdge && facts?.clientCertificate === "require" && clientFiles === undefined) {
    problems.push("EDGE_CLIENT_CERT_FILE is not set, but the licence requires a client certificate");
  }

  const origins = createOriginRule(values.ALLOWED_ORIGIN);
  if (values.ALLOWED_ORIGIN.length === 0) {
    problems.push("ALLOWED_ORIGIN is not set: the origins of the pages are expected, such as https://shop.example");
  } else if (origins === undefined) {
    problems.push("ALLOWED_ORIGIN: origins such as https://shop.example are expected, separated by commas, or * alone");
  }

  const exitIp = values.EXIT_IP;
  if (exitIp !== undefined && normalizeAddress(exitIp) === undefined) problems.push("EXIT_IP is no address");
  if (exitIp !== undefined && facts?.environment !== "test" && !isLoopbackHost(values.EDGE_HOST)) {
    problems.push("EXIT_IP is for tests: a test licence, or EDGE_HOST on loopback, is expected with it");
  }

  const seed = values.EDGE_SIGNING_KEY === undefined ? undefined : parseSigningKey(values.EDGE_SIGNING_KEY);
  const keyId = values.EDGE_SIGNING_KEY_ID;
  if (values.EDGE_SIGNING_KEY === undefined) {
    problems.push("EDGE_SIGNING_KEY is not set: base64 of 32 bytes is expected (openssl rand -base64 32)");
  } else if (seed === undefined) problems.push("EDGE_SIGNING_KEY: base64 of exactly 32 bytes is expected");
  if (keyId === undefined || !/^esk_[a-z2-7]{26}$/.test(keyId)) {
    problems.push("EDGE_SIGNING_KEY_ID: the id under which the key is registered (esk_…) is expected");
  }
  const signer = seed !== undefined && keyId !== undefined ? createSigner(keyId, seed) : undefined;

  const location = values.EDGE_LOCATION === undefined ? undefined : parsePlace(values.EDGE_LOCATION);
  if (values.EDGE_LOCATION !== undefined && location === undefined) {
    problems.push("EDGE_LOCATION: latitude and longitude in degrees are expected, such as 52.52,13.40");
  }
  if (!isEdge && values.EDGE_LOCATION === undefined) {
    problems.push("EDGE_LOCATION is not set: a landmark's place is expected, such as 52.52,13.40");
  }
  if (!/^[\w.-]{1,64}$/.test(values.EDGE_NAME)) problems.push("EDGE_NAME: 1 to 64 letters, digits, . _ - are expected");
  for (const landmark of values.EDGE_LANDMARKS) {
    if (!URL.canParse(landmark) || new URL(landmark).protocol !== "wss:") {
      problems.push("EDGE_LANDMARKS: wss:// URLs are expected, separated by commas");
      break;
    }
  }
  if (values.EDGE_LANDMARKS.length > 16) problems.push("EDGE_LANDMARKS: 16 URLs at most are expected");
  const pathPrefix = values.EDGE_PATH_PREFIX.replace(/\/+$/, "");
  if (pathPrefix !== "" && !/^(\/[\w.~-]+)+$/.test(pathPrefix)) {
    problems.push("EDGE_PATH_PREFIX: a path such as /octet is expected");
  }
  if (problems.length > 0 || origins === undefined || signer === undefined) throw new ConfigError(problems);
  return {
    role: values.EDGE_ROLE,
    octetUrl,
    license,
    facts,
    host: values.EDGE_HOST,
    port: values.PORT,
    origins,
    tlsFiles,
    exposeVerdict: values.EDGE_EXPOSE_VERDICT,
    exitIp,
    debug: values.EDGE_DEBUG,
    caFile: values.OCTET_CA_FILE,
    clientFiles,
    signer,
    name: values.EDGE_NAME,
    location,
    landmarks: values.EDGE_LANDMARKS,
    trustedProxies: values.EDGE_TRUSTED_PROXIES,
    proxyProtocol: values.EDGE_PROXY_PROTOCOL,
    allowPlaintext: values.EDGE_ALLOW_PLAINTEXT,
    icmp: values.EDGE_ICMP,
    metricsToken: values.EDGE_METRICS_TOKEN,
    forwardWaitMs: values.EDGE_FORWARD_WAIT,
    queueMax: values.EDGE_QUEUE_MAX,
    addressLimit: values.EDGE_ADDRESS_LIMIT,
    graceMs: values.EDGE_GRACE,
    logLevel: values.EDGE_LOG_LEVEL,
    pathPrefix,
  };
}

/** Reads every variable; what has a problem counts as not set, so that the rest is looked at too. All have defaults. */
function readAll<S extends Record<string, Reader<unknown>>>(
  environment: Environment,
  problems: string[],
  spec: S,
): Configuration<S> {
  const values: Record<string, unknown> = {};
  for (const [name, reader] of Object.entries(spec)) {
    const result = reader(name, environment);
    if ("problem" in result) problems.push(`${name}${result.problem}`);
    const usable = "problem" in result ? reader(name, {}) : result;
    if ("value" in usable) values[name] = usable.value;
  }
  return values as Configuration<S>;
}

/** Reads `latitude,longitude` in degrees; undefined for what is no place on the globe. */
export function parsePlace(place: string): Place | undefined {
  const match = /^(-?\d{1,3}(?:\.\d{1,10})?)\s*,\s*(-?\d{1,3}(?:\.\d{1,10})?)$/.exec(place.trim());
  if (match === null) return undefined;
  const [latitude, longitude] = [Number(match[1]), Number(match[2])];
  return Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180 ? { latitude, longitude } : undefined;
}
