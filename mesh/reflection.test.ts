import { createClient, createRouterTransport } from "@connectrpc/connect";
import { ServerReflection } from "@octomesh/proto/grpc/reflection/v1/reflection_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { expect, test } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { reflectionRoutes } from "./reflection.ts";

test("one stream asks a thousand times and no more, since limits count it once", async () => {
  const client = createClient(
    ServerReflection,
    createRouterTransport((router) => reflectionRoutes(router, [ModelService])),
  );
  async function* ask() {
    for (;;) yield { messageRequest: { case: "listServices" as const, value: "" } };
  }
  let answers = 0;
  let error: unknown;
  try {
    for await (const _ of client.serverReflectionInfo(ask())) answers += 1;
  } catch (thrown) {
    error = thrown;
  }
  expect([answers, reasonOf(error)]).toEqual([1000, Reason.RATE_LIMITED]);
});
