import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { credentialState } from "./credential-state.ts";

test("a credential is revoked, expired from its last moment on, or active", () => {
  const [now, past, future] = [1_000_000, timestampFromMs(1_000_000), timestampFromMs(1_000_001)];
  expect(credentialState({}, now)).toBe("active");
  expect(credentialState({ expireTime: future }, now)).toBe("active");
  expect(credentialState({ expireTime: past }, now)).toBe("expired");
  expect(credentialState({ expireTime: past, revokeTime: past }, now)).toBe("revoked");
});
