import { Duplex } from "node:stream";
import { type ConnectionOptions, connect } from "node:tls";

/** What a ClientHello is written of. */
export interface HelloParts {
  readonly legacyVersion?: number;
  readonly cipherSuites?: readonly number[];
  /** Kind and content, in their order; undefined leaves the whole block away. */
  readonly extensions?: readonly (readonly [type: number, content: Buffer])[];
  readonly sessionId?: Buffer;
  /** Bytes of the message in each record; all in one by default. */
  readonly recordLength?: number;
}

/** Writes a ClientHello as it stands at the start of a connection. */
export function writeClientHello(parts: HelloParts): Buffer {
  const { legacyVersion = 0x0303, cipherSuites = [0x1301], extensions, sessionId = Buffer.alloc(0) } = parts;
  const block = (extensions ?? []).map(([type, content]) => Buffer.concat([u16(type), vector(2, content)]));
  const body = Buffer.concat([
    u16(legacyVersion),
    Buffer.alloc(32, 7),
    vector(1, sessionId),
    vector(2, u16s(cipherSuites)),
    vector(1, Buffer.from([0])),
    extensions === undefined ? Buffer.alloc(0) : vector(2, Buffer.concat(block)),
  ]);
  const message = Buffer.concat([Buffer.from([1, 0]), vector(2, body)]);
  const { recordLength = message.length } = parts;
  const records: Buffer[] = [];
  for (let at = 0; at < message.length; at += recordLength) {
    records.push(Buffer.from([22, 3, 1]), vector(2, message.subarray(at, at + recordLength)));
  }
  return Buffer.concat(records);
}

/** Content of extensions whose content counts. */
export const contentOf = {
  supportedVersions: (versions: readonly number[]): Buffer => vector(1, u16s(versions)),
  signatureAlgorithms: (algorithms: readonly number[]): Buffer => vector(2, u16s(algorithms)),
  alpn: (protocols: readonly Buffer[]): Buffer => vector(2, Buffer.concat(protocols.map((name) => vector(1, name)))),
};

/** The ClientHello that Node's own TLS client sends. */
export async function helloOfNode(options: ConnectionOptions): Promise<Buffer> {
  return new Promise((resolve) => {
    const wire = new Duplex({
      read: () => undefined,
      write(chunk: Buffer, _, done) {
        done();
        resolve(Buffer.from(chunk));
        // The client writes this while it is being made.
        setImmediate(() => secure.destroy());
      },
    });
    const secure = connect({ ...options, socket: wire });
    secure.on("error", () => undefined);
  });
}

function u16(value: number): Buffer {
  return Buffer.from([value >> 8, value & 0xff]);
}

function u16s(values: readonly number[]): Buffer {
  return Buffer.concat(values.map(u16));
}

function vector(lengthBytes: 1 | 2, content: Buffer): Buffer {
  return Buffer.concat([lengthBytes === 1 ? Buffer.from([content.length]) : u16(content.length), content]);
}
