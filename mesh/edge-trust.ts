import { X509Certificate } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { type PublicKey, PublicKeyFromCryptoKey } from "paseto/v4/public";
import type { Logger } from "pino";
import type { Clock } from "./clock.ts";

/** What edges are believed by: identity's keys for licences, and its authorities for client certificates. */
export interface EdgeTrust {
  /**
   * The key that a licence's footer names; undefined where identity has none of that name, which is asked at most once a
   * second. Throws where identity cannot be asked and nothing is known yet.
   */
  licenseKey(keyId: string): Promise<PublicKey | undefined>;
  /** Certificates of the authorities, PEM. Empty until identity has been heard: then no certificate is believed. */
  authorities(): readonly string[];
  /** Calls back when the authorities are others than before. Returns the way to stop it. */
  onChange(callback: () => void): () => void;
  /** Whether identity has been heard. */
  isKnown(): boolean;
  /** Follows identity until stopped. Resolves once it has answered, also where it says that it knows no edges. */
  start(): Promise<void>;
  stop(): Promise<void>;
}

/** What the follower needs. */
export interface EdgeTrustOptions {
  readonly client: Client<typeof CredentialService>;
  readonly clock: Clock;
  readonly log: Logger;
}

const maxAgeMs = 300_000;
const retryMs = 1_000;
/** How soon an unknown key is asked about again. */
const askAgainMs = 1_000;

/** Follows identity: asks at the start until it answers, then every five minutes, and when a licence names a new key. */
export function createEdgeTrust(options: EdgeTrustOptions): EdgeTrust {
  const { client, clock, log } = options;
  const callbacks = new Set<() => void>();
  const stopped = new AbortController();
  let keys: ReadonlyMap<string, PublicKey> = new Map();
  let authorities: readonly string[] = [];
  let heardMs: number | undefined;
  let askedMs = Number.NEGATIVE_INFINITY;
  let fetching: Promise<void> | undefined;
  let following: Promise<void> | undefined;

  const fetchTrust = async (): Promise<void> => {
    askedMs = clock.now();
    const answer = await client.getEdgeTrust({}, { timeoutMs: 5000, signal: stopped.signal });
    const found = await Promise.all(
      answer.licenseKeys.map(async (each) => [each.keyId, await importKey(each.publicKey)] as const),
    );
    keys = new Map(found);
    heardMs = clock.now();
    const next = answer.certificateAuthoritiesPem.filter((pem) => isCertificate(pem, log));
    if (next.join() === authorities.join()) return;
    authorities = next;
    for (const callback of callbacks) callback();
  };
  /** Whoever needs it at the same time waits for the same answer. */
  const refresh = (): Promise<void> => {
    fetching ??= fetchTrust().finally(() => {
      fetching = undefined;
    });
    return fetching;
  };
  const follow = async (onAnswer: () => void): Promise<void> => {
    while (!stopped.signal.aborted) {
      let pauseMs = maxAgeMs;
      try {
        await refresh();
        onAnswer();
      } catch (error) {
        if (stopped.signal.aborted) break;
        const isForeign = ConnectError.from(error).code === Code.Unimplemented;
        if (isForeign) onAnswer();
        pauseMs = retryMs;
        log.debug({ err: error }, "edge trust: identity gave none");
      }
      await sleep(pauseMs, undefined, { signal: stopped.signal, ref: false }).catch(() => undefined);
    }
    onAnswer();
  };

  return {
    async licenseKey(keyId) {
      const known = keys.get(keyId);
      if (known !== undefined && heardMs !== undefined && clock.now() - heardMs < 2 * maxAgeMs) return known;
      // A withdrawn key must not live on because identity is away: then nobody knows whether it still holds.
      const mustAsk = known !== undefined || heardMs === undefined;
      if (mustAsk || fetching !== undefined || Math.abs(clock.now() - askedMs) >= askAgainMs) await refresh();
      return keys.get(keyId);
    },
    authorities: () => authorities,
    onChange(callback) {
      callbacks.add(callback);
      return () => callbacks.delete(callback);
    },
    isKnown: () => heardMs !== undefined,
    start() {
      return new Promise<void>((resolve) => {
        following ??= follow(resolve);
      });
    },
    async stop() {
      stopped.abort();
      callbacks.clear();
      await following;
    },
  };
}

async function importKey(publicKey: Uint8Array): Promise<PublicKey> {
  return PublicKeyFromCryptoKey(
    await crypto.subtle.importKey("raw", new Uint8Array(publicKey), "Ed25519", true, ["verify"]),
  );
}

/** One certificate that cannot be read must not take the others, nor the listener, with it. */
function isCertificate(pem: string, log: Logger): boolean {
  try {
    return new X509Certificate(pem).ca;
  } catch (error) {
    log.error({ err: error }, "edge trust: an authority's certificate cannot be read");
    return false;
  }
}
