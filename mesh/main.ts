import { createLogger } from "./log.ts";
import { logLevelOf, readRuntimeConfig } from "./runtime-config.ts";
import { startService } from "./serve.ts";
import type { CreateService } from "./service.ts";
import { portsOf, type ServiceName } from "./service-name.ts";
import { createShutdown, handleSignals } from "./shutdown.ts";

/** How long the parts of a service that are no listeners may take to end. */
const partsTimeoutMs = 60_000;

/**
 * Runs one service as a process of its own: reads the environment, starts, and ends in order on SIGINT and SIGTERM. A
 * configuration that cannot be used ends it with 78 and one line for each problem; any other failed start with 1.
 */
export async function runService(name: ServiceName, create: CreateService): Promise<void> {
  const environment = process.env;
  const log = createLogger({ service: name, level: logLevelOf(environment), pretty: process.stdout.isTTY });
  const shutdown = createShutdown(log);
  handleSignals(shutdown, log);
  try {
    const config = readRuntimeConfig(name, environment);
    const urlOf = (sibling: ServiceName): string =>
      config.siblingUrls[sibling] ?? `https://127.0.0.1:${portsOf(sibling).mesh}`;
    const service = await startService({ name, create, config, environment, urlOf, log });
    shutdown.add(name, () => service.stop(), config.graceMs + partsTimeoutMs);
    log.info({ ports: service.ports }, "listening");
    await service.ready();
    log.info("ready");
  } catch (error) {
    const isConfiguration = error instanceof Error && error.name === "ConfigError";
    if (isConfiguration) process.stderr.write(`${error.message}\n`);
    else log.fatal({ err: error }, "the start failed");
    await shutdown.run("the start failed");
    process.exit(isConfiguration ? 78 : 1);
  }
}
