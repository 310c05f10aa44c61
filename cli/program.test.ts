import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type ConnectRouter, createConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { fail, Reason } from "@octomesh/mesh/errors";
import { ApiKeyService, type CreateApiKeyRequest } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { MemberService } from "@octomesh/proto/octomesh/identity/v1/member_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { RolloutService } from "@octomesh/proto/octomesh/rollout/v1/rollout_service_pb";
import { TelemetryService } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import type { Command } from "commander";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { exitCode } from "./exit-code.ts";
import { openProfileStore } from "./profile-store.ts";
import { createProgram, runOctomil } from "./program.ts";
import { type FakeTerminalOptions, fakeTerminal } from "./testing/fake-terminal.ts";

const keyId = `key_${"a".repeat(26)}`;
const modelId = `mdl_${"a".repeat(26)}`;
const rolloutId = `rol_${"a".repeat(26)}`;
const versionId = `mvr_${"a".repeat(26)}`;
const memberId = `usr_${"a".repeat(26)}`;

let home: string;
let server: Server;
let url: string;
/** What the stand-in for the mesh was asked. */
let asked: { path: string; authorization: string | undefined }[];
let createKey: (request: CreateApiKeyRequest) => object;
let refreshes: number;

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "octomil-"));
  asked = [];
  refreshes = 0;
  createKey = (request) => ({ id: "key_a", name: request.name, apiKey: "edg_live_shownOnce", scopes: request.scopes });
  const adapter = connectNodeAdapter({ routes });
  server = createServer((request: IncomingMessage, response) => {
    asked.push({ path: request.url ?? "", authorization: request.headers.authorization });
    adapter(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

afterEach(async () => {
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
  await rm(home, { recursive: true, force: true });
});

function routes(router: ConnectRouter = createConnectRouter()): void {
  const expireTime = timestampFromMs(Date.now() + 3_600_000);
  router.service(OrganizationService, {
    setUpOrganization: (request) => ({
      organization: { id: "org_a", displayName: request.displayName, pairedId: "org_b" },
      session: {
        id: "ses_a",
        orgId: "org_a",
        memberId: "usr_a",
        accessToken: "access-1",
        refreshToken: "edg_session_1",
        expireTime,
      },
    }),
  });
  router.service(ApiKeyService, {
    createApiKey: (request) => createKey(request),
    revokeApiKey: () => {
      throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such key", { id: keyId });
    },
  });
  router.service(MemberService, {
    getMember: ({ id }) => ({ id: memberId, email: id }),
    removeMember: () => ({}),
  });
  router.service(ModelService, {
    getModel({ id }) {
      if (id !== "vad" && id !== modelId) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such model", { id });
      return { id: modelId, name: "vad" };
    },
    listModels: () => ({ models: [{ id: modelId, name: "vad" }] }),
    deleteModel: () => ({}),
  });
  router.service(ModelVersionService, {
    listModelVersions: () => ({ modelVersions: [{ id: versionId, version: "1.0.0" }] }),
  });
  router.service(RolloutService, {
    listRollouts: () => ({ rollouts: [{ id: rolloutId, modelId, version: "1.0.0" }] }),
    createRollout: (request) => ({ id: rolloutId, modelId, version: request.version }),
  });
  router.service(TelemetryService, {
    listLatencyAggregates: () => ({ aggregates: [{ key: { modelId, versionId } }] }),
  });
  router.service(SessionService, {
    acceptInvitation() {
      throw fail(Reason.CREDENTIAL_UNKNOWN, "the invitation is unknown");
    },
    getCaller: () => ({ orgId: "org_a", id: "usr_a" }),
    refreshSession() {
      refreshes += 1;
      return {
        id: "ses_a",
        orgId: "org_a",
        accessToken: `access-${refreshes + 1}`,
        refreshToken: `edg_session_${refreshes + 1}`,
        expireTime,
      };
    },
  });
}

async function octomil(line: string | string[], options: FakeTerminalOptions = {}) {
  const terminal = fakeTerminal({ ...options, env: { OCTOMIL_HOME: home, OCTOMIL_URL: url, ...options.env } });
  const code = await runOctomil(typeof line === "string" ? line.split(" ") : line, terminal);
  return { code, stdout: terminal.stdout(), stderr: terminal.stderr() };
}

const signIn = () => octomil(["setup", "--code", "edg_setup_x", "--org", "Acme", "--email", "ada@example.com"]);

describe("set-up and session", () => {
  test("keeps the session, never prints it, and calls with it afterwards", async () => {
    const { code, stdout } = await signIn();
    expect(code).toBe(exitCode.ok);
    expect(stdout).toContain("Acme is set up");
    expect(stdout).not.toMatch(/access-1|edg_session_1/);
    const who = await octomil("whoami --json");
    expect(JSON.parse(who.stdout)).toMatchObject({ org_id: "org_a", id: "usr_a" });
    expect(asked.at(-1)?.authorization).toBe("Bearer access-1");
  });

  test("renews a session that is about to expire once, however many commands run at the same time", async () => {
    await signIn();
    await openProfileStore({ OCTOMIL_HOME: home }).update((configuration) => {
      const session = configuration.profiles.default?.session;
      if (session !== undefined) session.expire_time_ms = Date.now() + 1000;
    });
    const results = await Promise.all([octomil("whoami"), octomil("whoami"), octomil("whoami")]);
    expect(results.map(({ code }) => code)).toEqual([0, 0, 0]);
    expect(refreshes).toBe(1);
    expect(await readFile(join(home, "config.json"), "utf8")).toContain('"refresh_token": "edg_session_2"');
  });

  test("asks to sign in where nobody is, with exit code 3", async () => {
    const { code, stdout, stderr } = await octomil("devices list");
    expect({ code, stdout }).toEqual({ code: exitCode.unauthenticated, stdout: "" });
    expect(stderr).toContain("hint:");
    expect(asked).toEqual([]);
  });

  test("points to set-up and invitation where there is no profile yet", async () => {
    const { code, stderr } = await octomil("whoami");
    expect(code).toBe(exitCode.unauthenticated);
    expect(stderr).toContain("octomil setup");
    expect(stderr).toContain("octomil login");
  });

  test("does not blame the mesh where the e-mail address may be the wrong one", async () => {
    const { code, stderr } = await octomil("login --code edg_invite_x --email eve@example.com");
    expect(code).toBe(exitCode.unauthenticated);
    expect(stderr).toContain("(CREDENTIAL_UNKNOWN)");
    expect(stderr).toContain("--email is the address that was invited");
    expect(stderr).not.toContain("not issued by this mesh");
  });

  test("sends a profile's credential to no other origin", async () => {
    await signIn();
    asked.length = 0;
    const { code, stderr } = await octomil("whoami --url http://127.0.0.1:9");
    expect(code).toBe(exitCode.usage);
    expect(stderr).toContain("is not sent to");
    expect(asked).toEqual([]);
  });

  test("sends no credential over plain HTTP to another machine", async () => {
    const { code, stderr } = await octomil("whoami --url http://mesh.example.com", {
      env: { OCTOMIL_API_KEY: "edg_live_x" },
    });
    expect(code).toBe(exitCode.usage);
    expect(stderr).toContain("plain HTTP");
  });
});

describe("the commands that the documentation quotes", () => {
  test("api-keys create shows the key once, with a note on standard error", async () => {
    await signIn();
    const { code, stdout, stderr } = await octomil([
      ...["api-keys", "create", "--name", "ci-pipeline"],
      ...["--scopes", "models:read,models:write,rollouts:write"],
    ]);
    expect(code).toBe(exitCode.ok);
    expect(stdout).toContain("edg_live_shownOnce");
    expect(stdout).toContain("models:read, models:write, rollouts:write");
    expect(stderr).toContain("shown this once");
  });

  test("are all understood as written", async () => {
    const ran: string[] = [];
    const lines = [
      "api-keys create --name ci-pipeline --scopes models:read,models:write,rollouts:write",
      "org settings --device-token-expiry 48h",
      "devices revoke dev_aaaaaaaaaaaaaaaaaaaaaaaaaa",
      "org members add user@example.com --role admin",
      "org members update user@example.com --role member",
      "partner-keys create --name shop-backend",
      "partner-keys create --name ci --test",
      "edge kit --license-name Frankfurt --verdict-url https://mesh.example.com:7206 --out edge-kit",
    ];
    for (const line of lines) {
      const program = createProgram(fakeTerminal(), async (_spec, command) => {
        ran.push(command.name());
      });
      await program.parseAsync(line.split(" "), { from: "user" });
    }
    expect(ran).toEqual(["create", "settings", "revoke", "add", "update", "create", "create", "kit"]);
  });
});

describe("failures", () => {
  test("tell reason and hint on standard error, and nothing on standard output", async () => {
    await signIn();
    createKey = () => {
      throw fail(Reason.ROLE_MISSING, "the role admin is missing", { role: "admin" });
    };
    const { code, stdout, stderr } = await octomil("api-keys create --name x --scopes models:read");
    expect({ code, stdout }).toEqual({ code: exitCode.failed, stdout: "" });
    expect(stderr).toBe(
      "error: the role admin is missing (ROLE_MISSING)\n" +
        "hint:  An owner can give you the role admin: octomil org members update you@example.com --role admin.\n",
    );
  });

  test("are one JSON line with --json", async () => {
    await signIn();
    const { code, stdout, stderr } = await octomil(`api-keys revoke ${keyId} --json`);
    expect({ code, stdout }).toEqual({ code: exitCode.notFound, stdout: "" });
    expect(JSON.parse(stderr)).toMatchObject({
      error: { exit_code: 4, reason: "RESOURCE_NOT_FOUND", message: "there is no such key", metadata: { id: keyId } },
    });
  });

  test("say when to try again after too many calls, with exit code 6", async () => {
    await signIn();
    createKey = () => {
      throw fail(Reason.RATE_LIMITED, "too many calls", {}, { retryAfterMs: 45_000 });
    };
    const { code, stderr } = await octomil("api-keys create --name x --scopes models:read");
    expect(code).toBe(exitCode.rateLimited);
    expect(stderr).toContain("Try again in 45 s.");
  });

  test("have exit code 5 where nobody listens", async () => {
    const { code, stderr } = await octomil("whoami --url http://127.0.0.1:1", {
      env: { OCTOMIL_API_KEY: "edg_live_x" },
    });
    expect(code).toBe(exitCode.unavailable);
    expect(stderr).toContain("the mesh at http://127.0.0.1:1 cannot be reached (ECONNREFUSED)");
    expect(stderr).not.toContain("profile show");
    await signIn();
    const withProfile = await octomil("whoami --url http://127.0.0.1:1", { env: { OCTOMIL_API_KEY: "edg_live_x" } });
    expect(withProfile.stderr).toContain("octomil profile show");
  });

  test.each([
    "devces list",
    "devices list --limit 0",
    "push model.onnx --version 1.0.0",
    "rollouts create m 1.0.0 --percentage 100.5",
    "rollouts create m 1.0.0 --stages 10,5",
    "api-keys create --name x --scopes models:admin",
    "bootstrap-tokens create --max-uses 5",
    "bootstrap-tokens create --enrolment",
    "org settings --device-token-expiry 48",
    "devices revoke",
    "simulate --devices 0",
    "api-keys revoke key_x",
    "bootstrap-tokens get btk_x",
    "rollouts get 1",
    "rollouts watch rol_x",
    "rollouts create Vad 1.0.0 --percentage 1",
    "rollouts create vad 1.0 --percentage 1",
    "models create Vad",
    "models version vad one",
    "telemetry latency --model vad --version 1.0",
    "telemetry health --rollout rol_x",
    "push package.json --model vad --version 1.0 --format custom",
    "push package.json --model Vad --version 1.0.0 --format custom",
    "push package.json --model vad --version 1.0.0 --format custom --chunk-size 8193",
  ])("have exit code 2 before anything is sent: octomil %s", async (line) => {
    await signIn();
    asked.length = 0;
    const people = await octomil(line);
    expect(people.code).toBe(exitCode.usage);
    expect(people.stderr).not.toBe("");
    const programs = await octomil(`${line} --json`);
    expect(programs.code).toBe(exitCode.usage);
    expect(JSON.parse(programs.stderr)).toMatchObject({ error: { exit_code: 2 } });
    expect(asked).toEqual([]);
  });
});

describe("a file that cannot be pushed", () => {
  test("is refused for what it is, before anything is sent and whatever its name", async () => {
    await signIn();
    asked.length = 0;
    await writeFile(join(home, "empty"), "");
    const refusalOf = async (path: string) => {
      const { code, stderr } = await octomil(["push", path, "--model", "vad", "--version", "1.0.0"]);
      expect(code, path).toBe(exitCode.usage);
      return stderr;
    };
    expect(await refusalOf(join(home, "nofile"))).toContain("no such file");
    expect(await refusalOf(join(home, "empty", "model.onnx"))).toContain("no such file");
    expect(await refusalOf(home)).toContain("not a file");
    expect(await refusalOf(join(home, "empty"))).toContain("the file is empty");
    expect(asked).toEqual([]);
  });
});

describe("tables for people", () => {
  test("name models and versions, which programs get as ids", async () => {
    await signIn();
    const listed = await octomil("rollouts list");
    expect(listed.stdout).toContain("vad");
    expect(listed.stdout).not.toContain(modelId);
    const created = await octomil("rollouts create vad 1.0.0 --percentage 1");
    expect(created.stdout).toMatch(/model +vad\n/);
    const latency = await octomil("telemetry latency");
    expect(latency.stdout).toMatch(/ vad +1\.0\.0 /);
    expect(latency.stdout).not.toContain(versionId);
    asked.length = 0;
    const document = JSON.parse((await octomil("telemetry latency --json")).stdout);
    expect(document.aggregates[0].key).toMatchObject({ model_id: modelId, version_id: versionId });
    expect(JSON.parse((await octomil("rollouts list --json")).stdout).rollouts[0].model_id).toBe(modelId);
    expect(asked).toHaveLength(2);
  });
});

describe("what is deleted", () => {
  test.each([
    ["models delete vad", modelId],
    [`models delete ${modelId}`, modelId],
    ["org members remove user@example.com", memberId],
  ])("is told to programs by its id: octomil %s", async (line, id) => {
    await signIn();
    expect(JSON.parse((await octomil(`${line} --json`)).stdout)).toEqual({ deleted: id });
  });
});

describe("help", () => {
  test.each([60, 80, 100])("fills its lines: no paragraph is broken before %i columns are used up", async (columns) => {
    const lines = [
      "login",
      "setup",
      "push",
      "simulate",
      "rollouts create",
      "org members add",
      "bootstrap-tokens create",
      "licenses create",
      "edge-certificates issue",
      "edge-keys register",
      "edge kit",
    ];
    for (const line of lines) {
      const terminal = { ...fakeTerminal(), columns };
      let text = "";
      terminal.out = (piece: string) => {
        text += piece;
      };
      await runOctomil([...line.split(" "), "--help"], terminal);
      const prose = text.slice(text.indexOf("\n\n"), text.search(/\n(Arguments|Options):/)).split("\n\n");
      for (const paragraph of prose) {
        const rows = paragraph.split("\n").filter((row) => row !== "");
        for (const [index, row] of rows.entries()) {
          expect(row.length, row).toBeLessThanOrEqual(columns);
          const next = rows[index + 1]?.split(" ")[0];
          if (next !== undefined) expect(`${row} ${next}`.length, row).toBeGreaterThan(columns);
        }
      }
    }
  });

  test("lists --version, and only for the whole program", async () => {
    expect((await octomil("--help")).stdout).toContain("-V, --version");
    expect((await octomil("devices --help")).stdout).not.toContain("-V, --version");
  });

  test("every command has a sentence and examples that it understands", async () => {
    const terminal = fakeTerminal();
    const seen: string[] = [];
    const program = createProgram(terminal, async (_spec, command) => {
      seen.push(command.name());
    });
    const examples: string[] = [];
    const visit = async (command: Command, path: string[]) => {
      if (command.commands.length > 0) {
        for (const child of command.commands) await visit(child, [...path, child.name()]);
        return;
      }
      const { code, stdout } = await octomil([...path, "--help"]);
      expect(code, path.join(" ")).toBe(exitCode.ok);
      expect(command.description(), path.join(" ")).not.toBe("");
      const found = [...stdout.matchAll(/^ {2}\$ octomil (.+)$/gm)].map((match) => match[1] ?? "");
      expect(found.length, path.join(" ")).toBeGreaterThan(0);
      examples.push(...found);
    };
    await visit(program, []);
    for (const example of examples) {
      const words = example.replace(/ [<>].*$/, "").match(/"[^"]*"|\S+/g) ?? [];
      const fresh = createProgram(fakeTerminal(), async (_spec, command) => {
        seen.push(command.name());
      });
      await fresh.parseAsync(
        words.map((word) => word.replaceAll('"', "")),
        { from: "user" },
      );
    }
    expect(seen).toHaveLength(examples.length);
  });

  test("has the version", async () => {
    expect((await octomil("--version")).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});
