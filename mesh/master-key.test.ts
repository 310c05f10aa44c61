import { randomBytes } from "node:crypto";
import { chmod, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { createMasterKey, openMasterKey } from "./master-key.ts";

const folder = await mkdtemp(join(tmpdir(), "octomesh-test-key-"));
afterAll(() => rm(folder, { recursive: true, force: true }));
const key = randomBytes(32);

describe("seal and open", () => {
  it("give back what was sealed, for its own place only", () => {
    const master = createMasterKey([key]);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.string(), fc.string(), (plaintext, aad, other) => {
        const sealed = master.seal(plaintext, aad);
        expect(sealed.length).toBe(plaintext.length + 37);
        expect(Buffer.compare(master.open(sealed, aad), plaintext)).toBe(0);
        if (other !== aad) expect(() => master.open(sealed, other)).toThrow("was changed, or belongs to another place");
      }),
    );
  });

  it("notice any changed bit and any missing byte", () => {
    const master = createMasterKey([key]);
    const sealed = master.seal(Buffer.from("a secret"), "here");
    fc.assert(
      fc.property(fc.integer({ min: 0, max: sealed.length * 8 - 1 }), (bit) => {
        const changed = Buffer.from(sealed);
        changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
        expect(() => master.open(changed, "here")).toThrow();
      }),
    );
    for (let length = 0; length < sealed.length; length++) {
      expect(() => master.open(sealed.subarray(0, length), "here")).toThrow();
    }
  });

  it("never repeat a ciphertext", () => {
    const master = createMasterKey([key]);
    expect(master.seal(Buffer.from("x"), "")).not.toEqual(master.seal(Buffer.from("x"), ""));
  });

  it("still open under a former key after a rotation, and not without it", () => {
    const before = createMasterKey([key]);
    const sealed = before.seal(Buffer.from("old"), "p");
    const after = createMasterKey([randomBytes(32), key]);
    expect(after.open(sealed, "p").toString()).toBe("old");
    expect(after.kid).not.toBe(before.kid);
    expect(after.derive("x", before.kid)).toEqual(before.derive("x"));
    expect(() => createMasterKey([randomBytes(32)]).open(sealed, "p")).toThrow("not among the configured ones");
  });
});

describe("derive", () => {
  it("is stable, differs by purpose and by key, and is not the key", () => {
    const master = createMasterKey([Buffer.alloc(32, 7)]);
    expect(master.derive("a")).toEqual(createMasterKey([Buffer.alloc(32, 7)]).derive("a"));
    expect(master.derive("a")).not.toEqual(master.derive("b"));
    expect(master.derive("a")).not.toEqual(createMasterKey([key]).derive("a"));
    expect(master.derive("a")).toHaveLength(32);
    expect(JSON.stringify(master)).not.toContain(Buffer.alloc(32, 7).toString("base64url"));
  });
});

describe("openMasterKey", () => {
  it("makes the file on the first start, 0600, and finds the same key on the next", async () => {
    const stateDir = join(folder, "state");
    const opened = await Promise.all([1, 2, 3].map(() => openMasterKey({ stateDir })));
    expect(new Set(opened.map((master) => master.kid)).size).toBe(1);
    const secrets = join(stateDir, "secrets");
    expect(await readdir(secrets)).toEqual(["master.key"]);
    expect((await stat(join(secrets, "master.key"))).mode & 0o777).toBe(0o600);
    expect((await stat(secrets)).mode & 0o777).toBe(0o700);
    expect((await openMasterKey({ stateDir })).kid).toBe(opened[0]?.kid);
  });

  it("refuses a file that others may read", async () => {
    const stateDir = join(folder, "open");
    await openMasterKey({ stateDir });
    await chmod(join(stateDir, "secrets", "master.key"), 0o644);
    await expect(openMasterKey({ stateDir })).rejects.toThrow("others may read the master key (mode 644)");
  });

  it("reads a key from a file or a variable, with comments and former keys", async () => {
    const file = join(folder, "keys");
    await writeFile(
      file,
      `# current\n${key.toString("base64url")}\n\n# former\n${randomBytes(32).toString("base64url")}\n`,
    );
    expect((await openMasterKey({ file })).kid).toBe(createMasterKey([key]).kid);
    expect((await openMasterKey({ key: key.toString("base64url") })).kid).toBe(createMasterKey([key]).kid);
  });

  it("names the source of a malformed or missing key and never shows it", async () => {
    const wrong = "not-a-key-but-secret";
    const error = await openMasterKey({ key: wrong, variable: "OCTOMESH_MASTER_KEY" }).catch(String);
    expect(error).toContain("OCTOMESH_MASTER_KEY: expected 32 random bytes in base64url");
    expect(error).not.toContain(wrong);
    await expect(openMasterKey({ file: join(folder, "none"), variable: "KEY_FILE" })).rejects.toThrow(
      /^KEY_FILE \(.*ENOENT/,
    );
    await expect(openMasterKey({ key: "" })).rejects.toThrow("expected 32 random bytes");
    await expect(openMasterKey({})).rejects.toThrow("needs a state folder");
  });
});
