import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createLogger, redactText } from "./log.ts";
import { deriveToken, mintToken, tokenPrefixes } from "./opaque-token.ts";

function capture(pretty = false): { log: ReturnType<typeof createLogger>; text: () => string } {
  const lines: string[] = [];
  const destination = { write: (line: string) => lines.push(line) };
  const log = createLogger({ service: "rollout", level: "trace", pretty, destination });
  return { log, text: () => lines.join("") };
}

const jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJkZXZfYSJ9.c2lnbmF0dXJlLWJ5dGVz";

describe("a log", () => {
  it("is one JSON object for each line, with the service's name", () => {
    const { log, text } = capture();
    log.info({ org_id: "org_a" }, "hello");
    expect(JSON.parse(text())).toMatchObject({ level: 30, service: "rollout", org_id: "org_a", msg: "hello" });
    expect(text().endsWith("\n")).toBe(true);
  });

  it("shows no token, wherever and however deep it stands", () => {
    const around = fc.string();
    const token = fc.oneof(
      fc.constantFrom(...tokenPrefixes).map((prefix) => mintToken(prefix)),
      fc.constantFrom(...tokenPrefixes).map((prefix) => deriveToken(prefix, Buffer.alloc(32), "x")),
      fc.constant(jwt),
    );
    fc.assert(
      fc.property(token, around, fc.boolean(), (secret, text, pretty) => {
        const output = capture(pretty);
        const value = `${text}\n${secret} ${text}`;
        output.log.info({ value, deep: [{ deeper: { value } }], [secret]: 1 }, value);
        output.log.error({ err: new Error(value, { cause: new Error(value) }) }, "failed");
        expect(output.text()).not.toContain(secret);
        expect(output.text()).not.toContain(secret.slice(0, -8));
      }),
    );
  });

  it("shows no secret header, field, or password of a URL", () => {
    for (const pretty of [false, true]) {
      const { log, text } = capture(pretty);
      const headers = { authorization: "hunter2", cookie: "hunter2", "x-api-key": "hunter2", accept: "text/plain" };
      log.info({ headers, request: { headers }, password: "hunter2", user: { password: "hunter2" }, ...headers }, "a");
      log.info({ url: "postgres://user:hunter2@db/octomesh", line: "Authorization: Bearer hunter2hunter2" }, "b");
      log.error({ err: new Error("connect rediss://:hunter2@cache:6379/0 failed") }, "c");
      expect(text()).not.toContain("hunter2");
      expect(text()).toContain("text/plain");
      expect(text()).toContain("cache:6379/0");
    }
  });

  it("leaves ids and ordinary text alone", () => {
    const line = "dev_aga5kvbl7b4dfnkyqlp7x2mh2a edg_live_ https://example.com/a@b spiffe://octomesh.internal/rollout";
    expect(redactText(line)).toBe(line);
    fc.assert(fc.property(fc.string({ maxLength: 20 }), (text) => redactText(redactText(text)) === redactText(text)));
  });

  it("takes work in proportion to the text, whatever it is", () => {
    // With work that grows as the square of the length, each of these would outlive the test's time by far.
    for (const text of ["eyJ", "edg_a", "edg_a_", "a://", "a.", "://a", "bearer ", "eyJaaaaaaaa.", "-eyJ"]) {
      redactText(text.repeat(500_000));
    }
  });

  it("is one line for people, errors excepted, that cannot move their cursor", () => {
    const { log, text } = capture(true);
    log.warn({ device: "dev_a", name: "a b\u001b[2J\r\nforged" }, "odd \u001b[31mname");
    const line = text().trimEnd();
    expect(line).toMatch(/^\d\d:\d\d:\d\d\.\d{3} warn {2}rollout +odd \[31mname device=dev_a name="a b/);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it is about
    expect(line).not.toMatch(/[\u0000-\u001f]/);
    log.error({ err: new Error("broken") }, "failed");
    expect(text()).toMatch(/failed.*Error: broken\n\s+at /);
  });
});

describe("an error in the log", () => {
  it("shows what went wrong, and nothing of the rows that a driver hung on it", () => {
    const error = Object.assign(new Error("duplicate key value violates unique constraint"), {
      code: "23505",
      constraint: "members_email",
      detail: "Key (email)=(ada@example.com) already exists.",
      cause: Object.assign(new Error("inner"), { parameters: ["ada@example.com"] }),
    });
    const lines: string[] = [];
    const log = createLogger({ service: "test", destination: { write: (line: string) => void lines.push(line) } });
    log.error({ err: error }, "failed");
    const shown = lines.join("");
    expect(shown).toContain("members_email");
    expect(shown).toContain("inner");
    expect(shown).not.toContain("ada@example.com");
  });
});
