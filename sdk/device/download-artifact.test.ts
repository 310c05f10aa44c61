import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nodePlatform } from "../platform/node.ts";
import type { HttpResponse } from "../platform/platform.ts";
import type { ArtifactStore } from "./artifact-store.ts";
import { isDeviceError } from "./device-error.ts";
import { directoryArtifacts } from "./directory-artifacts.ts";
import { downloadArtifact, isIntact } from "./download-artifact.ts";
import { downloadStep, rangeHeaders } from "./download-step.ts";
import { memoryArtifacts } from "./memory-artifacts.ts";

/** What the server does to one request. */
type Behaviour =
  | { kind: "serve"; cutAfter: number; ignoresRange: boolean }
  | { kind: "status"; status: number }
  | { kind: "lost" }
  /** From here on it has other bytes of the same length under another entity tag. */
  | { kind: "replace" }
  /** Serves the range of the next artifact under the tag of the first: a lie that only the digest finds. */
  | { kind: "lie"; cutAfter: number };

const behaviour: fc.Arbitrary<Behaviour> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("serve" as const),
      cutAfter: fc.integer({ min: 0, max: 400 }),
      ignoresRange: fc.boolean(),
    }),
  },
  fc.record({
    kind: fc.constant("status" as const),
    status: fc.constantFrom(401, 403, 404, 408, 416, 429, 500, 503, 301),
  }),
  fc.constant({ kind: "lost" as const }),
  fc.constant({ kind: "replace" as const }),
  fc.record({ kind: fc.constant("lie" as const), cutAfter: fc.integer({ min: 1, max: 400 }) }),
);

