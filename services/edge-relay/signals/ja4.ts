import { createHash } from "node:crypto";
import { type ClientHello, extensionTypes, isGrease } from "./client-hello.ts";

/**
 * The JA4 fingerprint of a TLS client over TCP, such as `t13d1516h2_8daaf6152771_e5627efa2ab1`: protocol, version,
 * whether a server name is asked for, numbers of cipher suites and extensions, first and last letter of the first
 * ALPN protocol; then hashes of the sorted cipher suites, and of the sorted extensions with the signature algorithms.
 * GREASE counts nowhere. 36 characters.
 *
 * Source: FoxIO, "JA4: TLS Client Fingerprinting", technical details (BSD 3-clause).
 */
export function ja4Of(hello: ClientHello): string {
  const cipherSuites = withoutGrease(hello.cipherSuites);
  const extensions = withoutGrease(hello.extensions);
  const summary = [
    "t",
    versionOf(hello),
    hello.hasServerName ? "d" : "i",
    countOf(cipherSuites),
    countOf(extensions),
    alpnOf(hello.firstAlpn),
  ].join("");
  return `${summary}_${hashOf(listOf(sorted(cipherSuites)))}_${hashOf(extensionsTextOf(hello, extensions))}`;
}

function extensionsTextOf(hello: ClientHello, extensions: readonly number[]): string {
  const { serverName, alpn } = extensionTypes;
  const kinds = listOf(sorted(extensions.filter((type) => type !== serverName && type !== alpn)));
  const algorithms = listOf(withoutGrease(hello.signatureAlgorithms));
  return algorithms === "" ? kinds : `${kinds}_${algorithms}`;
}

const versions: ReadonlyMap<number, string> = new Map([
  [0x0304, "13"],
  [0x0303, "12"],
  [0x0302, "11"],
  [0x0301, "10"],
  [0x0300, "s3"],
  [0x0002, "s2"],
]);

function versionOf(hello: ClientHello): string {
  const offered = withoutGrease(hello.supportedVersions);
  const version = offered.length === 0 ? hello.legacyVersion : Math.max(...offered);
  return versions.get(version) ?? "00";
}

function countOf(values: readonly number[]): string {
  return Math.min(values.length, 99).toString().padStart(2, "0");
}

/** First and last letter; of the bytes in hexadecimal where either is neither letter nor digit. */
function alpnOf(protocol: Buffer | undefined): string {
  if (protocol === undefined) return "00";
  const text = protocol.toString("latin1");
  const ends = `${text.at(0)}${text.at(-1)}`;
  if (/^[0-9A-Za-z]{2}$/.test(ends)) return ends;
  const hex = protocol.toString("hex");
  return `${hex.at(0)}${hex.at(-1)}`;
}

function withoutGrease(values: readonly number[]): number[] {
  return values.filter((value) => !isGrease(value));
}

function sorted(values: readonly number[]): number[] {
  return [...values].sort((a, b) => a - b);
}

function listOf(values: readonly number[]): string {
  return values.map((value) => value.toString(16).padStart(4, "0")).join(",");
}

function hashOf(text: string): string {
  return text === "" ? "000000000000" : createHash("sha256").update(text).digest("hex").slice(0, 12);
}
