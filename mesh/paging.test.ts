import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { createPager, defaultPageSize, maxPageSize, type PageRequest } from "./paging.ts";

const pager = createPager(Buffer.alloc(32, 1));
const first: PageRequest = {
  method: "a.B/ListC",
  orgId: "org_a",
  filter: ["state=active", ""],
  pageSize: 10,
  pageToken: "",
};

function refusal(request: PageRequest, by = pager): unknown {
  try {
    by.read(request);
    return undefined;
  } catch (error) {
    return reasonOf(error);
  }
}

describe("a page token", () => {
  it("gives back the key that it was made of, to the same question", () => {
    fc.assert(
      fc.property(fc.array(fc.string({ maxLength: 100 }), { minLength: 1, maxLength: 3 }), (last) => {
        const pageToken = pager.next(first, last);
        expect(pageToken).toMatch(/^[\w.-]+$/);
        if (pageToken.length <= 1024) expect(pager.read({ ...first, pageToken })).toEqual({ limit: 10, after: last });
      }),
    );
  });

  it("may ask for another size of page, but for nothing else that is different", () => {
    const pageToken = pager.next(first, ["dev_a"]);
    expect(pager.read({ ...first, pageToken, pageSize: 20 })).toEqual({ limit: 20, after: ["dev_a"] });
    const others: Partial<PageRequest>[] = [
      { method: "a.B/ListD" },
      { orgId: "org_b" },
      { orgId: "" },
      { filter: [] },
      { filter: ["state=active"] },
      { filter: ["", "state=active"] },
      { filter: ["state=active", "", ""] },
    ];
    for (const other of others) {
      expect(refusal({ ...first, ...other, pageToken })).toBe(Reason.PAGE_TOKEN_INVALID);
    }
    expect(refusal({ ...first, pageToken }, createPager(Buffer.alloc(32, 2)))).toBe(Reason.PAGE_TOKEN_INVALID);
  });

  it("cannot be changed or made up", () => {
    const pageToken = pager.next(first, ["dev_a"]);
    const [body = "", sum = ""] = pageToken.split(".");
    const made = [
      `${Buffer.from('["dev_b"]').toString("base64url")}.${sum}`,
      `${body}.`,
      `.${sum}`,
      `${body}.${sum.slice(0, -2)}`,
      `${pageToken}.x`,
      body,
      ".",
      "x".repeat(2000),
      `${pageToken}${"=".repeat(2000)}`,
    ];
    for (const token of made)
      expect([token, refusal({ ...first, pageToken: token })]).toEqual([token, Reason.PAGE_TOKEN_INVALID]);
    fc.assert(
      fc.property(
        fc.string({ minLength: 1 }),
        (token) => refusal({ ...first, pageToken: token }) === Reason.PAGE_TOKEN_INVALID,
      ),
    );
    fc.assert(
      fc.property(fc.nat(pageToken.length - 1), fc.constantFrom(..."AZaz09_-"), (at, character) => {
        const changed = pageToken.slice(0, at) + character + pageToken.slice(at + 1);
        const result = refusal({ ...first, pageToken: changed });
        // The last character of unpadded base64 has bits that mean nothing.
        if (Buffer.from(changed, "base64url").equals(Buffer.from(pageToken, "base64url"))) return;
        expect([undefined, Reason.PAGE_TOKEN_INVALID]).toContain(result);
        if (result === undefined) expect(pager.read({ ...first, pageToken: changed }).after).toEqual(["dev_a"]);
      }),
    );
  });
});

describe("a page's size", () => {
  it.each([
    [0, defaultPageSize],
    [-5, defaultPageSize],
    [1, 1],
    [1000, maxPageSize],
    [1_000_000, maxPageSize],
  ])("of %i is %i", (pageSize, limit) => {
    expect(pager.read({ ...first, pageSize })).toEqual({ limit, after: undefined });
  });
});
