import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../", import.meta.url));
const run = promisify(execFile);

describe("the generated documents", () => {
  it.each(["policy-docs", "openapi"])("of tools/%s.mjs are what the contract says", async (tool) => {
    const { stdout } = await run(process.execPath, [`tools/${tool}.mjs`, "--check"], { cwd: root });
    expect(stdout).toContain("up to date");
  });
});
