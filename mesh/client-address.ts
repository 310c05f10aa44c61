import { type CidrList, normalizeAddress } from "./cidr.ts";
import type { HttpRequest } from "./service.ts";

/** Hops of X-Forwarded-For that are looked at: more are somebody's invention. */
const maxHops = 32;

/**
 * The true client address: the connection's own (or what PROXY protocol said of it), unless that is a trusted proxy.
 * Then X-Forwarded-For is read from the right, trusted proxies are passed over, and the first other address is it. An
 * address that a client wrote into the header itself is never reached. "" where the connection has gone.
 */
export function clientAddressOf(
  socketAddress: string | undefined,
  forwarded: string | undefined,
  trusted: CidrList,
): string {
  let address = normalizeAddress(socketAddress ?? "");
  if (address === undefined) return "";
  if (!trusted.includes(address) || forwarded === undefined) return address;
  const hops = forwarded.split(",").slice(-maxHops);
  for (let i = hops.length - 1; i >= 0; i -= 1) {
    const hop = normalizeAddress(withoutPort(hops[i]?.trim() ?? ""));
    // A hop that is no address was not written by a proxy that we trust: what was before it counts.
    if (hop === undefined) return address;
    address = hop;
    if (!trusted.includes(hop)) return hop;
  }
  return address;
}

/** The forwarded addresses of a request, all its X-Forwarded-For fields in one. */
export function forwardedOf(request: HttpRequest): string | undefined {
  const value = request.headers["x-forwarded-for"];
  return Array.isArray(value) ? value.join(",") : value;
}

function withoutPort(hop: string): string {
  const bracketed = /^\[([^\]]+)\](:\d+)?$/.exec(hop);
  if (bracketed?.[1] !== undefined) return bracketed[1];
  return /^\d+\.\d+\.\d+\.\d+:\d+$/.test(hop) ? hop.slice(0, hop.lastIndexOf(":")) : hop;
}
