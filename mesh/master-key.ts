/**
 * The master key: one 256-bit key outside the database that protects every secret inside it (DESIGN 8.15).
 *
 * Its text is one key per line, `<base64url of 32 bytes>`, the current one first, older ones after it for what they
 * still protect; lines that begin with `#` are comments. A key's `kid` is derived from the key, so it needs no naming.
 */
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from "node:crypto";
import { link, mkdir, open, readFile, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";

/** Seals, opens and derives with the master key. The key itself cannot be read from it. */
export interface MasterKey {
  /** Identifier of the current key: 16 hexadecimal characters, not secret. */
  readonly kid: string;
  /**
   * Encrypts with AES-256-GCM (NIST SP 800-38D) under the current key and a random 96-bit nonce; good for 2^32
   * messages per key. `aad` binds the ciphertext to its place, such as `"identity/signing-keys/key_…"`: give the same
   * to `open`. The result is 37 bytes longer than the plaintext: version, kid, nonce, ciphertext, tag.
   */
  seal(plaintext: Uint8Array, aad: string | Uint8Array): Buffer;
  /** Decrypts what `seal` made, under whichever of the keys its header names. Throws when anything was changed. */
  open(sealed: Uint8Array, aad: string | Uint8Array): Buffer;
  /**
   * Derives 32 bytes for one purpose by HKDF-SHA-256 (RFC 5869) from the current key; `info` names the purpose. With
   * `kid`, from that key: what was derived before a rotation stays reachable.
   */
  derive(info: string, kid?: string): Buffer;
}

/** Where the key comes from: `key`, else `file`, else `<stateDir>/secrets/master.key`, made on the first start. */
export interface MasterKeyOptions {
  stateDir?: string;
  /** Path of a key file, such as a mounted secret. It must exist. */
  file?: string;
  /** The text of a key file, from the environment. */
  key?: string;
  /** Name of the variable that `key` or `file` came from, for error messages. */
  variable?: string;
}

const version = 1;
const kidBytes = 8;
const nonceBytes = 12;
const tagBytes = 16;
const headerBytes = 1 + kidBytes + nonceBytes;

/**
 * Opens the master key. Fails, naming the variable or file, when it is missing, malformed, readable by others (mode
 * other than 0600 or 0400 on a file of our own state folder), or when nothing says where it is.
 */
export async function openMasterKey(options: MasterKeyOptions): Promise<MasterKey> {
  if (options.key !== undefined) return createMasterKey(parseKeys(options.key, options.variable ?? "master key"));
  if (options.file !== undefined) {
    const source = options.variable === undefined ? options.file : `${options.variable} (${options.file})`;
    const content = await readFile(options.file, "utf8").catch((error: NodeJS.ErrnoException) => {
      throw new Error(`${source}: cannot read the master key: ${error.code}`, { cause: error });
    });
    return createMasterKey(parseKeys(content, source));
  }
  if (options.stateDir === undefined) throw new Error("the master key needs a state folder, a file or a key");
  const file = join(options.stateDir, "secrets", "master.key");
  return createMasterKey(parseKeys(await readOrCreate(file), file));
}

/** Makes a master key of raw keys, 32 bytes each, the current one first. */
export function createMasterKey(keys: readonly Uint8Array[]): MasterKey {
  const ring = new Map(keys.map((key) => [kidOf(key), Buffer.from(key)]));
  const current = keys[0];
  if (current === undefined || keys.some((key) => key.length !== 32)) throw new TypeError("a master key is 32 bytes");
  const kid = kidOf(current);

  function keyOf(wanted: string): Buffer {
    const key = ring.get(wanted);
    if (key === undefined) throw new Error(`the master key ${wanted} is not among the configured ones`);
    return key;
  }

  return {
    kid,
    seal(plaintext, aad) {
      const header = Buffer.concat([Buffer.of(version), Buffer.from(kid, "hex"), randomBytes(nonceBytes)]);
      const cipher = createCipheriv("aes-256-gcm", sealingKey(keyOf(kid)), header.subarray(1 + kidBytes));
      cipher.setAAD(Buffer.concat([header, Buffer.from(aad)]));
      return Buffer.concat([header, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
    },
    open(sealed, aad) {
      const bytes = Buffer.from(sealed);
      if (bytes.length < headerBytes + tagBytes || bytes[0] !== version) throw new Error("not a sealed secret");
      const header = bytes.subarray(0, headerBytes);
      const key = sealingKey(keyOf(header.subarray(1, 1 + kidBytes).toString("hex")));
      const decipher = createDecipheriv("aes-256-gcm", key, header.subarray(1 + kidBytes), {
        authTagLength: tagBytes,
      });
      decipher.setAAD(Buffer.concat([header, Buffer.from(aad)]));
      decipher.setAuthTag(bytes.subarray(-tagBytes));
      try {
        return Buffer.concat([decipher.update(bytes.subarray(headerBytes, -tagBytes)), decipher.final()]);
      } catch (error) {
        throw new Error("the sealed secret was changed, or belongs to another place", { cause: error });
      }
    },
    derive(info, wanted = kid) {
      return hkdf(keyOf(wanted), `derive/${info}`);
    },
  };
}

/** Sealing and deriving never share a key with each other. */
function sealingKey(key: Buffer): Buffer {
  return hkdf(key, "seal");
}

function hkdf(key: Buffer, info: string): Buffer {
  return Buffer.from(hkdfSync("sha256", key, Buffer.alloc(0), `octomesh master key v1/${info}`, 32));
}

function kidOf(key: Uint8Array): string {
  return createHash("sha256")
    .update("octomesh kid v1\0")
    .update(key)
    .digest("hex")
    .slice(0, 2 * kidBytes);
}

function parseKeys(content: string, source: string): Buffer[] {
  const lines = content
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
  const keys = lines.map((line) => Buffer.from(line, "base64url"));
  if (keys.length === 0 || keys.length > 16 || lines.some((line) => !/^[\w-]{43}=?$/.test(line))) {
    throw new Error(`${source}: expected 32 random bytes in base64url, one key per line, the current one first`);
  }
  return keys;
}

async function readOrCreate(file: string): Promise<string> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  for (;;) {
    try {
      const { mode } = await stat(file);
      if ((mode & 0o077) !== 0) {
        throw new Error(`${file}: others may read the master key (mode ${(mode & 0o777).toString(8)}); chmod 600 it`);
      }
      return await readFile(file, "utf8");
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) throw error;
    }
    // Complete and on disk before it has its name; of several processes that start at once, one names its file.
    const temporary = `${file}.${process.pid}.${randomBytes(4).toString("hex")}`;
    const handle = await open(temporary, "wx", 0o600);
    try {
      await handle.writeFile(`${randomBytes(32).toString("base64url")}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await link(temporary, file).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
    await rm(temporary, { force: true });
  }
}
