import ipaddr from "ipaddr.js";

/**
 * By what an address is counted where limits are per source: an IPv4 address as it is, an IPv6 address by its /64, since
 * one subscriber has all of that and could otherwise call from a new address each time. Text that is no address comes
 * back as it is.
 */
export function sourceOf(address: string): string {
  if (!ipaddr.isValid(address)) return address;
  const parsed = ipaddr.process(address);
  if (parsed.kind() === "ipv4") return parsed.toString();
  return `${ipaddr.IPv6.networkAddressFromCIDR(`${parsed.toString()}/64`).toString()}/64`;
}
