import { create } from "@bufbuild/protobuf";
import { ListManifestKeysResponseSchema } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { describe, expect, it } from "vitest";
import { manifestKeysTtlMs, openManifestKeys } from "./manifest-keys.ts";

function keysOf(source: { away: boolean; calls: number; nowMs: number }) {
  return openManifestKeys(
    {
      async listManifestKeys() {
        source.calls += 1;
        if (source.away) throw new Error("away");
        return create(ListManifestKeysResponseSchema, { keys: [{ id: `mky_${source.calls}` }] });
      },
    },
    { now: () => source.nowMs },
  );
}

describe("manifest keys", () => {
  it("are asked for once by many, and again when they are old", async () => {
    const source = { away: false, calls: 0, nowMs: 0 };
    const keys = keysOf(source);
    await Promise.all([keys.get("org"), keys.get("org"), keys.get("org")]);
    expect(source.calls).toBe(1);
    source.nowMs = manifestKeysTtlMs;
    expect((await keys.get("org"))[0]?.id).toBe("mky_2");
    keys.forget("org");
    expect((await keys.get("org"))[0]?.id).toBe("mky_3");
  });

  it("that were known serve while rollout is away; unknown ones fail", async () => {
    const source = { away: false, calls: 0, nowMs: 0 };
    const keys = keysOf(source);
    await keys.get("org");
    source.away = true;
    source.nowMs = manifestKeysTtlMs;
    expect((await keys.get("org"))[0]?.id).toBe("mky_1");
    await expect(keys.get("other")).rejects.toThrow("away");
  });
});
