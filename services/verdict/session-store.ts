import { createHash } from "node:crypto";

/** Which session: a reference is one organisation's own, and its sandbox's are others than its live ones. */
export interface SessionKey {
  readonly orgId: string;
  readonly sandbox: boolean;
  /** The partner's reference, 1 to 128 characters. */
  readonly ref: string;
}

/** What came of registering a session. */
export type Registration =
  | {
      readonly outcome: "registered";
      readonly state: "collecting" | "ready";
      /** Milliseconds since the Unix epoch; those of the first time where it had been registered before. */
      readonly createMs: number;
      readonly expireMs: number;
    }
  /** The reference was reported, registered with another nonce, or is over. */
  | { readonly outcome: "taken" }
  | { readonly outcome: "full" | "organization_full" };

/** What identifies a report beside its session. */
export interface ReportProof {
  /** The edge's id of the bundle: the same at each attempt to forward it. */
  readonly bundleId: string;
  /** The nonce that the report carries; empty where it carries none. */
  readonly nonce: string;
}

/** Whether a report is taken: `open` says that it is, or was by this very call. */
export type ReportOutcome =
  | "open"
  /** The same bundle was taken before. */
  | "duplicate"
  /** Another one was. */
  | "reported"
  | "nonce_mismatch"
  /** The reference's time is over. */
  | "expired"
  | "full"
  | "organization_full";

/** What `check` says of a report. */
export interface ReportCheck {
  readonly outcome: ReportOutcome;
  /** The session was registered with a nonce. */
  readonly isNonced: boolean;
}

/** A verdict and what speaks for it, as bytes that the store does not look into. */
export interface StoredVerdict {
  readonly verdict: Uint8Array;
  readonly evidence: Uint8Array;
}

/** Where a session stands. */
export type SessionReading =
  | ({ readonly state: "ready" } & StoredVerdict)
  | { readonly state: "collecting" | "expired" | "unknown" };

/**
 * Sessions and their verdicts, for minutes. Raw signals have no place here. A session that is over leaves its key behind
 * for `rememberMs`, so that its reference is not taken again; nothing else is left of it. Calls reject with
 * DEPENDENCY_UNAVAILABLE where what holds the sessions cannot be asked.
 */
export interface SessionStore {
  /** Registers a session before its report. The same again, with the same nonce, changes nothing. */
  register(key: SessionKey, session: { nonce: string; lifetimeMs: number }): Promise<Registration>;
  /** Says what `decide` would, and changes nothing. */
  check(key: SessionKey, proof: ReportProof): Promise<ReportCheck>;
  /**
   * Takes a report by its verdict, kept until `expireMs`, or says why not: of any number at the same time one is taken.
   * `changed`: the session was registered with a nonce since `check` said `isNonced`; check again.
   */
  decide(
    key: SessionKey,
    proof: ReportProof,
    decision: StoredVerdict & { readonly expireMs: number; readonly isNonced: boolean },
  ): Promise<ReportOutcome | "changed">;
  read(key: SessionKey): Promise<SessionReading>;
  /** Calls back when the session may have been decided, by whichever process. Undefined where too many watch already. */
  watch(key: SessionKey, callback: () => void): (() => void) | undefined;
  /** Forgets everything of an organisation and its count. */
  erase(orgId: string): Promise<number>;
  /** How many sessions of an organisation are held, those that are over included. */
  count(orgId: string): Promise<number>;
  /** How many live sessions this process holds; undefined where others hold them. */
  held(): number | undefined;
  close(): Promise<void>;
}

/** How many sessions are held at a time, and how long. */
export interface SessionLimits {
  /** Live sessions of one organisation. */
  readonly maxOfOrganization: number;
  /** Live sessions of all, where this process's memory holds them. */
  readonly maxSessions: number;
  /** How long it is remembered that a session was, milliseconds. */
  readonly rememberMs: number;
}

/** Default of `rememberMs`: longer than a bundle is taken for, so that none is taken twice. */
export const rememberMs = 600_000;

/**
 * Reads a session, waiting up to `timeoutMs` for its verdict. Returns at once where the session is over, where too many
 * wait, or when the signal aborts.
 */
export async function waitForVerdict(
  store: SessionStore,
  key: SessionKey,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<SessionReading> {
  if (timeoutMs <= 0) return await store.read(key);
  const endMs = performance.now() + timeoutMs;
  let isWoken = false;
  let wake: () => void = () => undefined;
  const release = store.watch(key, () => {
    isWoken = true;
    wake();
  });
  const onAbort = (): void => wake();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    for (;;) {
      isWoken = false;
      const reading = await store.read(key);
      const leftMs = endMs - performance.now();
      const isSettled = reading.state === "ready" || reading.state === "expired";
      if (isSettled || leftMs <= 0 || signal.aborted || release === undefined) return reading;
      if (isWoken) continue;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.ceil(leftMs));
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  } finally {
    release?.();
    signal.removeEventListener("abort", onAbort);
  }
}

/** Digest of a nonce, by which it is compared: whoever measures a comparison learns nothing of the nonce. */
export function digestOfNonce(nonce: string): string {
  return nonce === "" ? "" : createHash("sha256").update(nonce).digest("base64url");
}
