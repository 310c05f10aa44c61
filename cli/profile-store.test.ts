import { chmod, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  checkProfileName,
  checkUrl,
  openProfileStore,
  type Profile,
  parseConfiguration,
  profileOf,
} from "./profile-store.ts";

const profile: Profile = { url: "http://localhost:8080", org_id: "org_x", org_name: "Acme", email: "ada@example.com" };
let home: string;

beforeEach(async () => {
  home = join(await mkdtemp(join(tmpdir(), "octomil-home-")), "nested", ".octomil");
});

afterEach(() => rm(join(home, "../.."), { recursive: true, force: true }));

describe("openProfileStore", () => {
  test("begins empty, and reads back what it wrote", async () => {
    const store = openProfileStore({ OCTOMIL_HOME: home });
    expect(await store.read()).toEqual({ version: 1, current: "default", profiles: {} });
    await store.update((configuration) => {
      configuration.profiles.acme = profile;
      configuration.current = "acme";
    });
    expect(await openProfileStore({ OCTOMIL_HOME: home }).read()).toEqual({
      version: 1,
      current: "acme",
      profiles: { acme: profile },
    });
    expect(await readdir(home)).toEqual(["config.json"]);
  });

  test.skipIf(process.platform === "win32")("keeps the file and its folder to the owner", async () => {
    const store = openProfileStore({ OCTOMIL_HOME: home });
    await store.update(() => {});
    expect((await stat(home)).mode & 0o777).toBe(0o700);
    expect((await stat(store.path)).mode & 0o777).toBe(0o600);
    await chmod(store.path, 0o644);
    await store.read();
    expect((await stat(store.path)).mode & 0o777).toBe(0o600);
  });

  test("loses no change of several commands at once", async () => {
    await Promise.all(
      Array.from({ length: 12 }, (_, index) =>
        openProfileStore({ OCTOMIL_HOME: home }).update((configuration) => {
          configuration.profiles[`p${index}`] = profile;
        }),
      ),
    );
    const { profiles } = await openProfileStore({ OCTOMIL_HOME: home }).read();
    expect(Object.keys(profiles)).toHaveLength(12);
  });

  test("refuses a file that is no configuration, and leaves it as it is", async () => {
    const store = openProfileStore({ OCTOMIL_HOME: home });
    await store.update(() => {});
    await writeFile(store.path, "not json");
    await expect(store.update(() => {})).rejects.toThrow("is not a configuration of octomil");
  });
});

describe("parseConfiguration", () => {
  test.each([
    "",
    "[]",
    "{}",
    '{"version":2,"current":"a","profiles":{}}',
    '{"version":1,"current":"a","profiles":{"a":{"url":1}}}',
    '{"version":1,"current":"a","profiles":{"../a":{"url":"","org_id":"","org_name":"","email":""}}}',
    '{"version":1,"current":"a","profiles":{"a":{"url":"","org_id":"","org_name":"","email":"","session":{}}}}',
  ])("answers undefined for %s", (text) => {
    expect(parseConfiguration(text)).toBeUndefined();
  });

  test("does not find a profile that is only a property of every object", () => {
    const configuration = parseConfiguration('{"version":1,"current":"constructor","profiles":{}}');
    expect(configuration && profileOf(configuration, "constructor")).toBeUndefined();
  });
});

describe("names and URLs", () => {
  test("takes an origin and gives it back without a slash", () => {
    expect(checkUrl("https://mesh.example.com/")).toBe("https://mesh.example.com");
    expect(checkUrl("http://localhost:8080")).toBe("http://localhost:8080");
  });

  test.each(["", "mesh.example.com", "ftp://a", "http://u:p@a", "http://a/path", "http://a?x=1"])(
    "refuses %j",
    (url) => {
      expect(() => checkUrl(url)).toThrow();
    },
  );

  test.each(["", "A", "../x", "a b", "-a", "x".repeat(51)])("refuses the profile name %j", (name) => {
    expect(() => checkProfileName(name)).toThrow();
  });
});
