import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { readRuntimeConfig } from "../runtime-config.ts";
import { type RunningService, startService } from "../serve.ts";
import type { CreateService } from "../service.ts";
import type { ServiceName } from "../service-name.ts";
import { createFakeIdentity, type FakeIdentity } from "./fake-identity.ts";

/** A part of the mesh that really listens, with a hand-written identity. */
export interface TestMesh {
  readonly identity: FakeIdentity;
  readonly stateDir: string;
  /** Everything that was logged, as JSON lines. */
  readonly logged: string[];
  service(name: ServiceName): RunningService;
  /** `http://127.0.0.1:port` of a service's public port. */
  publicUrl(name: ServiceName): string;
  /** `https://127.0.0.1:port` of a service's mesh port. */
  meshUrl(name: ServiceName): string;
  stop(): Promise<void>;
}

/** Starts the fake identity and the given services on ports of the system's choice. */
export async function startTestMesh(options: {
  services: Partial<Record<ServiceName, CreateService>>;
  environment?: Record<string, string>;
  /** Prepares the identity before anybody asks it. */
  prepare?(identity: FakeIdentity): void;
}): Promise<TestMesh> {
  const stateDir = await mkdtemp(join(tmpdir(), "octomesh-test-"));
  const identity = await createFakeIdentity();
  options.prepare?.(identity);
  const logged: string[] = [];
  const log = pino({ level: "trace" }, { write: (line: string) => void logged.push(line) });
  const running = new Map<ServiceName, RunningService>();
  const creators: [ServiceName, CreateService][] = [
    ["identity", identity.create],
    ...(Object.entries(options.services) as [ServiceName, CreateService][]),
  ];
  const portOf = (name: ServiceName): number => running.get(name)?.ports.mesh ?? 9;
  for (const [name, create] of creators) {
    const config = readRuntimeConfig(name, { OCTOMESH_STATE_DIR: stateDir, ...options.environment });
    running.set(
      name,
      await startService({
        name,
        create,
        config: { ...config, ports: { mesh: 0, public: 0, admin: 0 }, graceMs: 2000 },
        environment: options.environment ?? {},
        urlOf: (sibling) => `https://127.0.0.1:${portOf(sibling)}`,
        log,
      }),
    );
  }
  await Promise.all([...running.values()].map((service) => service.ready()));
  const service = (name: ServiceName): RunningService => {
    const found = running.get(name);
    if (found === undefined) throw new Error(`${name} does not run`);
    return found;
  };
  return {
    identity,
    stateDir,
    logged,
    service,
    publicUrl: (name) => `http://127.0.0.1:${service(name).ports.public}`,
    meshUrl: (name) => `https://127.0.0.1:${service(name).ports.mesh}`,
    async stop() {
      await Promise.all([...running.values()].reverse().map((each) => each.stop()));
      await rm(stateDir, { recursive: true, force: true });
    },
  };
}
