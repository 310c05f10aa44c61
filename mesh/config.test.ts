import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  boolean,
  ConfigError,
  cidrList,
  duration,
  integer,
  list,
  oneOf,
  optionalFile,
  optionalText,
  port,
  type Reader,
  readEnvironment,
  secret,
  text,
  url,
} from "./config.ts";

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "octomesh-config-"));
});

afterEach(() => rmSync(folder, { recursive: true, force: true }));

function read<T>(reader: Reader<T>, value: string | undefined): T {
  return readEnvironment({ NAME: value }, { NAME: reader }).NAME;
}

function problem(reader: Reader<unknown>, value: string | undefined): string {
  try {
    read(reader, value);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems.join("\n");
    throw error;
  }
  return "";
}

describe("reading the environment", () => {
  it("gives every value in its type", () => {
    const environment = {
      NAME: "mesh",
      PORT: "7101",
      RATIO: "-3",
      ON: "yes",
      GRACE: "1m30s",
      ORIGIN: "https://mesh.example.com/",
      NETWORKS: "10.0.0.0/8, ::1",
      WORDS: "a, b,,c",
      LEVEL: "warn",
      KEY: "s3cret",
    };
    const values = readEnvironment(environment, {
      NAME: text(),
      PORT: port(),
      RATIO: integer(-10, 10),
      ON: boolean(false),
      GRACE: duration(0),
      ORIGIN: url(["https:"]),
      NETWORKS: cidrList(),
      WORDS: list(),
      LEVEL: oneOf(["info", "warn"]),
      KEY: secret(),
      ABSENT: optionalText(),
    });
    expect(values.NETWORKS.includes("10.1.2.3")).toBe(true);
    expect({ ...values, NETWORKS: undefined }).toEqual({
      NAME: "mesh",
      PORT: 7101,
      RATIO: -3,
      ON: true,
      GRACE: 90_000,
      ORIGIN: "https://mesh.example.com",
      NETWORKS: undefined,
      WORDS: ["a", "b", "c"],
      LEVEL: "warn",
      KEY: "s3cret",
      ABSENT: undefined,
    });
  });

  it("takes an empty variable for one that is not set, and its default then", () => {
    for (const value of [undefined, ""]) {
      expect(read(text("x"), value)).toBe("x");
      expect(read(port(8080), value)).toBe(8080);
      expect(read(boolean(true), value)).toBe(true);
      expect(read(duration(5000), value)).toBe(5000);
      expect(read(cidrList(), value).size).toBe(0);
      expect(read(list(), value)).toEqual([]);
      expect(read(secret(), value)).toBeUndefined();
      expect(read(optionalFile(), value)).toBeUndefined();
      expect(problem(text(), value)).toBe("NAME is not set: text is expected");
    }
  });

  it("names every variable that is wrong, what was found and what is expected, in one error", () => {
    const work = () =>
      readEnvironment({ A: "x", B: "70000", C: "10y" }, { A: boolean(true), B: port(), C: duration(1) });
    expect(work).toThrow(ConfigError);
    expect(work).toThrow(
      [
        "the configuration cannot be used:",
        '  A is "x": true or false is expected',
        '  B is "70000": a whole number from 0 to 65535 is expected',
        '  C is "10y": a duration such as 30s, 15m or 48h is expected',
      ].join("\n"),
    );
  });

  it("refuses what is not of the type", () => {
    for (const value of ["1.5", "1e3", "0x10", " 1", "", "--1", "NaN", "99999999999999999999"]) {
      expect([value, problem(integer(0, 1000), value)]).not.toEqual([value, ""]);
    }
    for (const value of ["ftp://example.com", "example.com", "//example.com", "https:"]) {
      expect([value, problem(url(["https:"]), value)]).not.toEqual([value, ""]);
    }
    expect(problem(duration(0, 1000, 60_000), "2m")).toMatch(/^NAME is "2m"/);
    expect(problem(duration(0, 1000, 60_000), "10ms")).toMatch(/^NAME is "10ms"/);
    expect(problem(cidrList(), "10.0.0.0/8,nonsense")).toMatch(/CIDR/);
    expect(problem(oneOf(["info", "warn"]), "loud")).toBe('NAME is "loud": one of info, warn is expected');
  });

  it("reads any whole number within its bounds, and none without", () => {
    fc.assert(
      fc.property(fc.integer(), fc.integer(), fc.integer(), (value, a, b) => {
        const [min, max] = a < b ? [a, b] : [b, a];
        const isIn = value >= min && value <= max;
        expect(problem(integer(min, max), String(value)) === "").toBe(isIn);
        if (isIn) expect(read(integer(min, max), String(value))).toBe(value);
      }),
    );
  });

  it("shows no more of a value than helps, and no password", () => {
    expect(problem(port(), "x".repeat(10_000)).length).toBeLessThan(200);
    const shown = problem(url(["https:"]), "postgres://user:hunter2@db.example.com/octomesh");
    expect(shown).toContain("db.example.com");
    expect(shown).not.toContain("hunter2");
  });
});

describe("a secret", () => {
  const both = (environment: Record<string, string>) => () => readEnvironment(environment, { KEY: secret() }).KEY;

  it("may come from a file, whose end of line is no part of it", () => {
    const file = join(folder, "key");
    writeFileSync(file, "s3cret\n");
    expect(both({ KEY_FILE: file })()).toBe("s3cret");
  });

  it("is refused from two places, or from a file that cannot be one, without ever being shown", () => {
    const file = join(folder, "key");
    writeFileSync(file, "");
    expect(both({ KEY: "hunter2", KEY_FILE: file })).toThrow("KEY and KEY_FILE are both set");
    expect(both({ KEY: "hunter2", KEY_FILE: file })).not.toThrow(/hunter2/);
    expect(both({ KEY_FILE: file })).toThrow(`KEY_FILE: ${file} is empty`);
    expect(both({ KEY_FILE: join(folder, "none") })).toThrow(/KEY_FILE: .* cannot be read \(ENOENT\)/);
    expect(both({ KEY_FILE: folder })).toThrow(/EISDIR/);
    writeFileSync(file, "x".repeat(70_000));
    expect(both({ KEY_FILE: file })).toThrow(/larger than a secret/);
  });
});

describe("a file", () => {
  it("must be there, and be one", () => {
    const file = join(folder, "cert.pem");
    writeFileSync(file, "x");
    mkdirSync(join(folder, "sub"));
    expect(read(optionalFile(), file)).toBe(file);
    expect(problem(optionalFile(), join(folder, "none"))).toMatch(/a file that can be read is expected \(ENOENT\)/);
    expect(problem(optionalFile(), join(folder, "sub"))).toMatch(/a file is expected/);
  });
});
