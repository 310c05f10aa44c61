import { describe, expect, it } from "vitest";
import { databaseTarget, requireEncryptedTransport } from "./database-url.ts";

describe("requireEncryptedTransport", () => {
  it("lets this machine pass, by loopback or socket", () => {
    for (const url of [
      "postgres://u:p@127.0.0.1:5432/d",
      "postgres://u:p@localhost/d",
      "postgresql://u:p@[::1]/d",
      "postgres://u:p@/d?host=/var/run/postgresql",
    ]) {
      expect(() => requireEncryptedTransport(url, "DATABASE_URL")).not.toThrow();
    }
  });

  it("lets a remote database pass only with verify-full, said once", () => {
    const remote = "postgres://u:p@db.example.com/d";
    expect(() => requireEncryptedTransport(`${remote}?sslmode=verify-full`, "X_URL")).not.toThrow();
    for (const query of [
      "",
      "?sslmode=require",
      "?sslmode=verify-ca",
      "?sslmode=disable",
      "?ssl=true",
      "?sslmode=verify-full&sslmode=disable",
      "?sslmode=verify-full&ssl=false",
    ]) {
      expect(() => requireEncryptedTransport(remote + query, "X_URL")).toThrow(/X_URL.*verify-full/);
    }
  });

  it("judges the host that the driver will use, not the one that the URL shows", () => {
    const url = "postgres://u:p@127.0.0.1/d?host=db.example.com";
    expect(() => requireEncryptedTransport(url, "X_URL")).toThrow("db.example.com");
    expect(() => requireEncryptedTransport("postgres://u:p@127.0.0.1.evil.example/d", "X_URL")).toThrow("X_URL");
  });
});

describe("databaseTarget", () => {
  it("shows host, port and database, and never user or password", () => {
    expect(databaseTarget("postgres://user:secret@db.example.com:6000/d", "X")).toBe("db.example.com:6000/d");
  });

  it("names the variable of a text that is no PostgreSQL URL, without repeating it", () => {
    for (const url of ["", "secret", "mysql://u:secret@h/d", "postgres://["]) {
      expect(() => databaseTarget(url, "X_URL")).toThrow(/^X_URL: expected postgres:\/\//);
    }
  });
});
