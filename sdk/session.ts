import { timestampMs } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import type { Session } from "@octomesh/proto/octomesh/identity/v1/session_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import type { Credential } from "./credential.ts";
import { singleFlight } from "./single-flight.ts";

/** What is kept of a member's session. Both tokens are secrets. */
export interface SessionState {
  /** The access token, a JWT. */
  accessToken: string;
  /** The refresh token, which is used once. */
  refreshToken: string;
  /** When the access token expires, milliseconds since the Unix epoch. */
  expireTimeMs: number;
}

/** Where a session is kept between calls, and between runs of a program. */
export interface SessionStore {
  /** The session as last saved; undefined if there is none. */
  load(): Promise<SessionState | undefined>;
  /** Keeps the session. Must be durable when it resolves: the refresh token before it is spent. */
  save(state: SessionState): Promise<void>;
  /** Runs a function while no other process that shares the store runs one. Left out where nobody shares it. */
  exclusively?<T>(run: () => Promise<T>): Promise<T>;
}

/** Settings of a session credential. */
export interface SessionOptions {
  /** How long before it expires an access token is renewed, in milliseconds. Default 30,000. */
  marginMs?: number;
  /** The clock, in milliseconds since the Unix epoch. */
  now?: () => number;
}

/** Reads what is to be kept from the answer that created or refreshed a session. */
export function sessionState(answer: Session): SessionState {
  return {
    accessToken: answer.accessToken,
    refreshToken: answer.refreshToken,
    expireTimeMs: answer.expireTime === undefined ? 0 : timestampMs(answer.expireTime),
  };
}

/** Keeps a session in memory only. */
export function memorySession(state: SessionState): SessionStore {
  let kept = state;
  return {
    async load() {
      return kept;
    },
    async save(next) {
      kept = next;
    },
  };
}

/**
 * A member's session as a credential. The access token is renewed before it expires and after the mesh has called it
 * expired, never twice at once: calls that come meanwhile wait for the one renewal, and with a store that knows
 * `exclusively` so do other processes. A refusal of the refresh token (CREDENTIAL_REVOKED and the like) reaches the
 * caller: the member must sign in again.
 */
export function session(store: SessionStore, options: SessionOptions = {}): Credential {
  const marginMs = options.marginMs ?? 30_000;
  const now = options.now ?? Date.now;
  const exclusively = <T>(run: () => Promise<T>) => (store.exclusively ? store.exclusively(run) : run());
  let spent: string | undefined;
  let bareTransport: Parameters<Credential["authorization"]>[0];

  const isDue = (state: SessionState) => state.accessToken === spent || state.expireTimeMs - marginMs <= now();
  const renewed = singleFlight(() =>
    exclusively(async () => {
      // Another process may have renewed it while this one waited for its turn.
      const state = await store.load();
      if (state === undefined || !isDue(state)) return state;
      const answer = await createClient(SessionService, bareTransport).refreshSession({
        refreshToken: state.refreshToken,
      });
      const next = sessionState(answer);
      await store.save(next);
      return next;
    }),
  );

  return {
    async authorization(bare) {
      bareTransport = bare;
      let state = await store.load();
      if (state !== undefined && isDue(state)) state = await renewed();
      return state === undefined ? undefined : `Bearer ${state.accessToken}`;
    },
    async renew(used, bare, reason) {
      bareTransport = bare;
      const state = await store.load();
      if (state === undefined) return false;
      if (`Bearer ${state.accessToken}` !== used) return true;
      if (reason === "CREDENTIAL_REVOKED") return false;
      spent = state.accessToken;
      const next = await renewed();
      return next !== undefined && `Bearer ${next.accessToken}` !== used;
    },
  };
}
