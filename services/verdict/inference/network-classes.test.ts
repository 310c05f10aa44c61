import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openInference } from "./infer.ts";
import { findNetworkTable, openNetworkClasses } from "./network-classes.ts";

const tool = (await import(new URL("../../../tools/hosting-networks.mjs", import.meta.url).href)) as {
  hostingNetworks(): boolean;
  classOf(number: number, name: string): number | undefined;
};
let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "octomesh-networks-"));
  tool.hostingNetworks();
});
afterAll(() => rm(folder, { recursive: true, force: true }));

test("the table classes addresses of both versions", async () => {
  const file = findNetworkTable();
  if (file === undefined) throw new Error("no table was made");
  const classes = await openNetworkClasses(file);
  // Amazon, Hetzner, OVH, DigitalOcean.
  for (const address of ["3.5.140.2", "88.198.1.1", "51.68.1.1", "::ffff:104.131.1.1", "2a01:4f8::1", "2604:a880::1"]) {
    expect([address, classes(address)]).toEqual([address, "hosting"]);
  }
  // Viasat, Hughes, T-Mobile USA.
  for (const address of ["5.8.184.1", "65.88.96.1", "2001:4870:150::1"]) {
    expect([address, classes(address)]).toEqual([address, "splitting-carrier"]);
  }
  // Deutsche Telekom, Comcast, and what is no address.
  for (const address of ["87.128.1.1", "73.1.1.1", "2003::1", "10.0.0.1", "0.0.0.0", "::", "fe80::1%eth0", "x", ""]) {
    expect([address, classes(address)]).toEqual([address, undefined]);
  }
});

test("names that share words with hosters are not classed", () => {
  for (const name of [
    "University of Colorado Denver",
    "State of Colorado General Government Computer",
    "COLOMBIA TELECOMUNICACIONES S.A. ESP",
    "NetCologne Gesellschaft fur Telekommunikation mbH",
    "The Cloud Networks Limited",
    "AFRIHOST SP (PTY) LTD",
    "Deutsche Telekom AG",
    "Howard Hughes Medical Institute",
    "Space Exploration Technologies Corporation",
  ]) {
    expect([name, tool.classOf(65_000, name)]).toEqual([name, undefined]);
  }
  expect(tool.classOf(65_000, "Hostinger International Limited")).toBe(undefined);
  expect(tool.classOf(65_000, "Interserver, Inc")).toBe(undefined);
  expect(tool.classOf(65_000, "A2 Hosting, Inc.")).toBe(0);
  expect(tool.classOf(65_000, "ViaSat,Inc.")).toBe(1);
});

test("ranges hold their first and last addresses, and no neighbour", async () => {
  const file = join(folder, "small.bin");
  const head = Buffer.from("octomesh networks 1\n", "latin1");
  const body = Buffer.alloc(8 + 9 + 17);
  body.writeUInt32BE(1, 0);
  body.writeUInt32BE(1, 4);
  body.writeUInt32BE(0xc6336400, 8);
  body.writeUInt32BE(0xc63364ff, 12);
  body.writeUInt8(1, 16);
  body.writeBigUInt64BE(0x20010db800010000n, 17);
  body.writeBigUInt64BE(0x20010db80001ffffn, 25);
  await writeFile(file, Buffer.concat([head, body]));
  const classes = await openNetworkClasses(file);
  expect(["198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"].map(classes)).toEqual([
    "splitting-carrier",
    "splitting-carrier",
    undefined,
    undefined,
  ]);
  expect(["2001:db8:1::", "2001:db8:1:ffff:ffff::1", "2001:db8:2::", "2001:db8::"].map(classes)).toEqual([
    "hosting",
    "hosting",
    undefined,
    undefined,
  ]);
});

test("without a table, or with a broken one, the engine works and the log says why", async () => {
  const broken = join(folder, "broken.bin");
  await writeFile(broken, "octomesh networks 1\nabcdefgh");
  for (const networkTable of [join(folder, "missing.bin"), broken]) {
    const lines: string[] = [];
    const log = pino({ level: "info" }, { write: (line: string) => void lines.push(line) });
    const engine = await openInference({ log, networkTable });
    expect(engine.infer).toBeTypeOf("function");
    expect(lines).toHaveLength(1);
    expect(JSON.parse(lines[0] ?? "")).toMatchObject({ level: 40, reason: "the table of networks cannot be read" });
  }
});
