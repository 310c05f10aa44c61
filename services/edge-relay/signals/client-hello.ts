/**
 * A TLS ClientHello, as far as it tells one program from another. Numbers are in the order of the message, GREASE
 * included.
 */
export interface ClientHello {
  /** Length of the handshake message, its header included, bytes. */
  readonly length: number;
  readonly legacyVersion: number;
  readonly cipherSuites: readonly number[];
  /** Kinds of the extensions. */
  readonly extensions: readonly number[];
  /** Content of `supported_versions`; empty without it. */
  readonly supportedVersions: readonly number[];
  /** Content of `signature_algorithms`; empty without it. */
  readonly signatureAlgorithms: readonly number[];
  /** The first protocol of ALPN, raw bytes; undefined without one. */
  readonly firstAlpn: Buffer | undefined;
  readonly hasServerName: boolean;
}

/** Kinds of extensions (IANA, TLS ExtensionType Values). */
export const extensionTypes = { serverName: 0, signatureAlgorithms: 13, alpn: 16, supportedVersions: 43 } as const;

/**
 * Whether a number is one of those that clients mix in at random, so that servers keep ignoring what they do not
 * know (RFC 8701).
 */
export function isGrease(value: number): boolean {
  return (value & 0x0f0f) === 0x0a0a && value >> 8 === (value & 0xff);
}

/**
 * Reads the ClientHello at the start of a TLS connection: one handshake message, of which the records may split.
 * Undefined for bytes that hold none whole and well formed. Never throws; its work is linear in the bytes.
 *
 * Source: RFC 8446 sections 4, 4.1.2, 4.2 and 5.1.
 */
export function parseClientHello(bytes: Buffer): ClientHello | undefined {
  const message = readHandshake(bytes);
  if (message === undefined) return undefined;
  const body = new Reader(message);
  const legacyVersion = body.u16();
  body.skip(32);
  body.vector(1);
  const cipherSuites = body.vector(2)?.u16s();
  body.vector(1);
  if (legacyVersion === undefined || cipherSuites === undefined || body.failed) return undefined;
  // Before TLS 1.3 a ClientHello may end here.
  const block = body.left === 0 ? new Reader(Buffer.alloc(0)) : body.vector(2);
  const extensions = block === undefined || body.left > 0 ? undefined : readExtensions(block);
  if (extensions === undefined) return undefined;
  return { length: message.length + 4, legacyVersion, cipherSuites, ...extensions };
}

/** The body of the ClientHello message, put together from the records. */
function readHandshake(bytes: Buffer): Buffer | undefined {
  const parts: Buffer[] = [];
  let held = 0;
  let needed = Number.POSITIVE_INFINITY;
  const records = new Reader(bytes);
  while (records.left > 0) {
    const type = records.u8();
    records.u16();
    const part = records.vector(2);
    if (type !== 22 || part === undefined || part.left === 0) return undefined;
    parts.push(part.rest());
    held += part.left;
    if (held < 4) continue;
    if (needed === Number.POSITIVE_INFINITY) {
      const header = Buffer.concat(parts);
      if (header.readUInt8(0) !== 1) return undefined;
      needed = 4 + header.readUIntBE(1, 3);
    }
    if (held >= needed) return Buffer.concat(parts).subarray(4, needed);
  }
  return undefined;
}

type Extensions = Omit<ClientHello, "length" | "legacyVersion" | "cipherSuites">;

function readExtensions(block: Reader): Extensions | undefined {
  const extensions: number[] = [];
  let supportedVersions: number[] = [];
  let signatureAlgorithms: number[] = [];
  let firstAlpn: Buffer | undefined;
  while (block.left > 0) {
    const type = block.u16();
    const content = block.vector(2);
    if (type === undefined || content === undefined) return undefined;
    extensions.push(type);
    if (type === extensionTypes.supportedVersions) supportedVersions = content.vector(1)?.u16s() ?? [];
    else if (type === extensionTypes.signatureAlgorithms) signatureAlgorithms = content.vector(2)?.u16s() ?? [];
    else if (type === extensionTypes.alpn) firstAlpn = content.vector(2)?.vector(1)?.rest();
  }
  return {
    extensions,
    supportedVersions,
    signatureAlgorithms,
    firstAlpn: firstAlpn === undefined || firstAlpn.length === 0 ? undefined : firstAlpn,
    hasServerName: extensions.includes(extensionTypes.serverName),
  };
}

/** Reads a stretch of bytes front to back. What is not there is undefined, and nothing is there after it. */
class Reader {
  failed = false;
  readonly #bytes: Buffer;
  #at: number;
  readonly #end: number;

  constructor(bytes: Buffer, start = 0, end = bytes.length) {
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
  }

  get left(): number {
    return this.#end - this.#at;
  }

  rest(): Buffer {
    return this.#bytes.subarray(this.#at, this.#end);
  }

  skip(length: number): number | undefined {
    if (this.failed || this.left < length) {
      this.failed = true;
      return undefined;
    }
    const start = this.#at;
    this.#at += length;
    return start;
  }

  u8(): number | undefined {
    const at = this.skip(1);
    return at === undefined ? undefined : this.#bytes[at];
  }

  u16(): number | undefined {
    const at = this.skip(2);
    return at === undefined ? undefined : this.#bytes.readUInt16BE(at);
  }

  /** A length of that many bytes, and so many bytes. */
  vector(lengthBytes: 1 | 2): Reader | undefined {
    const length = lengthBytes === 1 ? this.u8() : this.u16();
    const start = length === undefined ? undefined : this.skip(length);
    return start === undefined ? undefined : new Reader(this.#bytes, start, this.#at);
  }

  /** All that is left as 16-bit numbers; undefined for an odd number of bytes. */
  u16s(): number[] | undefined {
    if (this.left % 2 !== 0) return undefined;
    const values: number[] = [];
    for (let at = this.#at; at < this.#end; at += 2) values.push(this.#bytes.readUInt16BE(at));
    return values;
  }
}
