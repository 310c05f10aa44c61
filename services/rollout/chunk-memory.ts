import { fail, Reason } from "@octomesh/mesh/errors";

/** How much memory chunks on their way may take. */
export interface ChunkMemoryLimits {
  /** Bytes in all. */
  readonly totalBytes: number;
  /** Bytes for one organisation: a fraction of all, so that slow senders of one leave room for the others. */
  readonly organizationBytes: number;
}

/** Shares the memory for chunks out among organisations. */
export interface ChunkMemory {
  /** Sets memory aside for a chunk and answers how to give it back. Throws OVERLOADED when there is none left. */
  reserve(orgId: string, bytes: number): () => void;
}

/** Starts with nothing reserved. */
export function createChunkMemory(limits: ChunkMemoryLimits): ChunkMemory {
  const byOrganization = new Map<string, number>();
  let reserved = 0;
  return {
    reserve(orgId, bytes) {
      const before = byOrganization.get(orgId) ?? 0;
      if (reserved + bytes > limits.totalBytes || before + bytes > limits.organizationBytes) {
        const message = "too many chunks are on their way: send this one again in a moment";
        throw fail(Reason.OVERLOADED, message, {}, { retryAfterMs: 1000 });
      }
      reserved += bytes;
      byOrganization.set(orgId, before + bytes);
      return () => {
        reserved -= bytes;
        const left = (byOrganization.get(orgId) ?? 0) - bytes;
        if (left > 0) byOrganization.set(orgId, left);
        else byOrganization.delete(orgId);
      };
    },
  };
}
