import { createClient, createRouterTransport } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@octomesh/proto/grpc/health/v1/health_pb";
import { describe, expect, test } from "vitest";
import { createHealth, healthRoutes } from "./health.ts";

describe("the health of a service", () => {
  test("is problems by name, until it serves and every check is well", async () => {
    const health = createHealth();
    let database: string | undefined = "cannot be reached";
    health.addCheck("database", async () => database);
    health.addCheck("broken", () => Promise.reject(new Error("secret")));
    expect(await health.problems()).toEqual({ service: "starting", database: "cannot be reached", broken: "failed" });
    health.set("serving");
    database = undefined;
    expect(await health.problems()).toEqual({ broken: "failed" });
  });

  test("is watched from now on, and to the drain, which no watch holds up", async () => {
    const health = createHealth();
    const client = createClient(
      Health,
      createRouterTransport((router) => healthRoutes(router, health, ["octomesh.model.v1.ModelService"])),
    );
    const seen: Status[] = [];
    const watch = (async () => {
      for await (const { status } of client.watch({ service: "octomesh.model.v1.ModelService" })) seen.push(status);
    })();
    await expect.poll(() => seen).toEqual([Status.NOT_SERVING]);
    health.set("serving");
    await expect.poll(() => seen).toEqual([Status.NOT_SERVING, Status.SERVING]);
    health.set("draining");
    await watch;
    expect(seen).toEqual([Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING]);
  });
});
