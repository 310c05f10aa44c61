import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { admitsEdges } from "@octomesh/mesh/contract";
import { listenPlain } from "@octomesh/mesh/listen";
import { portsOf, type ServiceName, serviceNames, variableOf } from "@octomesh/mesh/service-name";
import { defaultTrustDomain, openDevelopmentAuthority } from "@octomesh/mesh/tls";
import { bundleServices } from "./bundle-services.ts";
import { createForwarder } from "./forwarder.ts";
import {
  edgePortVariable,
  edgeUrlOf,
  type Launch,
  type MeshAddress,
  publicUrlOf,
  serviceEnvironment,
} from "./one-process.ts";

const cache = new URL("../.cache/", import.meta.url);
const readyTimeoutMs = 60_000;
const stopTimeoutMs = 15_000;

/** Starts one process for each service, and a forwarder that is the one public origin (development only). */
export async function startProcesses(launch: Launch): Promise<MeshAddress> {
  const { options, shutdown, log } = launch;
  const ports = new Map<ServiceName, ReturnType<typeof portsOf>>();
  for (const name of serviceNames) {
    ports.set(
      name,
      options.ephemeralPorts
        ? { mesh: await freePort(), public: await freePort(), admin: await freePort() }
        : portsOf(name),
    );
  }
  const portOf = (name: ServiceName): ReturnType<typeof portsOf> => ports.get(name) ?? portsOf(name);
  const environment = serviceEnvironment(launch, publicUrlOf(launch));
  // The forwarder is what the public reaches: the services behind it are known by the mesh's own certificates.
  delete environment.OCTOMESH_PUBLIC_TLS_KEY_FILE;
  delete environment.OCTOMESH_PUBLIC_TLS_CERT_FILE;
  const authorities = [await portAuthority(environment)];
  const forwarder = createForwarder({
    urlOf: (name) => `${admitsEdges(name) ? "https" : "http"}://127.0.0.1:${portOf(name).public}`,
    authorities,
    log,
  });
  shutdown.add("forwarder", () => forwarder.close());
  const listener = await listenPlain({
    host: options.host,
    port: options.port,
    portVariable: "OCTOMESH_PUBLIC_PORT (or --port)",
    allowPlaintext: launch.environment.OCTOMESH_ALLOW_PLAINTEXT === "true",
    log,
    handler: forwarder.handle,
  });
  shutdown.add("public origin", () => listener.close(10_000));
  const postgres = await launch.openPostgres();
  const publicUrl = publicUrlOf(launch) ?? `http://localhost:${listener.port}`;

  environment.OCTOMESH_PUBLIC_URL = publicUrl;
  // The services listen to this machine alone, where the forwarder is the only proxy in front of them; it says where its
  // callers came from.
  environment.OCTOMESH_HOST = "127.0.0.1";
  environment.OCTOMESH_TRUSTED_PROXIES ??= "127.0.0.1/32";
  if (options.ephemeralPorts) environment[edgePortVariable] ??= String(await freePort());
  for (const name of serviceNames) {
    const own = `OCTOMESH_${variableOf(name)}`;
    const { mesh, public: publicPort, admin } = portOf(name);
    environment[`${own}_URL`] ??= `https://127.0.0.1:${mesh}`;
    environment[`${own}_MESH_PORT`] = String(mesh);
    environment[`${own}_PUBLIC_PORT`] = String(publicPort);
    environment[`${own}_ADMIN_PORT`] = String(admin);
    const urls = await postgres.urls(name);
    environment[`${own}_DATABASE_URL`] ??= urls.url;
    environment[`${own}_MIGRATION_URL`] ??= urls.migrationUrl;
  }
  const children = new Map<ServiceName, ChildProcess>();
  shutdown.add("services", async () => {
    // As in one process: those that follow others first, identity last.
    const followed = [children.get("rollout"), children.get("identity")];
    await Promise.all([...children.values()].filter((child) => !followed.includes(child)).map(stop));
    for (const child of followed) if (child !== undefined) await stop(child);
  });
  await sweepBundles();
  const outdir = fileURLToPath(new URL(`services-${process.pid}`, cache));
  shutdown.add("bundles", () => rm(outdir, { recursive: true, force: true }));
  const bundles = await bundleServices(outdir);
  for (const [name, main] of bundles) {
    const child = spawn(process.execPath, [...heapFlags(environment.NODE_OPTIONS), "--enable-source-maps", main], {
      env: own(environment, name),
      // The channel closes with this process, however it ends: then the service ends too.
      stdio: ["ignore", "inherit", "inherit", "ipc"],
      // A group of its own, so that Ctrl-C reaches the launcher alone and the order of ending is its.
      detached: true,
    });
    children.set(name, child);
    child.once("error", (error) => log.error({ service: name, err: error }, "a service could not be started"));
    child.once("exit", (code, signal) => {
      if (shutdown.signal.aborted) return;
      log.error({ service: name, code, signal }, "a service ended by itself");
      process.stderr.write(`${name} ended (${signal ?? code}): stopping\n`);
      shutdown.run("a service ended").finally(() => process.exit(1));
    });
  }
  await Promise.all(serviceNames.map((name) => untilReady(name, portOf(name).admin, shutdown.signal)));
  return {
    publicUrl,
    verdictUrl: environment.OCTOMESH_VERDICT_PUBLIC_URL || `https://localhost:${portOf("verdict").public}`,
    edgeUrl: edgeUrlOf(environment),
    services: serviceNames.map((name) => ({ name, mesh: portOf(name).mesh, admin: portOf(name).admin })),
  };
}

