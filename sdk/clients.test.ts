import { createServer, type Http2Server } from "node:http2";
import type { AddressInfo } from "node:net";
import { create, getOption } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter, createRouterTransport } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CreateModelRequestSchema, ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { CallerKind, method as methodPolicy } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { publicServices, withheldMethods } from "./clients.ts";
import {
  apiKey,
  bearer,
  type ClientsOptions,
  createClients,
  factsOf,
  isReason,
  memorySession,
  type NodeOptions,
  type ReasonName,
  type RetryEvent,
  reasonOf,
  session,
} from "./index.ts";
import { type FakeMesh, refusal, startFakeMesh } from "./testing/fake-mesh.ts";
import { until } from "./testing/until.ts";

let mesh: FakeMesh;
beforeEach(async () => {
  mesh = await startFakeMesh();
});
afterEach(async () => {
  await mesh.close();
});

function clients(options: Partial<ClientsOptions & NodeOptions> = {}) {
  return createClients({ baseUrl: mesh.url, credential: apiKey("edg_test_wide"), ...options });
}

describe("the public surface", () => {
  const hidden = new Set([CallerKind.PEER, CallerKind.DELEGATED, CallerKind.SYSTEM, CallerKind.EDGE]);

  test("withholds exactly the methods that the contract's policy keeps from clients", () => {
    const expected: Record<string, string[]> = {};
    for (const [name, service] of Object.entries(publicServices)) {
      for (const method of service.methods) {
        const policy = getOption(method, methodPolicy);
        const isWithheld = policy.httpOnly || policy.callers.every((kind) => hidden.has(kind));
        if (isWithheld) expected[name] = [...(expected[name] ?? []), method.localName];
      }
    }
    expect(withheldMethods).toEqual(expected);
  });

  test("leaves no method behind that is withheld", () => {
    const made = clients();
    expect("downloadArtifact" in made.artifacts).toBe(false);
    expect(typeof made.artifacts.getArtifact).toBe("function");
  });
});

describe("calls", () => {
  const ways: [string, Partial<ClientsOptions & NodeOptions>][] = [
    ["connect, binary", {}],
    ["connect, JSON", { format: "json" }],
    ["gRPC-Web", { protocol: "grpc-web" }],
    ["connect over HTTP/2", { httpVersion: "2" }],
    ["gRPC", { protocol: "grpc" }],
    ["gRPC-Web over HTTP/2, JSON", { protocol: "grpc-web", httpVersion: "2", format: "json" }],
  ];
  test.each(ways)("answer and refuse over %s", async (_, way) => {
    const server = await startHttp2((router) => {
      router.service(ModelService, {
        listModels: (_request, ctx) => {
          if (ctx.requestHeader.get("authorization") !== "Bearer edg_test_wide") {
            throw refusal(Code.PermissionDenied, "SCOPE_MISSING", undefined, { scope: "models:read" });
          }
          return { models: [{ name: "vad" }] };
        },
      });
    });
    const isHttp2 = way.httpVersion === "2" || way.protocol === "grpc";
    const baseUrl = isHttp2 ? server.url : mesh.url;
    const made = clients({ ...way, baseUrl });
    const narrow = clients({ ...way, baseUrl, credential: apiKey("edg_test_narrow") });
    try {
      expect((await made.models.listModels({})).models[0]?.name).toBe("vad");
      const error = await narrow.models.listModels({}).catch((thrown: unknown) => thrown);
      expect(reasonOf(error)).toBe("SCOPE_MISSING");
      expect(factsOf(error)).toEqual({ scope: "models:read" });
    } finally {
      made.close();
      narrow.close();
      await server.close();
    }
  });

  test("are made from the local address that was chosen", async () => {
    if (process.platform !== "linux") return;
    const seen: string[] = [];
    const server = await startHttp2(
      (router) => router.service(ModelService, { listModels: () => ({}) }),
      (address) => seen.push(address),
    );
    const made = clients({ baseUrl: server.url, httpVersion: "2", localAddress: "127.0.0.88" });
    await made.models.listModels({});
    made.close();
    await server.close();
    expect(seen).toEqual(["127.0.0.88"]);
  });

  test("carry no credential where there is none", async () => {
    const error = await clients({ credential: undefined })
      .models.listModels({})
      .catch((thrown: unknown) => thrown);
    expect(isReason(error, "CREDENTIAL_MISSING", "CREDENTIAL_EXPIRED")).toBe(true);
    expect(isReason(error, "SCOPE_MISSING")).toBe(false);
  });

  test("go to http and https URLs only, without secrets in them", () => {
    for (const baseUrl of ["localhost:8080", "ftp://x", "", "http://user:secret@x", "http://x/?key=1"]) {
      expect(() => clients({ baseUrl })).toThrow(TypeError);
    }
  });

  test("take no credential that could break a header", () => {
    for (const token of ["", "a b", "a\r\nx-evil: 1", "ä"]) expect(() => bearer(token)).toThrow(TypeError);
  });
});

