import { existsSync, readFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { startEmbeddedPostgres } from "@octomesh/mesh/embedded-postgres";
import { createLogger } from "@octomesh/mesh/log";
import { logLevelOf } from "@octomesh/mesh/runtime-config";
import { createShutdown, handleSignals } from "@octomesh/mesh/shutdown";
import { openExternalPostgres, type PostgresUrls } from "./external-postgres.ts";
import { type MeshAddress, startInOneProcess } from "./one-process.ts";
import { readLaunchOptions, usage } from "./options.ts";
import { startProcesses } from "./processes.ts";

const environment = process.env;
const log = createLogger({
  service: "launcher",
  level: environment.OCTOMESH_LOG_LEVEL === undefined ? "warn" : logLevelOf(environment),
  pretty: process.stdout.isTTY,
});
const shutdown = createShutdown(log, 30_000);

try {
  const options = readLaunchOptions(process.argv.slice(2), environment);
  if (options.help) {
    process.stdout.write(usage);
    process.exit(0);
  }
  handleSignals(shutdown, log);
  const stateDir = resolve(options.stateDir);
  const start = options.processes ? startProcesses : startInOneProcess;
  const address = await start({
    options: { ...options, stateDir },
    environment,
    openPostgres: () => openPostgres(stateDir),
    log,
    shutdown,
  });
  announce(address, stateDir);
} catch (error) {
  // A start that was asked to stop has not failed.
  if (!shutdown.signal.aborted) process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  log.debug({ err: error }, "the start failed");
  await shutdown.run("the start failed");
  process.exit(1);
}

/** The embedded server, or the one that DATABASE_URL names. */
async function openPostgres(stateDir: string): Promise<PostgresUrls> {
  const url = environment.DATABASE_URL;
  if (url) return openExternalPostgres({ url, stateDir, production: environment.OCTOMESH_PRODUCTION === "true" });
  const embedded = await startEmbeddedPostgres({ stateDir, log });
  shutdown.add("postgres", () => embedded.stop());
  return embedded;
}

/** Tells people where things are, and programs too if they asked (`OCTOMESH_READY_JSON=1`). */
function announce(address: MeshAddress, stateDir: string): void {
  // Since the process began, which loads and compiles the sources first.
  const seconds = (performance.now() / 1000).toFixed(1);
  const code = setUpCode(stateDir);
  const url = address.publicUrl === "http://localhost:8080" ? "" : ` --url ${address.publicUrl}`;
  const setUpCommand =
    code === undefined
      ? undefined
      : `npx octomil setup${url} --code ${code} --org "My organisation" --email you@example.com`;
  const lines = [
    "",
    `  Octomesh is ready after ${seconds} s.`,
    "",
    `  Public origin   ${address.publicUrl}   (REST, Connect, gRPC, gRPC-Web)`,
    `  Verdict API     ${address.verdictUrl}   (TLS, for edges and backends)`,
    `  Edge            ${address.edgeUrl}${code === undefined ? "" : "   (waits for its kit until the organisation is set up)"}`,
    `  Services        ${address.services.map(({ name, mesh }) => `${name} ${mesh}`).join(", ")}   (mutual TLS)`,
    `  State           ${relative(process.cwd(), stateDir) || stateDir}/`,
    "",
    setUpCommand === undefined
      ? "  The organisation is set up: npx octomil --help"
      : `  Set up the first organisation, once:\n\n    ${setUpCommand}`,
    "",
    "  Ctrl-C drains and stops everything.",
    "",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
  if (environment.OCTOMESH_READY_JSON === "1") {
    process.stdout.write(`ready ${JSON.stringify({ ...address, stateDir, setUpCode: code, setUpCommand })}\n`);
  }
}

/** The one-time code that identity left for the first organisation; gone once it was used. */
function setUpCode(stateDir: string): string | undefined {
  const file = join(stateDir, "secrets", "set-up-code");
  return existsSync(file) ? readFileSync(file, "utf8").trim() : undefined;
}
