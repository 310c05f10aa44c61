#!/usr/bin/env node
// Starts the octomil command. In a published package the bundle is there; in a source checkout it is built when it is
// not current.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  process.stderr.write(`error: octomil needs Node 20.19 or newer, this is ${process.versions.node}\n`);
  process.exit(1);
}

// Only a source checkout has the sources beside the bundle.
if (existsSync(fileURLToPath(new URL("../octomil.ts", import.meta.url)))) {
  const { buildCli } = await import("../build.mjs");
  await buildCli();
}
await import("../dist/octomil.js");
