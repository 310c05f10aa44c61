import { createPublicKey, type KeyObject } from "node:crypto";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import { isId } from "@octomesh/mesh/ids";
import type { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { LRUCache } from "lru-cache";

/** The public half of a key with which an edge signs, and whose it is. */
export interface EdgeKey {
  /** `esk_…` */
  readonly id: string;
  readonly orgId: string;
  readonly licenseId: string;
  /** Ed25519. */
  readonly publicKey: KeyObject;
}

/** The signing keys of edges, as identity knows them. */
export interface EdgeKeys {
  /**
   * The key of an id, as long as identity says that it is good; undefined for one that it does not know. What it said
   * counts for less than a second, so that a revoked key is not believed for longer. Throws DEPENDENCY_UNAVAILABLE where
   * identity cannot be asked.
   */
  find(id: string): Promise<EdgeKey | undefined>;
  /** Whether identity has known a key of this id, though maybe not now. */
  isRemembered(id: string): boolean;
}

const maxAgeMs = 900;
const maxKeys = 10_000;
const askTimeoutMs = 1_500;
/** How often identity is asked until an answer is not too old when it comes. */
const maxAttempts = 2;

/**
 * Asks identity, once for all who need the same key at the same time.
 *
 * @param isRevoked whether a key was revoked since, as identity tells every service at once
 * @param now milliseconds of a clock that nobody sets back
 */
export function createEdgeKeys(
  client: Pick<Client<typeof CredentialService>, "getEdgeSigningKey">,
  isRevoked: (id: string) => boolean,
  now: () => number = () => performance.now(),
): EdgeKeys {
  const known = new LRUCache<string, { key: EdgeKey; askedMs: number }>({ max: maxKeys });
  // Apart from the known ones, so that inventing ids displaces none.
  const unknown = new LRUCache<string, number>({ max: maxKeys });
  const asking = new Map<string, { answer: Promise<EdgeKey | undefined>; askedMs: number }>();

  const ask = async (id: string, attempt = 1): Promise<EdgeKey | undefined> => {
    const askedMs = now();
    try {
      const { orgId, licenseKeyId, publicKey } = await client.getEdgeSigningKey({ id }, { timeoutMs: askTimeoutMs });
      // An answer that was long on its way may say what was true before a revocation.
      if (now() - askedMs >= maxAgeMs) {
        if (attempt < maxAttempts) return await ask(id, attempt + 1);
        throw new Error("identity's answers come too late");
      }
      const x = Buffer.from(publicKey).toString("base64url");
      const key: EdgeKey = {
        id,
        orgId,
        licenseId: licenseKeyId,
        publicKey: createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" }),
      };
      known.set(id, { key, askedMs });
      return key;
    } catch (error) {
      if (reasonOf(error) === Reason.DEPENDENCY_UNAVAILABLE) throw error;
      if (!(error instanceof ConnectError && error.code === Code.NotFound)) {
        throw fail(
          Reason.DEPENDENCY_UNAVAILABLE,
          "the signing keys of edges cannot be looked up",
          {},
          {
            retryAfterMs: 1000,
            cause: error,
          },
        );
      }
      known.delete(id);
      unknown.set(id, askedMs);
      return undefined;
    }
  };

  const lookUp = async (id: string): Promise<EdgeKey | undefined> => {
    const found = known.get(id);
    if (found !== undefined && now() - found.askedMs < maxAgeMs) return found.key;
    const missedMs = unknown.get(id);
    if (missedMs !== undefined && now() - missedMs < maxAgeMs) return undefined;
    // A question that is older may be answered by what was true before a revocation.
    const joined = asking.get(id);
    if (joined !== undefined && now() - joined.askedMs < maxAgeMs) return await joined.answer;
    const question = { answer: ask(id), askedMs: now() };
    asking.set(id, question);
    try {
      return await question.answer;
    } finally {
      if (asking.get(id) === question) asking.delete(id);
    }
  };

  return {
    async find(id) {
      if (!isId("esk", id) || isRevoked(id)) return undefined;
      const key = await lookUp(id);
      // It may have been revoked while the answer was on its way.
      return isRevoked(id) ? undefined : key;
    },
    isRemembered: (id) => known.has(id),
  };
}
