import { createHash, randomBytes } from "node:crypto";
import { expect, it } from "vitest";
import { createUploadDigests } from "./upload-digests.ts";

const same = { before: "1", after: "1" };
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest();

it("knows the digest of an upload whose every chunk came by here", () => {
  const digests = createUploadDigests();
  const bytes = randomBytes(1000);
  digests.advance("a", 0, bytes.subarray(0, 300), { before: "1", after: "2" });
  expect(digests.finish("a", 1000)).toBeUndefined();
  digests.advance("a", 300, bytes.subarray(300), { before: "2", after: "3" });
  expect(digests.finish("a", 1000)).toEqual(sha256(bytes));
  expect(digests.finish("a", 1000)).toEqual(sha256(bytes));
});

it("forgets an upload of which a chunk went elsewhere, until it begins again", () => {
  const digests = createUploadDigests();
  const bytes = randomBytes(1000);
  digests.advance("a", 0, bytes.subarray(0, 300), same);
  digests.advance("a", 400, bytes.subarray(400), same);
  expect(digests.finish("a", 900)).toBeUndefined();
  digests.advance("b", 10, bytes, same);
  expect(digests.finish("b", 1010)).toBeUndefined();
  digests.advance("a", 0, bytes, same);
  expect(digests.finish("a", 1000)).toEqual(sha256(bytes));
  digests.drop("a");
  expect(digests.finish("a", 1000)).toBeUndefined();
});

it("forgets an upload that was begun again elsewhere, though it has come as far as before", () => {
  const digests = createUploadDigests();
  const bytes = randomBytes(1000);
  digests.advance("a", 0, bytes.subarray(0, 300), { before: "1", after: "2" });
  digests.advance("a", 300, bytes.subarray(300), { before: "5", after: "6" });
  expect(digests.finish("a", 1000)).toBeUndefined();
});

it("keeps the uploads that came along last", () => {
  const digests = createUploadDigests(2);
  for (const id of ["a", "b", "c"]) digests.advance(id, 0, randomBytes(1), same);
  expect(digests.finish("a", 1)).toBeUndefined();
  expect(digests.finish("b", 1)).toBeDefined();
  expect(digests.finish("c", 1)).toBeDefined();
});
