import { isLoopbackHost } from "@octomesh/mesh/cidr";

/** Which pages may report. */
export interface OriginRule {
  allows(origin: string): boolean;
  /** Whether every origin may. */
  readonly any: boolean;
}

/** Makes a rule of origins, or of `*` alone; undefined if there is none or one of them is no origin. */
export function createOriginRule(origins: readonly string[]): OriginRule | undefined {
  if (origins.length === 1 && origins[0] === "*") return { any: true, allows: () => true };
  const set = new Set(origins);
  for (const each of set) if (!URL.canParse(each) || new URL(each).origin !== each) return undefined;
  return set.size === 0 ? undefined : { any: false, allows: (origin) => set.has(origin) };
}

/** Pages of this machine alone, on any port. */
export const loopbackOrigins: OriginRule = {
  any: false,
  allows(origin) {
    if (!URL.canParse(origin)) return false;
    const { protocol, hostname } = new URL(origin);
    return (protocol === "http:" || protocol === "https:") && isLoopbackHost(hostname);
  },
};
