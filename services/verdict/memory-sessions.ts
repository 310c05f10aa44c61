import type { Clock } from "@octomesh/mesh/clock";
import {
  digestOfNonce,
  type ReportCheck,
  type ReportProof,
  type SessionKey,
  type SessionLimits,
  type SessionStore,
  type StoredVerdict,
} from "./session-store.ts";
import { createWaiters } from "./waiters.ts";

interface LiveSession {
  readonly createMs: number;
  readonly expireMs: number;
  readonly nonce: string;
  readonly isRegistered: boolean;
  readonly bundleId?: string;
  readonly stored?: StoredVerdict;
}

interface Organization {
  readonly live: Map<string, LiveSession>;
  /** Sessions that are over, and when that is forgotten; the oldest first. */
  readonly past: Map<string, number>;
}

const sweepEveryMs = 10_000;
/** With no room left, how soon again what is over is looked for. */
const sweepAgainMs = 1_000;

/** Sessions in this process's memory. A full store refuses new sessions and never forgets one that is not over. */
export function createMemorySessions(limits: SessionLimits, clock: Clock): SessionStore {
  const organizations = new Map<string, Organization>();
  const waiters = createWaiters();
  let liveCount = 0;
  let pastCount = 0;
  let sweptMs = Number.NEGATIVE_INFINITY;

  const end = (org: Organization, id: string, session: LiveSession): void => {
    org.live.delete(id);
    liveCount -= 1;
    const forgetMs = session.expireMs + limits.rememberMs;
    if (forgetMs <= clock.now()) return;
    if (org.past.size >= limits.maxOfOrganization || pastCount >= limits.maxSessions) {
      // Room is made among the organisation's own.
      const [oldest] = org.past.keys();
      if (oldest === undefined) return;
      org.past.delete(oldest);
      pastCount -= 1;
    }
    org.past.set(id, forgetMs);
    pastCount += 1;
  };
  const sweep = (): void => {
    const now = clock.now();
    sweptMs = now;
    for (const [orgId, org] of organizations) {
      for (const [id, session] of org.live) if (session.expireMs <= now) end(org, id, session);
      for (const [id, forgetMs] of org.past) {
        if (forgetMs > now) continue;
        org.past.delete(id);
        pastCount -= 1;
      }
      if (org.live.size === 0 && org.past.size === 0) organizations.delete(orgId);
    }
  };
  const timer = setInterval(sweep, sweepEveryMs).unref();

  const find = (key: SessionKey): LiveSession | "expired" | undefined => {
    const org = organizations.get(key.orgId);
    const id = idOf(key);
    const session = org?.live.get(id);
    if (session !== undefined) return session.expireMs > clock.now() ? session : "expired";
    const forgetMs = org?.past.get(id);
    return forgetMs !== undefined && forgetMs > clock.now() ? "expired" : undefined;
  };
  const roomFor = (key: SessionKey): "open" | "full" | "organization_full" => {
    const look = (): "open" | "full" | "organization_full" => {
      if ((organizations.get(key.orgId)?.live.size ?? 0) >= limits.maxOfOrganization) return "organization_full";
      return liveCount >= limits.maxSessions ? "full" : "open";
    };
    if (look() !== "open" && Math.abs(clock.now() - sweptMs) >= sweepAgainMs) sweep();
    return look();
  };
  const put = (key: SessionKey, session: LiveSession): void => {
    const org = organizations.get(key.orgId) ?? { live: new Map(), past: new Map() };
    organizations.set(key.orgId, org);
    if (org.past.delete(idOf(key))) pastCount -= 1;
    if (!org.live.has(idOf(key))) liveCount += 1;
    org.live.set(idOf(key), session);
  };
  const check = (key: SessionKey, { bundleId, nonce }: ReportProof): ReportCheck => {
    const session = find(key);
    if (session === "expired") return { outcome: "expired", isNonced: false };
    if (session === undefined) return { outcome: roomFor(key), isNonced: false };
    const isNonced = session.nonce !== "";
    if (session.bundleId !== undefined) {
      return { outcome: session.bundleId === bundleId ? "duplicate" : "reported", isNonced };
    }
    return { outcome: !isNonced || session.nonce === digestOfNonce(nonce) ? "open" : "nonce_mismatch", isNonced };
  };

  return {
    async register(key, { nonce, lifetimeMs }) {
      const known = find(key);
      if (known !== undefined) {
        const isSame = known !== "expired" && known.isRegistered && known.nonce === digestOfNonce(nonce);
        if (!isSame) return { outcome: "taken" };
        const { createMs, expireMs, bundleId } = known;
        return { outcome: "registered", state: bundleId === undefined ? "collecting" : "ready", createMs, expireMs };
      }
      const room = roomFor(key);
      if (room !== "open") return { outcome: room };
      const createMs = clock.now();
      const expireMs = createMs + lifetimeMs;
      put(key, { createMs, expireMs, nonce: digestOfNonce(nonce), isRegistered: true });
      return { outcome: "registered", state: "collecting", createMs, expireMs };
    },
    async check(key, proof) {
      return check(key, proof);
    },
    async decide(key, proof, { verdict, evidence, expireMs, isNonced }) {
      const found = check(key, proof);
      if (found.outcome !== "open") return found.outcome;
      if (found.isNonced !== isNonced) return "changed";
      const known = find(key);
      const before = known === "expired" ? undefined : known;
      put(key, {
        createMs: before?.createMs ?? clock.now(),
        expireMs,
        nonce: before?.nonce ?? "",
        isRegistered: before?.isRegistered ?? false,
        bundleId: proof.bundleId,
        stored: { verdict, evidence },
      });
      waiters.wake(watchKeyOf(key));
      return "open";
    },
    async read(key) {
      const session = find(key);
      if (session === undefined) return { state: "unknown" };
      if (session === "expired") return { state: "expired" };
      return session.stored === undefined ? { state: "collecting" } : { state: "ready", ...session.stored };
    },
    watch: (key, callback) => waiters.add(watchKeyOf(key), callback),
    async erase(orgId) {
      const org = organizations.get(orgId);
      if (org === undefined) return 0;
      organizations.delete(orgId);
      liveCount -= org.live.size;
      pastCount -= org.past.size;
      return org.live.size + org.past.size;
    },
    async count(orgId) {
      const org = organizations.get(orgId);
      return (org?.live.size ?? 0) + (org?.past.size ?? 0);
    },
    held: () => liveCount,
    async close() {
      clearInterval(timer);
    },
  };
}

function idOf({ sandbox, ref }: SessionKey): string {
  return `${sandbox ? "test" : "live"}/${ref}`;
}

function watchKeyOf(key: SessionKey): string {
  return `${key.orgId}/${idOf(key)}`;
}
