import { type CidrList, isLoopbackHost, normalizeAddress, parseCidrList } from "@octomesh/mesh/cidr";
import { clientAddressOf, forwardedOf } from "@octomesh/mesh/client-address";
import { socketAddressOf, socketOf } from "@octomesh/mesh/listen";
import type { HttpRequest } from "@octomesh/mesh/service";
import type { Logger } from "pino";

/** Who is at the other end of a connection. */
export interface ClientEnd {
  /** The client's address: the connection's own, or what a trusted proxy said; "" once the connection is gone. */
  readonly address: string;
  /** Something that is not the client ended its connection, which therefore cannot be timed. */
  readonly behindProxy: boolean;
}

/** Addresses that are nobody's on the internet. */
export const privateNetworks = parseCidrList(
  "127.0.0.0/8 ::1 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 169.254.0.0/16 fc00::/7 fe80::/10",
);

/** Headers that proxies add, and browsers do not. */
const proxyHeaders = ["x-forwarded-for", "forwarded", "via", "x-real-ip", "cf-ray"] as const;

/**
 * Makes the reader of a request's other end. Behind a trusted proxy, behind one that did not end its own TLS at a TLS
 * edge, and behind one of this network that nobody named but that gives itself away, a connection is the proxy's. The
 * headers of an address on the internet are not believed: a client could spoil its own timing by them.
 */
export function createClientEnds(options: {
  readonly trustedProxies: CidrList;
  readonly hasTls: boolean;
  readonly log: Logger;
}): (request: HttpRequest) => ClientEnd {
  const { trustedProxies, hasTls, log } = options;
  let hinted = false;
  return (request) => {
    const raw = normalizeAddress(socketOf(request)?.remoteAddress ?? "") ?? "";
    const address = clientAddressOf(socketAddressOf(request), forwardedOf(request), trustedProxies);
    if (address !== raw || trustedProxies.includes(raw)) return { address, behindProxy: true };
    // Pages reach no edge without TLS but on their own machine: something ended it.
    if (!hasTls && !isLoopbackHost(raw)) return { address, behindProxy: true };
    const isHinted = privateNetworks?.includes(raw) === true && proxyHeaders.some((name) => name in request.headers);
    if (isHinted && !hinted) {
      hinted = true;
      log.warn(
        "a proxy seems to stand before this edge: name it in EDGE_TRUSTED_PROXIES, or let it pass TCP through; until then every visitor has its address",
      );
    }
    return { address, behindProxy: isHinted };
  };
}
