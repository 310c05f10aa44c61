import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type ClientHello, extensionTypes, isGrease, parseClientHello } from "./client-hello.ts";
import { contentOf, helloOfNode, writeClientHello } from "./client-hello-fixture.ts";
import { ja4Of } from "./ja4.ts";

const u16 = fc.integer({ min: 0, max: 0xffff });
const bytes = (maxLength: number) => fc.uint8Array({ maxLength }).map((value) => Buffer.from(value));
const known: readonly number[] = Object.values(extensionTypes);

const parts = fc.record({
  legacyVersion: u16,
  cipherSuites: fc.array(u16, { maxLength: 60 }),
  sessionId: bytes(32),
  others: fc.array(
    fc.tuple(
      u16.filter((type) => !known.includes(type)),
      bytes(40),
    ),
    { maxLength: 20 },
  ),
  serverName: fc.boolean(),
  supportedVersions: fc.array(u16, { maxLength: 10 }),
  signatureAlgorithms: fc.array(u16, { maxLength: 30 }),
  alpn: fc.array(bytes(10), { maxLength: 3 }),
  recordLength: fc.integer({ min: 1, max: 3_000 }),
});

function written(value: typeof parts extends fc.Arbitrary<infer T> ? T : never): Buffer {
  const { others, serverName, supportedVersions, signatureAlgorithms, alpn, ...rest } = value;
  const extensions: [number, Buffer][] = [...others];
  if (serverName) extensions.push([extensionTypes.serverName, Buffer.alloc(0)]);
  extensions.push([extensionTypes.supportedVersions, contentOf.supportedVersions(supportedVersions)]);
  extensions.push([extensionTypes.signatureAlgorithms, contentOf.signatureAlgorithms(signatureAlgorithms)]);
  extensions.push([extensionTypes.alpn, contentOf.alpn(alpn)]);
  return writeClientHello({ ...rest, extensions });
}

describe("a ClientHello", () => {
  it("is read as it was written, however its records split it and whatever follows", () => {
    fc.assert(
      fc.property(parts, bytes(50), (value, more) => {
        const hello = parseClientHello(Buffer.concat([written(value), more]));
        const [firstAlpn] = value.alpn;
        expect(hello).toEqual({
          length: written({ ...value, recordLength: 65_000 }).length - 5,
          legacyVersion: value.legacyVersion,
          cipherSuites: value.cipherSuites,
          extensions: [
            ...value.others.map(([type]) => type),
            ...(value.serverName ? [0] : []),
            extensionTypes.supportedVersions,
            extensionTypes.signatureAlgorithms,
            extensionTypes.alpn,
          ],
          supportedVersions: value.supportedVersions,
          signatureAlgorithms: value.signatureAlgorithms,
          firstAlpn: firstAlpn === undefined || firstAlpn.length === 0 ? undefined : firstAlpn,
          hasServerName: value.serverName,
        } satisfies ClientHello);
      }),
    );
  });

  it("that is cut off is none, at every byte", () => {
    fc.assert(
      fc.property(parts, (value) => {
        const whole = written(value);
        for (let length = 0; length < whole.length; length += 1) {
          expect(parseClientHello(whole.subarray(0, length))).toBeUndefined();
        }
      }),
      { numRuns: 10 },
    );
  });

  it("that is mangled never throws, and gives no malformed fingerprint", () => {
    const mangled = fc.tuple(parts, fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 8 }));
    fc.assert(
      fc.property(mangled, ([value, changes]) => {
        const hello = written(value);
        for (const [at, byte] of changes) hello[at % hello.length] = byte;
        const parsed = parseClientHello(hello);
        if (parsed !== undefined) expect(ja4Of(parsed)).toMatch(/^t..[di]\d{4}..(_[0-9a-f]{12}){2}$/);
      }),
      { numRuns: 2_000 },
    );
    fc.assert(fc.property(bytes(500), (any) => void parseClientHello(any)));
  });

  it("without extensions, as before TLS 1.3, is read", () => {
    expect(parseClientHello(writeClientHello({ legacyVersion: 0x0301, cipherSuites: [0x2f, 0x35] }))).toMatchObject({
      legacyVersion: 0x0301,
      cipherSuites: [0x2f, 0x35],
      extensions: [],
      hasServerName: false,
    });
  });

  it("of Node's own client says what the client was told", async () => {
    const hello = parseClientHello(
      await helloOfNode({
        servername: "edge.example",
        ALPNProtocols: ["h2", "http/1.1"],
        ciphers: "TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-GCM-SHA256",
        sigalgs: "ecdsa_secp256r1_sha256:rsa_pss_rsae_sha256",
        minVersion: "TLSv1.2",
        maxVersion: "TLSv1.3",
      }),
    );
    expect(hello).toMatchObject({
      legacyVersion: 0x0303,
      supportedVersions: [0x0304, 0x0303],
      signatureAlgorithms: [0x0403, 0x0804],
      firstAlpn: Buffer.from("h2"),
      hasServerName: true,
    });
    // The last is OpenSSL's signal of secure renegotiation (RFC 5746), which it counts among the suites.
    expect(hello?.cipherSuites).toEqual([0x1301, 0xc02f, 0x00ff]);
    expect(ja4Of(hello!)).toMatch(/^t13d03\d\dh2_/);
    const old = parseClientHello(await helloOfNode({ minVersion: "TLSv1.2", maxVersion: "TLSv1.2" }));
    expect(ja4Of(old!)).toMatch(/^t12i\d{4}00_/);
  });
});

