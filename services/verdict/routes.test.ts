import type { DescMethodUnary } from "@bufbuild/protobuf";
import { createClient, createRouterTransport } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { describe, expect, it } from "vitest";
import { registerRoutes } from "./routes.ts";

const transport = createRouterTransport(registerRoutes);

describe("the routes of verdict", () => {
  it.each(VerdictService.methods.map((method) => [method.localName, method as DescMethodUnary] as const))(
    "refuse %s, and say why",
    async (_, method) => {
      const error = await transport
        .unary(method, undefined, undefined, undefined, {})
        .catch((refusal: unknown) => refusal);
      expect(reasonOf(error)).toBe(Reason.NOT_IMPLEMENTED);
    },
  );

  it("hold nothing of an organisation", async () => {
    const { erased, remaining } = await createClient(TenantService, transport).eraseTenant({});
    expect(erased).toEqual({});
    expect(remaining).toBe(0n);
  });
});
