import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test, vi } from "vitest";
import { createLab, labAvailable, removeStaleNamespaces } from "./lab.ts";

const missing = labAvailable();
const skip = missing.length > 0 && process.env.CI !== "true";

afterEach(() => vi.unstubAllEnvs());

test("what is missing is said by its name and package", () => {
  vi.stubEnv("PATH", "/nonexistent");
  expect(labAvailable(["wg", "tinyproxy"])).toEqual(
    expect.arrayContaining(["ip (iproute2)", "wg (wireguard-tools)", "tinyproxy"]),
  );
});

describe.skipIf(skip)(`laboratories${skip ? ` (missing: ${missing.join(", ")})` : ""}`, () => {
  const holders: ChildProcess[] = [];
  const hold = async () => {
    const program = fileURLToPath(new URL("hold-lab.ts", import.meta.url));
    const child = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), program], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    holders.push(child);
    const [line] = await once(child.stdout, "data");
    const { names } = JSON.parse(String(line)) as { names: string[] };
    return { child, names };
  };
  const present = (names: readonly string[]) => {
    const listed = spawnSync("ip", ["netns", "list"], { encoding: "utf8" }).stdout;
    return names.filter((name) => listed.includes(name));
  };
  afterEach(() => {
    for (const child of holders.splice(0)) child.kill("SIGKILL");
    removeStaleNamespaces();
  });

  test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "%s removes a laboratory and ends its process",
    async (signal) => {
      const { child, names } = await hold();
      expect(present(names)).toEqual(names);
      child.kill(signal);
      expect(await once(child, "exit")).toEqual([null, signal]);
      expect(present(names)).toEqual([]);
    },
  );

  test("what a crash leaves is removed, and a laboratory that lives is not", async () => {
    const [crashed, living] = await Promise.all([hold(), hold()]);
    crashed.child.kill("SIGKILL");
    await once(crashed.child, "exit");
    expect(present(crashed.names)).toEqual(crashed.names);
    const removed = removeStaleNamespaces();
    expect(removed).toEqual(expect.arrayContaining(crashed.names));
    expect(present(crashed.names)).toEqual([]);
    expect(present(living.names)).toEqual(living.names);
  });

  test("a laboratory that cannot be made leaves nothing behind", async () => {
    const before = spawnSync("ip", ["netns", "list"], { encoding: "utf8" }).stdout.match(/om-\d+-\S+/g) ?? [];
    const routes = [{ namespace: "one", to: "default", via: "192.0.2.1" }];
    await expect(createLab({ namespaces: ["one"], links: [], routes })).rejects.toThrow("route add default");
    const mine = `om-${process.pid}-`;
    const after = spawnSync("ip", ["netns", "list"], { encoding: "utf8" }).stdout.match(/om-\d+-\S+/g) ?? [];
    expect(after.filter((name) => name.startsWith(mine))).toEqual(before.filter((name) => name.startsWith(mine)));
  });
});
