import { ConfigError, type Environment } from "@octomesh/mesh/config";
import { createLogger } from "@octomesh/mesh/log";
import { createShutdown, handleSignals } from "@octomesh/mesh/shutdown";
import { createEdge } from "./edge.ts";
import { checkEdge } from "./edge-check.ts";
import { type EdgeConfig, readEdgeConfig } from "./edge-config.ts";
import { type EdgeFiles, openEdgeFiles } from "./edge-files.ts";

/** Exit code of a configuration that cannot be used, by sysexits.h. */
const configurationCode = 78;
const expiryLookMs = 3_600_000;
const expirySoonMs = 14 * 86_400_000;

/**
 * Runs a stand-alone edge or landmark as this process, until a signal ends it; with `check` looks at what it would need
 * and ends. A configuration that cannot be used ends the process with 78 and one line for each problem, before anything
 * listens.
 */
export async function runEdge(
  environment: Environment,
  options: { readonly check: boolean; readonly url: string | undefined },
): Promise<void> {
  try {
    const config = readEdgeConfig(environment);
    const files = openEdgeFiles(config);
    if (options.check) process.exit(await check(config, files, options.url));
    await run(config, files);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exit(configurationCode);
  }
}

/** Prints what was found; 1 where the edge cannot do its work. */
async function check(config: EdgeConfig, files: EdgeFiles, url: string | undefined): Promise<number> {
  const marks = { ok: "ok     ", warning: "warning", failed: "FAILED " };
  const findings = [
    { name: "configuration", state: "ok" as const, text: `${config.role} ${JSON.stringify(config.name)}` },
    ...(await checkEdge(config, files, url)),
  ];
  for (const { name, state, text } of findings) process.stdout.write(`${marks[state]}  ${name}: ${text}\n`);
  return findings.some(({ state }) => state === "failed") ? 1 : 0;
}

async function run(config: EdgeConfig, files: EdgeFiles): Promise<void> {
  const log = createLogger({ service: "octet-edge", level: config.logLevel, pretty: process.stdout.isTTY });
  const shutdown = createShutdown(log);
  handleSignals(shutdown, log);
  const edge = await createEdge({
    role: config.role,
    name: config.name,
    location: config.location,
    host: config.host,
    port: config.port,
    tls: files.server,
    allowPlaintext: config.allowPlaintext,
    origins: config.origins,
    landmarks: config.landmarks,
    trustedProxies: config.trustedProxies,
    proxyProtocol: config.proxyProtocol,
    exposeVerdict: config.exposeVerdict,
    exitIp: config.exitIp,
    debug: config.debug,
    icmp: config.icmp,
    metricsToken: config.metricsToken,
    addressLimit: config.addressLimit,
    forwardWaitMs: config.forwardWaitMs,
    queue: { maxBundles: config.queueMax },
    pathPrefix: config.pathPrefix,
    signer: config.signer,
    portVariable: "PORT",
    hostVariable: "EDGE_HOST",
    log,
  });
  // Requests may take the grace, and bundles that wait may take it again.
  shutdown.add("edge", () => edge.close(config.graceMs), 2 * config.graceMs + 5_000);
  if (config.role === "edge") {
    edge.provision({
      license: config.license,
      signer: config.signer,
      url: () => config.octetUrl,
      tls: () => files.verdictTls(),
    });
  } else log.info(`signing on: kid=${config.signer.keyId} ed25519 public key=${config.signer.publicKey}`);
  const warnOfExpiry = (): void => {
    const times: [string, number | undefined][] = [
      ["LICENSE", config.facts?.expiresMs],
      ["EDGE_CLIENT_CERT_FILE", files.clientExpiresMs()],
    ];
    for (const [variable, expiresMs] of times)
      if (expiresMs !== undefined && expiresMs - Date.now() < expirySoonMs)
        log.warn({ variable, expire_time: new Date(expiresMs).toISOString() }, "what proves this edge expires soon");
  };
  warnOfExpiry();
  setInterval(warnOfExpiry, expiryLookMs).unref();
  log.info({ port: edge.port, role: config.role, tls: config.tlsFiles !== undefined }, "listening");
}