describe("retries", () => {
  test("repeat what the contract declares repeatable, with back-off, and tell", async () => {
    mesh.faults.unavailableLists = 2;
    const events: RetryEvent[] = [];
    const made = clients({ onRetry: (event) => events.push(event), retry: { baseDelayMs: 1 } });
    await made.models.listModels({});
    expect(mesh.calls("listModels")).toBe(3);
    expect(events.map(({ method, attempt }) => [method, attempt])).toEqual([
      ["octomesh.model.v1.ModelService/ListModels", 1],
      ["octomesh.model.v1.ModelService/ListModels", 2],
    ]);
  });

  test("send the same request id in every attempt, and another in every call", async () => {
    mesh.faults.unavailableLists = 1;
    const made = clients({ retry: { baseDelayMs: 1 } });
    await made.models.createModel({ name: "one" });
    await made.models.createModel({ name: "two" });
    await made.models.createModel({ name: "three", requestId: "mine" });
    const [first, repeated, second, own] = mesh.requestIds;
    expect(first).toMatch(/^[0-9a-f-]{36}$/);
    expect(repeated).toBe(first);
    expect(second).not.toBe(first);
    expect(own).toBe("mine");
  });

  test("take a request object that is sent twice for two requests", async () => {
    const made = clients();
    const request = create(CreateModelRequestSchema, { name: "one" });
    await made.models.createModel(request);
    await made.models.createModel(request);
    expect(request.requestId).toBe("");
    expect(new Set(mesh.requestIds).size).toBe(2);
  });

  test("end with the number of attempts", async () => {
    mesh.faults.unavailableLists = 100;
    await expect(clients({ retry: { baseDelayMs: 1 } }).models.listModels({})).rejects.toMatchObject({
      code: Code.Unavailable,
    });
    expect(mesh.calls("listModels")).toBe(4);
  });

  const failing = (error: () => ConnectError) => {
    let attempts = 0;
    const transport = createRouterTransport((router) => {
      const fail = () => {
        attempts++;
        throw error();
      };
      router.service(ModelService, { listModels: fail });
      router.service(SessionService, { acceptInvitation: fail });
    });
    return { transport, attempts: () => attempts };
  };

  test("do not repeat what the contract does not declare repeatable", async () => {
    const { transport, attempts } = failing(() => new ConnectError("away", Code.Unavailable));
    await expect(clients({ transport }).sessions.acceptInvitation({ email: "a@example.com" })).rejects.toThrow("away");
    expect(attempts()).toBe(1);
  });

  test("wait as the server asks, and not at all where it says nothing", async () => {
    const slept: number[] = [];
    const sleep = async (ms: number) => void slept.push(ms);
    const asked = failing(() => refusal(Code.ResourceExhausted, "RATE_LIMITED", 2_000));
    await expect(clients({ transport: asked.transport, sleep, random: () => 0 }).models.listModels({})).rejects.toThrow(
      "rate_limited",
    );
    expect(asked.attempts()).toBe(4);
    expect(slept).toEqual([2_000, 2_000, 2_000]);
    const full = failing(() => refusal(Code.ResourceExhausted, "QUOTA_EXCEEDED"));
    await expect(clients({ transport: full.transport, sleep }).models.listModels({})).rejects.toThrow("quota_exceeded");
    expect(full.attempts()).toBe(1);
  });

  test("do not begin a wait that would pass the deadline", async () => {
    const { transport, attempts } = failing(() => refusal(Code.ResourceExhausted, "RATE_LIMITED", 60_000));
    await expect(clients({ transport, timeoutMs: 1_000 }).models.listModels({})).rejects.toThrow("rate_limited");
    expect(attempts()).toBe(1);
  });

  test("repeat after a lost connection", async () => {
    let attempts = 0;
    const server = await startHttp2((router) => {
      router.service(ModelService, {
        listModels: () => {
          if (++attempts === 1) server.cut();
          return {};
        },
      });
    });
    const made = clients({ baseUrl: server.url, httpVersion: "2", retry: { baseDelayMs: 1 } });
    await made.models.listModels({});
    made.close();
    await server.close();
    expect(attempts).toBe(2);
  });

  test("are none for a refusal", async () => {
    const made = clients({ credential: apiKey("edg_test_narrow") });
    await expect(made.models.listModels({})).rejects.toThrow();
    expect(mesh.calls("listModels")).toBe(1);
  });
});