/**
 * Below a heap limit of some 2 GB, V8 lets garbage pile up to twice what lives instead of four times, which keeps services
 * with 10,000 sessions under way at 210 MB instead of 350 (`npm run bench -- in-flight`). None comes near the limit.
 */
function heapFlags(nodeOptions = ""): string[] {
  return nodeOptions.includes("max-old-space-size") ? [] : ["--max-old-space-size=1024"];
}

/** The authority of the certificates on the services' own public ports: that of their mesh identities. */
async function portAuthority(environment: Readonly<Record<string, string>>): Promise<string> {
  const bundle = environment.OCTOMESH_TLS_BUNDLE_FILE;
  if (bundle) return readFile(bundle, "utf8");
  const trustDomain = environment.OCTOMESH_TRUST_DOMAIN || defaultTrustDomain;
  return (await openDevelopmentAuthority(environment.OCTOMESH_STATE_DIR ?? "", trustDomain)).bundle;
}

/** Removes what launchers left that were killed. */
async function sweepBundles(): Promise<void> {
  for (const name of await readdir(cache).catch(() => [])) {
    const pid = Number(/^services-(\d+)$/.exec(name)?.[1]);
    if (pid > 0 && !isAlive(pid)) await rm(new URL(`${name}/`, cache), { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** A service gets its own database's password and no other's. */
function own(environment: Record<string, string>, name: ServiceName): Record<string, string> {
  const others = serviceNames.filter((each) => each !== name).map((each) => `OCTOMESH_${variableOf(each)}_`);
  return Object.fromEntries(
    Object.entries(environment).filter(
      ([key]) => !others.some((prefix) => key.startsWith(prefix) && /_(DATABASE|MIGRATION)_URL$/.test(key)),
    ),
  );
}

async function untilReady(name: ServiceName, port: number, signal: AbortSignal): Promise<void> {
  const deadline = Date.now() + readyTimeoutMs;
  let problem = "no answer";
  while (!signal.aborted) {
    try {
      const response = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(2000) });
      problem = (await response.text()).trim();
      if (response.ok) return;
    } catch {
      problem = "no answer";
    }
    if (Date.now() > deadline) throw new Error(`${name} was not ready after ${readyTimeoutMs / 1000} s: ${problem}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`stopped before ${name} was ready`);
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), stopTimeoutMs);
  await exited;
  clearTimeout(timer);
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (typeof address !== "object" || address === null) throw new Error("the system gave no port");
  return address.port;
}
