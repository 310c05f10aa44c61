import { isLoopbackHost } from "@octomesh/mesh/cidr";
import { createMemoryWindows } from "@octomesh/mesh/sliding-window";
import { socketAddressFrom } from "../signals/socket-address.ts";

/** What one address may ask of an edge, so that none takes what is for all. */
export interface AddressLimits {
  /** Counts one request of the address; answers in how many milliseconds it may come again, 0 where it may now. */
  take(address: string): Promise<number>;
  /** Takes a place for a channel; undefined where the address has as many as it may. The answer gives the place back, once. */
  open(address: string): (() => void) | undefined;
}

/** Channels of one address at a time. */
const maxChannels = 16;
const windowMs = 60_000;

/**
 * Opens limits of `perMinute` requests an address. An IPv6 network of 64 bits counts as one address, since it is one
 * customer's. This machine itself is not limited: what comes from there is its owner's, or a proxy's that nobody named.
 */
export function createAddressLimits(perMinute: number, now: () => number): AddressLimits {
  const windows = createMemoryWindows(now);
  const open = new Map<string, number>();
  return {
    async take(address) {
      if (isLoopbackHost(address)) return 0;
      const { allowed, retryAfterMs } = await windows.take(keyOf(address), { points: perMinute, windowMs }, 1);
      return allowed ? 0 : Math.max(1, retryAfterMs);
    },
    open(address) {
      if (isLoopbackHost(address)) return () => undefined;
      const key = keyOf(address);
      const count = open.get(key) ?? 0;
      if (count >= maxChannels) return undefined;
      open.set(key, count + 1);
      let isOpen = true;
      return () => {
        if (!isOpen) return;
        isOpen = false;
        const left = (open.get(key) ?? 1) - 1;
        if (left > 0) open.set(key, left);
        else open.delete(key);
      };
    },
  };
}

function keyOf(address: string): string {
  const parsed = socketAddressFrom(address);
  // Of a sockaddr_in6 the bytes 8 to 16 are the network.
  return parsed?.version === 6 ? parsed.bytes.toString("hex", 8, 16) : address;
}
