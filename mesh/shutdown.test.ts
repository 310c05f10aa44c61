import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { pino } from "pino";
import { afterEach, describe, expect, it } from "vitest";
import { createShutdown } from "./shutdown.ts";

const log = pino({ level: "silent" });

describe("a shutdown", () => {
  it("ends what was opened in reverse, each before the next, and once", async () => {
    const shutdown = createShutdown(log);
    const events: string[] = [];
    for (const name of ["database", "service", "listener"]) {
      shutdown.add(name, async () => {
        events.push(`${name} ending`);
        await Promise.resolve();
        events.push(`${name} ended`);
      });
    }
    shutdown.signal.addEventListener("abort", () => events.push("aborted"));
    await Promise.all([shutdown.run("one"), shutdown.run("two")]);
    expect(events).toEqual([
      "aborted",
      "listener ending",
      "listener ended",
      "service ending",
      "service ended",
      "database ending",
      "database ended",
    ]);
  });

  it("ends the others where one throws, rejects or hangs", async () => {
    const shutdown = createShutdown(log, 20);
    const events: string[] = [];
    shutdown.add("good", () => void events.push("good"));
    shutdown.add("throws", () => {
      throw new Error("throws");
    });
    shutdown.add("rejects", () => Promise.reject(new Error("rejects")));
    shutdown.add("hangs", () => new Promise(() => undefined));
    await shutdown.run("test");
    expect(events).toEqual(["good"]);
  });

  it("ends what is opened while it runs, or after", async () => {
    const shutdown = createShutdown(log);
    const events: string[] = [];
    shutdown.add("early", () => {
      shutdown.add("during", () => void events.push("during"));
    });
    await shutdown.run("test");
    shutdown.add("after", () => void events.push("after"));
    expect(events).toEqual(["during", "after"]);
  });
});

describe("a process", () => {
  const children: ChildProcess[] = [];

  afterEach(() => {
    for (const child of children.splice(0)) child.kill("SIGKILL");
  });

  async function start(
    behaviour: string,
  ): Promise<{ child: ChildProcess; lines: string[]; until(line: string): Promise<void> }> {
    const file = fileURLToPath(new URL("test/shutdown-process.ts", import.meta.url));
    const child = spawn(process.execPath, ["--import", "tsx", file, behaviour], {
      stdio: ["ignore", "pipe", "inherit", "ipc"],
    });
    children.push(child);
    const lines: string[] = [];
    createInterface({ input: child.stdout! }).on("line", (line) => lines.push(line));
    return { child, lines, until: (line) => expect.poll(() => lines, { timeout: 20_000 }).toContain(line) };
  }

  async function exit(child: ChildProcess): Promise<unknown> {
    const [code] = await once(child, "close");
    return code;
  }

  it.each(["SIGINT", "SIGTERM"] as const)("drains on %s and exits 0", async (signal) => {
    const { child, lines, until } = await start("");
    await until("ready");
    child.kill(signal);
    expect(await exit(child)).toBe(0);
    expect(lines).toEqual(["ready", "aborted", "second ending", "second ended", "first ended"]);
  });

  it("exits at once on a second SIGINT, and takes a second SIGTERM for the first", async () => {
    const { child, until } = await start("hang");
    await until("ready");
    child.kill("SIGTERM");
    await until("second ending");
    child.kill("SIGTERM");
    child.kill("SIGINT");
    expect(await exit(child)).toBe(130);
  });

  it("drains and exits where its parent goes away without a word", async () => {
    const { child, lines, until } = await start("");
    await until("ready");
    child.disconnect();
    expect(await once(child, "exit")).toEqual([0, null]);
    await expect.poll(() => lines).toContain("first ended");
  });

  it.each(["throw", "reject"])("drains and exits 1 where nobody caught a %s", async (behaviour) => {
    const { child, lines } = await start(behaviour);
    expect(await exit(child)).toBe(1);
    expect(lines).toContain("first ended");
  });

  it("exits 1, and drains to the end, where something is thrown while it drains", async () => {
    const { child, lines, until } = await start("throw-late");
    await until("ready");
    child.kill("SIGTERM");
    expect(await exit(child)).toBe(1);
    expect(lines).toContain("first ended");
  });
});
