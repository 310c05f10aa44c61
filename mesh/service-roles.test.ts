import { randomBytes } from "node:crypto";
import pg from "pg";
import pino from "pino";
import { afterAll, describe, expect, it } from "vitest";
import { openDatabase } from "./database.ts";
import { ensureServiceRoles, schemaOf, serviceRoles, serviceRolesSql } from "./service-roles.ts";
import { openTestDatabase, writeMigrations } from "./test/database-fixture.ts";

const migrations = await writeMigrations({});
const database = await openTestDatabase({ service: "mesh-test", migrations });
const log = pino({ level: "silent" });
const own = `operated-${randomBytes(4).toString("hex")}`;
const sibling = `sibling-${randomBytes(4).toString("hex")}`;
const operator = `operator_${randomBytes(4).toString("hex")}`;
const passwords = { login: "log'in\\", migrator: "mig" };

async function asAdmin(url: string, ...texts: string[]): Promise<pg.QueryResult | undefined> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    let last: pg.QueryResult | undefined;
    for (const text of texts) last = await client.query(text);
    return last;
  } finally {
    await client.end();
  }
}

function urlOf(user: string, password: string): string {
  const url = new URL(database.adminUrl);
  url.pathname = `/${operator}`;
  url.username = user;
  url.password = encodeURIComponent(password);
  return url.href;
}

afterAll(async () => {
  const roles = [own, sibling].flatMap((service) => Object.values(serviceRoles(service)));
  await asAdmin(
    database.adminUrl,
    `drop database if exists ${operator} with (force)`,
    `drop role if exists ${[...roles, operator].join(", ")}`,
  );
});

describe("ensureServiceRoles", () => {
  it("needs no superuser: a role that owns the database and may create roles does", async () => {
    await asAdmin(
      database.adminUrl,
      `create role ${operator} login createrole password 'op'`,
      `create database ${operator} owner ${operator}`,
    );
    const adminUrl = urlOf(operator, "op");
    await ensureServiceRoles(adminUrl, own, passwords);
    await Promise.all([1, 2, 3].map(() => ensureServiceRoles(adminUrl, own, passwords)));
    const { login, migrator } = serviceRoles(own);
    const opened = await openDatabase({
      service: own,
      url: urlOf(login, passwords.login),
      migrationUrl: urlOf(migrator, passwords.migrator),
      migrations,
      log,
    });
    await opened.ping();
    await opened.close();
  });

  it("changes passwords when it runs again", async () => {
    const { login } = serviceRoles(own);
    await ensureServiceRoles(urlOf(operator, "op"), own, { ...passwords, login: "new" });
    await expect(asAdmin(urlOf(login, passwords.login), "select 1")).rejects.toMatchObject({ code: "28P01" });
    await asAdmin(urlOf(login, "new"), "select 1");
  });

  it("lets no service into another's schema", async () => {
    const { login } = serviceRoles(own);
    await expect(asAdmin(urlOf(login, "new"), "create temporary table mine ()")).rejects.toMatchObject({
      code: "42501",
    });
    const { migrator } = serviceRoles(own);
    await asAdmin(urlOf(operator, "op"), serviceRolesSql(sibling, passwords));
    await expect(asAdmin(urlOf(migrator, "mig"), `create table ${schemaOf(sibling)}.mine ()`)).rejects.toMatchObject({
      code: "42501",
    });
  });
});

describe("schemaOf", () => {
  it("is the service's name with underscores, and refuses what could end an identifier", () => {
    expect(schemaOf("device-registry")).toBe("device_registry");
    for (const name of ["", "A", "a b", "a;b", 'a"', "-a", "a-", "1a", "a_b", "x".repeat(60)]) {
      expect(() => schemaOf(name)).toThrow("no service name");
    }
  });
});