describe("the JA4 fingerprint", () => {
  const grease = 0x3a3a;
  const ciphers = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035";
  const numbers = (list: string): number[] => list.split(",").map((text) => Number.parseInt(text, 16));

  function chrome(extensions: string): string {
    const contents: Record<number, Buffer> = {
      [extensionTypes.supportedVersions]: contentOf.supportedVersions([grease, 0x0304, 0x0303]),
      [extensionTypes.signatureAlgorithms]: contentOf.signatureAlgorithms(
        numbers("0403,0804,0401,0503,0805,0501,0806,0601"),
      ),
      [extensionTypes.alpn]: contentOf.alpn([Buffer.from("h2"), Buffer.from("http/1.1")]),
    };
    const hello = writeClientHello({
      cipherSuites: [grease, ...numbers(ciphers)],
      extensions: [grease, ...numbers(extensions), 0x5a5a].map((type) => [type, contents[type] ?? Buffer.alloc(0)]),
    });
    return ja4Of(parseClientHello(hello)!);
  }

  it("is the published one of Chrome's ClientHellos", () => {
    // FoxIO's own example, and Chrome 143.
    expect(chrome("001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015")).toBe(
      "t13d1516h2_8daaf6152771_e5627efa2ab1",
    );
    expect(chrome("002d,0033,0010,fe0d,0017,44cd,0000,000b,000a,002b,ff01,0023,0012,0005,000d,001b")).toBe(
      "t13d1516h2_8daaf6152771_d8a2da3f94cd",
    );
  });

  it.each([
    ["h2", "h2"],
    ["http/1.1", "h1"],
    ["h", "hh"],
    ["\xab", "ab"],
    ["\xab\xcd", "ad"],
    ["0\xab", "3b"],
    ["01\xab\xcd", "3d"],
    ["0\xab\xcd1", "01"],
    ["", "00"],
  ])("writes the protocol %j as %s", (protocol, expected) => {
    const alpn = contentOf.alpn([Buffer.from(protocol, "latin1")]);
    const hello = parseClientHello(writeClientHello({ extensions: [[extensionTypes.alpn, alpn]] }));
    expect(ja4Of(hello!)).toBe(`t12i0101${expected}_0f2cb44170f4_000000000000`);
  });

  it("does not depend on the order of suites and extensions, nor on GREASE", () => {
    fc.assert(
      fc.property(parts, fc.nat({ max: 15 }), (value, nibble) => {
        const hello = parseClientHello(written(value))!;
        const extra = 0x0a0a + 0x1010 * nibble;
        expect(isGrease(extra)).toBe(true);
        const shuffled: ClientHello = {
          ...hello,
          cipherSuites: [extra, ...hello.cipherSuites].reverse(),
          extensions: [extra, ...hello.extensions].reverse(),
          signatureAlgorithms: [...hello.signatureAlgorithms, extra],
        };
        expect(ja4Of(shuffled)).toBe(ja4Of(hello));
      }),
    );
  });

  it.each([
    [0x0304, "13"],
    [0x0303, "12"],
    [0x0302, "11"],
    [0x0301, "10"],
    [0x0300, "s3"],
    [0x0002, "s2"],
    [0x7f1c, "00"],
  ])("writes version %i as %s", (legacyVersion, expected) => {
    expect(ja4Of(parseClientHello(writeClientHello({ legacyVersion }))!).slice(1, 3)).toBe(expected);
  });
});
