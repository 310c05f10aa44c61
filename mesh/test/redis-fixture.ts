import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { tmpdir } from "node:os";

/** A Redis of a test's own. */
export interface TestRedis {
  readonly url: string;
  /** Holds the server still, so that it takes connections and answers nothing, or lets it go on. */
  hold(still: boolean): void;
  stop(): Promise<void>;
}

/** Why the tests on Redis cannot run here; undefined where they can. On CI they must, so there is no reason then. */
export function reasonToSkipRedis(): string | undefined {
  const found = spawnSync("redis-server", ["--version"]).status === 0;
  return found || process.env.CI === "true" ? undefined : "redis-server is not installed";
}

/** Starts a Redis without persistence, on the given port or one that is free. Throws where there is none. */
export async function startTestRedis(port?: number): Promise<TestRedis & { readonly port: number }> {
  const chosen = port ?? (await freePort());
  const options = ["--port", String(chosen), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
  const child = spawn("redis-server", options, {
    stdio: ["ignore", "pipe", "ignore"],
    // What a test switches on is written there, and not beside the sources.
    cwd: tmpdir(),
  });
  await ready(child);
  return {
    url: `redis://127.0.0.1:${chosen}`,
    port: chosen,
    hold: (still) => child.kill(still ? "SIGSTOP" : "SIGCONT"),
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
    },
  };
}

async function ready(child: ChildProcess): Promise<void> {
  let text = "";
  await new Promise<void>((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`redis-server ended with ${code}: ${text}`)));
    child.stdout?.on("data", (chunk) => {
      text += chunk;
      if (/ready to accept connections/i.test(text)) resolve();
    });
  });
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return address.port;
}