function server(bytes: Uint8Array, script: Behaviour[]) {
  const other = Uint8Array.from(bytes, (byte) => byte ^ 0xff);
  let isReplaced = false;
  let requests = 0;
  return {
    requests: () => requests,
    isReplaced: () => isReplaced,
    async http({ headers }: { headers: Readonly<Record<string, string>> }): Promise<HttpResponse> {
      requests++;
      const next = script.shift() ?? { kind: "serve", cutAfter: 1e9, ignoresRange: false };
      if (next.kind === "replace") isReplaced = !isReplaced;
      if (next.kind === "lost") throw Object.assign(new Error("socket hang up"), { code: "ECONNRESET" });
      if (next.kind === "status") {
        return { status: next.status, headers: new Headers({ "retry-after": "0" }), body: pieces(bytes, 10, 0) };
      }
      const content = isReplaced || next.kind === "lie" ? other : bytes;
      const etag = isReplaced ? '"other"' : '"first"';
      const range = /^bytes=(\d+)-$/.exec(headers.range ?? "");
      const ignores = next.kind === "serve" && next.ignoresRange;
      const isPartial = range !== null && headers["if-range"] === etag && !ignores;
      const from = isPartial ? Number(range[1]) : 0;
      const cutAfter = next.kind === "replace" ? 1e9 : next.cutAfter;
      return {
        status: isPartial ? 206 : 200,
        headers: new Headers({
          etag,
          "content-length": String(content.length - from),
          ...(isPartial ? { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` } : {}),
        }),
        body: pieces(content.subarray(from), 37, cutAfter),
      };
    },
  };
}

async function* pieces(bytes: Uint8Array, size: number, cutAfter: number): AsyncIterable<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) {
    if (at + size > cutAfter) {
      if (cutAfter > at) yield bytes.slice(at, cutAfter);
      throw Object.assign(new Error("aborted"), { code: "ECONNRESET" });
    }
    yield bytes.slice(at, at + size);
  }
}

const digestOf = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

function download(
  store: ArtifactStore,
  bytes: Uint8Array,
  http: ReturnType<typeof server>["http"],
  signal?: AbortSignal,
) {
  return downloadArtifact({
    sha256: digestOf(bytes),
    sizeBytes: bytes.length,
    store,
    http,
    sha256Of: nodePlatform.sha256,
    source: async () => ({ url: "http://mesh.test/artifact", headers: {} }),
    signal: signal ?? new AbortController().signal,
    sleep: async () => {},
    checkpointBytes: 64,
  });
}

async function contentOf(store: ArtifactStore, sha256: string): Promise<Buffer> {
  const found: Uint8Array[] = [];
  for await (const piece of store.read(sha256)) found.push(piece);
  return Buffer.concat(found);
}

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "octomesh-download-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe("a download", () => {
  const stores: [string, () => Promise<ArtifactStore>, number][] = [
    ["memory", async () => memoryArtifacts(), 300],
    ["a folder", async () => directoryArtifacts(await mkdtemp(join(folder, "store-"))), 60],
  ];
  test.each(stores)(
    "into %s, whatever the server does, ends with the signed bytes or without any",
    async (_, make, numRuns) => {
      await fc.assert(
        fc.asyncProperty(
          fc.uint8Array({ minLength: 1, maxLength: 500 }),
          fc.array(behaviour, { maxLength: 12 }),
          async (bytes, script) => {
            const store = await make();
            const sha256 = digestOf(bytes);
            const { http, requests, isReplaced } = server(bytes, script);
            // Each failure is followed by another call, as the device client does; the server is good in the end, unless
            // it has replaced the artifact for good.
            for (let call = 0; call < 16 && (await store.sizeOf(sha256)) === undefined; call++) {
              const before = requests();
              try {
                await download(store, bytes, http);
              } catch (error) {
                expect(isDeviceError(error, "DOWNLOAD", "ARTIFACT_DIGEST", "ARTIFACT_SIZE")).toBe(true);
                expect(requests() - before).toBeLessThanOrEqual(40);
              }
            }
            if ((await store.sizeOf(sha256)) !== undefined) {
              expect((await contentOf(store, sha256)).equals(Buffer.from(bytes))).toBe(true);
              expect(await isIntact(store, sha256, bytes.length, nodePlatform.sha256)).toBe(true);
            } else {
              expect(isReplaced()).toBe(true);
            }
          },
        ),
        { numRuns },
      );
    },
  );

  test("fetches no byte twice where the server keeps its side", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ minLength: 1, maxLength: 500 }),
        fc.array(fc.integer({ min: 1, max: 200 }), { maxLength: 10 }),
        async (bytes, cuts) => {
          const store = memoryArtifacts();
          const script = cuts.map((cutAfter): Behaviour => ({ kind: "serve", cutAfter, ignoresRange: false }));
          const { receivedBytes } = await download(store, bytes, server(bytes, script).http);
          expect(receivedBytes).toBe(bytes.length);
        },
      ),
    );
  });

  test("whose earlier piece was bad is fetched once more as a whole", async () => {
    const bytes = randomBytes(500);
    const store = directoryArtifacts(await mkdtemp(join(folder, "store-")));
    const partial = await store.openPartial(digestOf(bytes));
    await partial.restart('"first"');
    await partial.append(randomBytes(200));
    await partial.checkpoint();
    await partial.close();
    const { receivedBytes, resumed } = await download(store, bytes, server(bytes, []).http);
    expect(resumed).toBe(true);
    expect(receivedBytes).toBe(300 + 500);
    expect(await isIntact(store, digestOf(bytes), 500, nodePlatform.sha256)).toBe(true);
  });

  test("that always comes with wrong bytes and is always cut ends all the same", async () => {
    const bytes = randomBytes(500);
    const script = Array.from({ length: 60 }, (): Behaviour => ({ kind: "lie", cutAfter: 100 }));
    await expect(download(memoryArtifacts(), bytes, server(bytes, script).http)).rejects.toMatchObject({
      kind: "ARTIFACT_DIGEST",
    });
  });

  test("of more bytes than are signed is broken off at the first that is too many", async () => {
    const bytes = randomBytes(500);
    const http = async () => ({ status: 200, headers: new Headers(), body: pieces(randomBytes(5_000), 100, 1e9) });
    const store = memoryArtifacts();
    await expect(download(store, bytes, http)).rejects.toMatchObject({ kind: "ARTIFACT_SIZE" });
    expect((await store.openPartial(digestOf(bytes))).offset).toBe(0);
  });

  test("that is stopped keeps its piece", async () => {
    const bytes = randomBytes(500);
    const store = memoryArtifacts();
    const stop = new AbortController();
    const http = async () => ({
      status: 200,
      headers: new Headers({ etag: '"first"' }),
      body: (async function* () {
        yield bytes.subarray(0, 200);
        stop.abort(new Error("stopped"));
        throw new Error("aborted");
      })(),
    });
    await expect(download(store, bytes, http, stop.signal)).rejects.toThrow("stopped");
    expect((await store.openPartial(digestOf(bytes))).offset).toBe(200);
  });
});

describe("a piece in a folder", () => {
  test("after a crash at any byte begins where the record says, with the bytes that came", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.uint8Array({ minLength: 1, maxLength: 50 }), fc.boolean()), {
          minLength: 1,
          maxLength: 8,
        }),
        fc.nat(),
        async (appends, choice) => {
          const root = await mkdtemp(join(folder, "crash-"));
          const sha256 = "ab".repeat(32);
          const before = await directoryArtifacts(root).openPartial(sha256);
          await before.restart('"tag"');
          let recorded = 0;
          let all = Buffer.alloc(0);
          for (const [bytes, isCheckpoint] of appends) {
            await before.append(bytes);
            all = Buffer.concat([all, bytes]);
            if (isCheckpoint) {
              await before.checkpoint();
              recorded = all.length;
            }
          }
          // The power goes: beyond the record anything may be missing.
          const file = await open(join(root, `${sha256}.part`), "r+");
          await file.truncate(recorded + (choice % (all.length - recorded + 1)));
          await file.close();
          await before.close();
          const after = await directoryArtifacts(root).openPartial(sha256);
          expect([after.etag, after.offset]).toEqual(['"tag"', recorded]);
          const found: Uint8Array[] = [];
          for await (const piece of after.read()) found.push(piece);
          expect(Buffer.concat(found).equals(all.subarray(0, recorded))).toBe(true);
          await after.close();
        },
      ),
      { numRuns: 40 },
    );
  });
});

describe("the step of a download", () => {
  const progress = { etag: '"a"', offset: 10 };
  const step = (status: number, headers: Record<string, string>) =>
    downloadStep({ status, headers: new Headers(headers) }, progress, 100, 0);

  test("asks for the rest only under a strong entity tag", () => {
    expect(rangeHeaders(progress)).toEqual({ range: "bytes=10-", "if-range": '"a"' });
    expect(rangeHeaders({ etag: 'W/"a"', offset: 10 })).toEqual({});
    expect(rangeHeaders({ etag: '"a"', offset: 0 })).toEqual({});
    expect(rangeHeaders({ etag: undefined, offset: 10 })).toEqual({});
  });

  test.each([
    ["continues what matches", 206, { etag: '"a"', "content-range": "bytes 10-99/100" }, { kind: "append" }],
    ["drops what begins elsewhere", 206, { etag: '"a"', "content-range": "bytes 9-99/100" }, { kind: "discard" }],
    ["drops what is another's", 206, { etag: '"b"', "content-range": "bytes 10-99/100" }, { kind: "discard" }],
    ["drops what says no range", 206, { etag: '"a"' }, { kind: "discard" }],
    ["refuses another size", 206, { "content-range": "bytes 10-99/101" }, { kind: "wrong-size", sizeBytes: 101 }],
    ["refuses another length", 200, { "content-length": "99" }, { kind: "wrong-size", sizeBytes: 99 }],
    ["begins anew", 200, { etag: '"b"', "content-length": "100" }, { kind: "restart", etag: '"b"' }],
    ["begins anew after 416", 416, {}, { kind: "discard" }],
    ["renews what is refused", 401, {}, { kind: "renew", status: 401 }],
    ["waits as asked", 429, { "retry-after": "7" }, { kind: "wait", ms: 7_000 }],
    ["waits until the date", 503, { "retry-after": "Thu, 01 Jan 1970 00:00:09 GMT" }, { kind: "wait", ms: 9_000 }],
    ["repeats", 502, {}, { kind: "retry", status: 502 }],
    ["follows no redirect", 302, { location: "http://elsewhere.test" }, { kind: "fail", status: 302 }],
  ])("%s", (_, status, headers, expected) => {
    expect(step(status, headers as Record<string, string>)).toEqual(expected);
  });
});
