import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startEmbeddedPostgres } from "@octomesh/mesh/embedded-postgres";
import { createShutdown } from "@octomesh/mesh/shutdown";
import { pino } from "pino";
import { type MeshAddress, startInOneProcess } from "../launcher/one-process.ts";

/** A whole mesh in this process, with a database of its own. */
export interface StartedMesh extends MeshAddress {
  readonly stateDir: string;
  /** URL of the database's superuser, for looking behind the services. */
  readonly adminUrl: string;
  /** Ends everything and removes the state. */
  stop(): Promise<void>;
}

/** Starts all six services on ports of the system's choice, as `npm start` does. */
export async function startMesh(environment: Record<string, string> = {}): Promise<StartedMesh> {
  const stateDir = await mkdtemp(join(tmpdir(), "octomesh-e2e-"));
  const log = pino({ level: "silent" });
  const shutdown = createShutdown(log);
  shutdown.add("state", () => rm(stateDir, { recursive: true, force: true }));
  try {
    let adminUrl = "";
    const openPostgres = async () => {
      const postgres = await startEmbeddedPostgres({ stateDir, log, unsafeFast: true });
      shutdown.add("postgres", () => postgres.stop());
      adminUrl = postgres.adminUrl;
      return postgres;
    };
    const address = await startInOneProcess({
      options: { processes: false, stateDir, port: 0, host: "127.0.0.1", ephemeralPorts: true, help: false },
      environment: { OCTOMESH_LOG_LEVEL: "silent", ...environment },
      openPostgres,
      log,
      shutdown,
    });
    return { ...address, stateDir, adminUrl, stop: () => shutdown.run("the test ended") };
  } catch (error) {
    await shutdown.run("the start failed");
    throw error;
  }
}
