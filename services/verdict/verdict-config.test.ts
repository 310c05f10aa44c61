import { newId } from "@octomesh/mesh/ids";
import { expect, test } from "vitest";
import { readVerdictConfig } from "./verdict-config.ts";

test("has a default for everything", () => {
  expect(readVerdictConfig({})).toEqual({
    ttlMs: 600_000,
    landmarkOrgs: [],
    maxSessions: 150_000,
    maxSessionsOfOrganization: 100_000,
    isRedisUnpersisted: false,
  });
});

test("reads what is set", () => {
  const org = newId("org");
  const environment = { OCTOMESH_VERDICT_TTL: "2m", OCTOMESH_VERDICT_LANDMARK_ORGS: `${org}, ${org}` };
  expect(readVerdictConfig(environment)).toMatchObject({ ttlMs: 120_000, landmarkOrgs: [org, org] });
});

test.each([
  ["OCTOMESH_VERDICT_TTL", "5s"],
  ["OCTOMESH_VERDICT_TTL", "2h"],
  ["OCTOMESH_VERDICT_LANDMARK_ORGS", "acme"],
  ["OCTOMESH_VERDICT_MAX_SESSIONS", "0"],
  ["OCTOMESH_VERDICT_REDIS_UNPERSISTED", "maybe"],
])("refuses %s=%s", (name, value) => {
  expect(() => readVerdictConfig({ [name]: value })).toThrow(name);
});