describe("deadlines", () => {
  const hanging = createRouterTransport((router) => {
    router.service(ModelService, {
      listModels: (_request, ctx) =>
        new Promise((_, reject) => ctx.signal.addEventListener("abort", () => reject(ctx.signal.reason))),
    });
  });

  test("end a call that nobody answers, over all its attempts", async () => {
    await expect(clients({ transport: hanging, timeoutMs: 30 }).models.listModels({})).rejects.toMatchObject({
      code: Code.DeadlineExceeded,
    });
  });

  test("leave cancelling to the caller", async () => {
    const abort = new AbortController();
    const call = clients({ transport: hanging }).models.listModels({}, { signal: abort.signal });
    abort.abort();
    await expect(call).rejects.toMatchObject({ code: Code.Canceled });
  });
});

describe("closing", () => {
  test("ends the calls that are under way, and repeats none", async () => {
    let attempts = 0;
    const server = await startHttp2((router) => {
      router.service(ModelService, {
        listModels: (_request, ctx) => {
          attempts++;
          return new Promise((_, reject) => ctx.signal.addEventListener("abort", () => reject(ctx.signal.reason)));
        },
      });
    });
    const made = clients({ baseUrl: server.url, httpVersion: "2" });
    const call = made.models.listModels({});
    call.catch(() => {});
    await until(() => attempts === 1, "the call");
    made.close();
    await expect(call).rejects.toMatchObject({ code: Code.Canceled });
    await expect(made.models.listModels({})).rejects.toMatchObject({ code: Code.Canceled });
    expect(attempts).toBe(1);
    await server.close();
  });
});

describe("a session", () => {
  const state = () => ({ accessToken: "session-1", refreshToken: "edg_session_1", expireTimeMs: Date.now() + 60_000 });

  test("is renewed once for all calls that find it expired", async () => {
    mesh.sessions.accessToken = "session-0";
    const made = clients({ credential: session(memorySession(state())) });
    await Promise.all(Array.from({ length: 50 }, () => made.models.listModels({})));
    expect(mesh.calls("refreshSession")).toBe(1);
    expect(await made.authorization()).toBe("Bearer session-2");
  });

  test("is renewed before it expires", async () => {
    const store = memorySession({ ...state(), expireTimeMs: Date.now() + 29_000 });
    await clients({ credential: session(store) }).models.listModels({});
    expect(mesh.calls("refreshSession")).toBe(1);
    expect(await store.load()).toMatchObject({ accessToken: "session-2", refreshToken: "edg_session_2" });
  });

  test("that was ended says so", async () => {
    mesh.sessions.isRevoked = true;
    const store = memorySession({ ...state(), expireTimeMs: 0 });
    const error = await clients({ credential: session(store) })
      .models.listModels({})
      .catch((thrown: unknown) => thrown);
    expect(isReason(error, "CREDENTIAL_REVOKED")).toBe(true);
  });
});

describe("reasons", () => {
  test("are a closed union: names that the contract has, and none of JavaScript's", () => {
    const name: ReasonName = "SCOPE_MISSING";
    expect(reasonOf(refusal(Code.PermissionDenied, name))).toBe(name);
    for (const foreign of ["toString", "__proto__", "10", "UNSPECIFIED", "FROM_THE_FUTURE"]) {
      expect(reasonOf(refusal(Code.PermissionDenied, foreign as ReasonName))).toBeUndefined();
    }
    expect(reasonOf(new Error("SCOPE_MISSING"))).toBeUndefined();
    expect(reasonOf(undefined)).toBeUndefined();
    // @ts-expect-error no reason of the contract
    expect(isReason(refusal(Code.PermissionDenied, name), "SCOPE_MISING")).toBe(false);
  });
});

async function startHttp2(routes: (router: ConnectRouter) => void, onConnection?: (address: string) => void) {
  const server: Http2Server = createServer(connectNodeAdapter({ routes }));
  const sessions = new Set<{ destroy(): void; close(): void }>();
  server.on("session", (opened) => {
    sessions.add(opened);
    onConnection?.(opened.socket?.remoteAddress ?? "");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    cut: () => {
      for (const opened of sessions) opened.destroy();
    },
    async close() {
      for (const opened of sessions) opened.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
