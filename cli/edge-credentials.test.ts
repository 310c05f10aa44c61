import { createPrivateKey, generateKeyPairSync, X509Certificate } from "node:crypto";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseEnv } from "node:util";
import { ConfigError } from "@octomesh/mesh/config";
import { fail, Reason } from "@octomesh/mesh/errors";
import { LicenseKey_ClientCertificateMode as ClientCertificateMode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { readEdgeConfig } from "../services/edge-relay/edge/edge-config.ts";
import { createSigner, parseSigningKey } from "../services/edge-relay/edge/sign-bundle.ts";
import { exitCode } from "./exit-code.ts";
import { runOctomil } from "./program.ts";
import { createSigningRequest } from "./signing-request.ts";
import { type FakeEdgeIdentity, startFakeEdgeIdentity } from "./testing/fake-edge-identity.ts";
import { type FakeTerminalOptions, fakeTerminal } from "./testing/fake-terminal.ts";

let home: string;
let mesh: FakeEdgeIdentity;

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "octomil-"));
  mesh = await startFakeEdgeIdentity();
});

afterEach(async () => {
  await mesh.close();
  await rm(home, { recursive: true, force: true });
});

async function octomil(args: readonly string[], options: FakeTerminalOptions = {}) {
  const env = { OCTOMIL_HOME: join(home, ".octomil"), OCTOMIL_URL: mesh.url, OCTOMIL_API_KEY: "edg_live_x" };
  const terminal = fakeTerminal({ ...options, env: { ...env, ...options.env } });
  const code = await runOctomil(args, terminal);
  return { code, stdout: terminal.stdout(), stderr: terminal.stderr() };
}

const at = (...names: string[]) => join(home, ...names);
const modeOf = async (path: string) => (await stat(path)).mode & 0o777;
const filesOf = async (folder = home) => (await readdir(folder)).filter((name) => name !== ".octomil").sort();

/** Creates a licence and answers its id. */
async function makeLicense(name = "edge"): Promise<string> {
  const { stdout } = await octomil(["licenses", "create", "--name", name, "--json"]);
  return JSON.parse(stdout).id;
}

/** What the edge finds wrong with its environment, one problem each. */
function problemsOf(environment: Record<string, string | undefined>): readonly string[] {
  try {
    readEdgeConfig(environment);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
}

/** Makes one method of the mesh fail. */
function failAt(...methods: string[]): void {
  mesh.before = (method) => {
    if (methods.includes(method)) throw fail(Reason.INTERNAL, `${method} failed`);
  };
}

describe("licenses", () => {
  test("create shows the licence once, with a note on standard error", async () => {
    const { code, stdout, stderr } = await octomil(["licenses", "create", "--name", "edge Frankfurt"]);
    expect(code).toBe(exitCode.ok);
    expect(stdout.split(mesh.licenses[0]?.license ?? "?")).toHaveLength(2);
    expect(stdout).toMatch(/mtls +require\n/);
    expect(stderr).toContain("shown this once");
    expect(stderr).not.toContain("octet_");
    expect(mesh.licenses[0]?.environment).toBe(Environment.LIVE);
  });

  test("create takes environment, mode and lifetime; --quiet prints the licence alone", async () => {
    const line = [
      "licenses",
      "create",
      "--name",
      "x",
      "--env",
      "test",
      "--mtls",
      "request",
      "--lifetime",
      "90d",
      "--quiet",
    ];
    const { stdout, stderr } = await octomil(line);
    const [license] = mesh.licenses;
    expect(stdout).toBe(`${license?.license}\n`);
    expect(stdout).toMatch(/^octet_test_/);
    expect(stderr).toBe("");
    expect(license?.clientCertificate).toBe(ClientCertificateMode.REQUEST);
    expect(Number(license?.expireTime?.seconds) - Number(license?.createTime?.seconds)).toBe(90 * 86_400);
  });

  test("an answer that was lost and given once more holds no licence, and says so", async () => {
    mesh.replays = true;
    const { code, stdout, stderr } = await octomil(["licenses", "create", "--name", "x", "--json"]);
    expect(code).toBe(exitCode.ok);
    expect(JSON.parse(stdout)).not.toHaveProperty("license");
    expect(stderr).toContain("cannot be read again");
  });

  test("list holds no licence, and says which are good", async () => {
    const id = await makeLicense("old");
    await makeLicense("new");
    await octomil(["licenses", "revoke", id]);
    const people = await octomil(["licenses", "list"]);
    expect(people.stdout).toMatch(/old +live +require +revoked/);
    expect(people.stdout).toMatch(/new +live +require +active/);
    const { license_keys: items } = JSON.parse((await octomil(["licenses", "list", "--json"])).stdout);
    expect(items).toHaveLength(2);
    for (const item of items) expect(item).not.toHaveProperty("license");
    expect(people.stdout).not.toContain("octet_");
  });

  test("revoke of an unknown one has exit code 4", async () => {
    const { code, stderr } = await octomil(["licenses", "revoke", `lic_${"a".repeat(26)}`, "--json"]);
    expect(code).toBe(exitCode.notFound);
    expect(JSON.parse(stderr)).toMatchObject({ error: { reason: "RESOURCE_NOT_FOUND", exit_code: 4 } });
  });
});

describe("partner-keys and read-tokens", () => {
  test("partner-keys create shows the key once; --test is short for --env test", async () => {
    const { code, stdout, stderr } = await octomil(["partner-keys", "create", "--name", "shop", "--test"]);
    expect(code).toBe(exitCode.ok);
    expect(stdout).toContain("edg_partner_shownOnce");
    expect(stderr).toContain("shown this once");
    expect(mesh.partnerKeys[0]?.environment).toBe(Environment.TEST);
  });

  test("partner-keys list and revoke show no key", async () => {
    const { stdout } = await octomil(["partner-keys", "create", "--name", "shop", "--json"]);
    const { id, partner_key: key } = JSON.parse(stdout);
    const revoked = await octomil(["partner-keys", "revoke", id]);
    expect(revoked.code).toBe(exitCode.ok);
    expect(mesh.revoked).toEqual([id]);
    const listed = await octomil(["partner-keys", "list"]);
    expect(listed.stdout).toMatch(/shop +edg_partner_show… +live +revoked/);
    expect(`${revoked.stdout}${listed.stdout}`).not.toContain(key);
  });

  test("read-tokens create passes scopes and lifetime on, and shows the token once", async () => {
    const line = ["read-tokens", "create", "--scopes", "devices:read,telemetry:read", "--lifetime", "1h"];
    const { code, stdout, stderr } = await octomil(line);
    expect(code).toBe(exitCode.ok);
    expect(stdout).toContain("edg_read_shownOnce");
    expect(stderr).toContain("shown this once");
    expect(mesh.readTokenRequests[0]).toMatchObject({
      scopes: [Scope.DEVICES_READ, Scope.TELEMETRY_READ],
      lifetime: { seconds: 3600n },
    });
  });

  test("read-tokens revoke tells programs the id", async () => {
    const id = `rdt_${"a".repeat(26)}`;
    const { stdout } = await octomil(["read-tokens", "revoke", id, "--json"]);
    expect(JSON.parse(stdout)).toEqual({ revoked: id });
    expect(mesh.revoked).toEqual([id]);
  });
});

describe("edge-keys register", () => {
  test("writes the seed as the edge reads it, for its owner alone, and registers its public half", async () => {
    const license = await makeLicense();
    const { code, stdout, stderr } = await octomil([
      "edge-keys",
      "register",
      "--license",
      license,
      "--out",
      at("seed"),
    ]);
    expect(code).toBe(exitCode.ok);
    expect(await modeOf(at("seed"))).toBe(0o600);
    const text = await readFile(at("seed"), "utf8");
    const seed = parseSigningKey(text.trimEnd());
    const [key] = mesh.signingKeys;
    if (seed === undefined || key === undefined) throw new Error("no key");
    expect(createSigner(key.id, seed).publicKey).toBe(Buffer.from(key.publicKey).toString("base64"));
    expect(stdout).toContain(key.id);
    expect(`${stdout}${stderr}`).not.toContain(text.trim());
  });

  test("registers a public key that is given, in PEM or as base64, and writes nothing", async () => {
    const license = await makeLicense();
    const { publicKey } = generateKeyPairSync("ed25519");
    const raw = publicKey.export({ format: "der", type: "spki" }).subarray(-32);
    for (const [name, content] of Object.entries({
      "public.pem": publicKey.export({ format: "pem", type: "spki" }),
      "public.txt": `${raw.toString("base64")}\n`,
    })) {
      await writeFile(at(name), content);
      const line = ["edge-keys", "register", "--license", license, "--public-key", at(name), "--json"];
      const { code, stdout } = await octomil(line);
      expect(code).toBe(exitCode.ok);
      expect(JSON.parse(stdout)).toMatchObject({ license_key_id: license, public_key: raw.toString("base64") });
    }
    expect(await filesOf()).toEqual(["public.pem", "public.txt"]);
  });

  test("takes no private key, no other key and nothing else for a public one", async () => {
    const license = await makeLicense();
    const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 });
    const contents = [
      generateKeyPairSync("ed25519").privateKey.export({ format: "pem", type: "pkcs8" }),
      rsa.publicKey.export({ format: "pem", type: "spki" }),
      Buffer.alloc(31).toString("base64"),
      "",
      "x".repeat(20_000),
    ];
    mesh.asked.length = 0;
    for (const content of contents) {
      await writeFile(at("key"), content);
      const { code } = await octomil(["edge-keys", "register", "--license", license, "--public-key", at("key")]);
      expect(code).toBe(exitCode.usage);
    }
    expect(mesh.asked).toEqual([]);
  });

  test("leaves what is there, unless --force replaces it; a link is not followed", async () => {
    const license = await makeLicense();
    await writeFile(at("seed"), "mine", { mode: 0o644 });
    await symlink(at("target"), at("link"));
    mesh.asked.length = 0;
    const line = (path: string, ...more: string[]) => [
      ...["edge-keys", "register", "--license", license, "--out", path],
      ...more,
    ];
    for (const path of [at("seed"), at("link")]) {
      const { code, stderr } = await octomil(line(path));
      expect(code).toBe(exitCode.usage);
      expect(stderr).toContain("--force");
    }
    expect(mesh.asked).toEqual([]);
    expect(await readFile(at("seed"), "utf8")).toBe("mine");
    for (const path of [at("seed"), at("link")]) {
      expect((await octomil(line(path, "--force"))).code).toBe(exitCode.ok);
      expect(await modeOf(path)).toBe(0o600);
      expect(parseSigningKey((await readFile(path, "utf8")).trim())).toBeDefined();
    }
    expect(await filesOf()).toEqual(["link", "seed"]);
  });

  test("that is refused leaves no file, keeps what --force would replace, and says what to do", async () => {
    const license = await makeLicense();
    await writeFile(at("old"), "mine");
    mesh.before = () => {
      throw fail(Reason.QUOTA_EXCEEDED, "the licence has 3 good ones already: revoke one", { limit: "3" });
    };
    const { code, stdout, stderr } = await octomil(["edge-keys", "register", "--license", license, "--out", at("new")]);
    expect({ code, stdout }).toEqual({ code: exitCode.failed, stdout: "" });
    expect(stderr).toContain("octomil edge-keys revoke");
    await octomil(["edge-keys", "register", "--license", license, "--out", at("old"), "--force"]);
    expect(await filesOf()).toEqual(["old"]);
    expect(await readFile(at("old"), "utf8")).toBe("mine");
  });

  test("finds in time that the file cannot be written", async () => {
    const license = await makeLicense();
    mesh.asked.length = 0;
    for (const path of [at("nowhere", "seed"), home]) {
      const { code } = await octomil(["edge-keys", "register", "--license", license, "--out", path]);
      expect(code).toBe(exitCode.usage);
    }
    expect(mesh.asked).toEqual([]);
  });

  test("that is interrupted while the mesh answers is taken back", async () => {
    const license = await makeLicense();
    const controller = new AbortController();
    mesh.before = (method) => {
      if (method === "registerEdgeSigningKey") controller.abort(new Error("interrupted"));
    };
    const line = ["edge-keys", "register", "--license", license, "--out", at("seed")];
    const { code } = await octomil(line, { signal: controller.signal });
    expect(code).toBe(exitCode.interrupted);
    expect(mesh.revoked).toEqual([mesh.signingKeys[0]?.id]);
    expect(await filesOf()).toEqual([]);
  });

  test("list names licences to people and tells programs their ids", async () => {
    const license = await makeLicense("edge Frankfurt");
    const other = await makeLicense("other");
    for (const [id, name] of [
      [license, "a"],
      [other, "b"],
    ] as const) {
      await octomil(["edge-keys", "register", "--license", id, "--out", at(name)]);
    }
    expect((await octomil(["edge-keys", "list"])).stdout).toMatch(/esk_\w+ +edge Frankfurt +\S{44} +active/);
    mesh.asked.length = 0;
    const { stdout } = await octomil(["edge-keys", "list", "--license", license, "--json"]);
    expect(JSON.parse(stdout).edge_signing_keys).toMatchObject([{ license_key_id: license }]);
    expect(mesh.asked).toEqual(["listEdgeSigningKeys"]);
  });
});

describe("edge-certificates issue", () => {
  const files = () => ["--out", at("edge.crt"), "--key-out", at("edge.key")];

  test("writes a key for its owner alone, and the certificate of it", async () => {
    const license = await makeLicense();
    const { code, stdout, stderr } = await octomil(["edge-certificates", "issue", "--license", license, ...files()]);
    expect(code).toBe(exitCode.ok);
    expect(await modeOf(at("edge.key"))).toBe(0o600);
    const key = createPrivateKey(await readFile(at("edge.key")));
    expect(key.asymmetricKeyDetails).toMatchObject({ namedCurve: "prime256v1" });
    const certificate = new X509Certificate(await readFile(at("edge.crt")));
    expect(certificate.checkPrivateKey(key)).toBe(true);
    expect(certificate.subjectAltName).toBe(`URI:${mesh.certificates[0]?.spiffeId}`);
    expect(stdout).toContain(mesh.certificates[0]?.id);
    expect(`${stdout}${stderr}`).not.toContain("PRIVATE KEY");
  });

  test("certifies the key of a signing request that is given, and writes no key", async () => {
    const license = await makeLicense();
    const { csrPem, keyPem } = await createSigningRequest();
    await writeFile(at("edge.csr"), csrPem);
    const line = ["edge-certificates", "issue", "--license", license, "--csr", at("edge.csr"), "--out", at("edge.crt")];
    const { code, stdout } = await octomil([...line, "--json"]);
    expect(code).toBe(exitCode.ok);
    const pem = await readFile(at("edge.crt"), "utf8");
    expect(JSON.parse(stdout)).toMatchObject({ license_key_id: license, certificate_pem: pem });
    expect(new X509Certificate(pem).checkPrivateKey(createPrivateKey(keyPem))).toBe(true);
    expect(await filesOf()).toEqual(["edge.crt", "edge.csr"]);
  });

  test("takes a certificate that fits another key back", async () => {
    const license = await makeLicense();
    mesh.confusesKeys = true;
    const { code, stderr } = await octomil(["edge-certificates", "issue", "--license", license, ...files()]);
    expect(code).toBe(exitCode.failed);
    expect(stderr).toContain("does not fit the key");
    expect(mesh.revoked).toEqual([mesh.certificates[0]?.id]);
    expect(await filesOf()).toEqual([]);
  });

  test("overwrites neither file, and leaves neither behind where the other is there", async () => {
    const license = await makeLicense();
    await writeFile(at("edge.crt"), "mine");
    mesh.asked.length = 0;
    const { code } = await octomil(["edge-certificates", "issue", "--license", license, ...files()]);
    expect(code).toBe(exitCode.usage);
    expect(mesh.asked).toEqual([]);
    expect(await filesOf()).toEqual(["edge.crt"]);
    expect(await readFile(at("edge.crt"), "utf8")).toBe("mine");
  });

  test("for a revoked licence points to the licences, not only to the caller's own credential", async () => {
    const license = await makeLicense();
    await octomil(["licenses", "revoke", license]);
    const { code, stderr } = await octomil(["edge-certificates", "issue", "--license", license, ...files()]);
    expect(code).not.toBe(exitCode.ok);
    expect(stderr).toContain("octomil licenses list");
    expect(await filesOf()).toEqual([]);
  });

  test("list and revoke", async () => {
    const license = await makeLicense("edge Frankfurt");
    await octomil(["edge-certificates", "issue", "--license", license, ...files()]);
    const id = mesh.certificates[0]?.id ?? "";
    expect((await octomil(["edge-certificates", "revoke", id])).code).toBe(exitCode.ok);
    expect((await octomil(["edge-certificates", "list"])).stdout).toMatch(/ecr_\w+ +edge Frankfurt +revoked/);
    expect((await octomil(["edge-certificates", "list", "--quiet"])).stdout).toBe(`${id}\n`);
  });
});

describe("edge kit", () => {
  const kitNames = ["edge.crt", "edge.env", "edge.key", "license", "signing-key"];
  const environmentOf = async () => parseEnv(await readFile(at("kit", "edge.env"), "utf8"));
  const kit = (...more: string[]) => ["edge", "kit", "--out", at("kit"), ...more];

  test("makes a folder from which the edge reads its whole configuration", async () => {
    await writeFile(at("authority.pem"), mesh.authorityPem);
    const { code, stdout, stderr } = await octomil(
      kit(
        ...["--license-name", "edge Frankfurt", "--verdict-url", "https://mesh.example.com:7206"],
        ...["--origin", "https://shop.example", "--origin", "https://www.shop.example", "--ca", at("authority.pem")],
      ),
    );
    expect(code).toBe(exitCode.ok);
    expect(stderr).toBe("Still to be set in edge.env: EDGE_TLS_CERT_FILE and EDGE_TLS_KEY_FILE; it says what for.\n");
    expect(await modeOf(at("kit"))).toBe(0o700);
    expect(await filesOf(at("kit"))).toEqual(["ca.pem", ...kitNames]);
    for (const name of await filesOf(at("kit"))) expect(await modeOf(at("kit", name)), name).toBe(0o600);

    const config = readEdgeConfig({ ...(await environmentOf()), EDGE_HOST: "127.0.0.1" });
    const [license, certificate, signingKey] = [mesh.licenses[0], mesh.certificates[0], mesh.signingKeys[0]];
    expect(config.octetUrl).toBe("https://mesh.example.com:7206");
    expect(config.license).toBe(license?.license);
    expect(license?.name).toBe("edge Frankfurt");
    expect(config.signer?.keyId).toBe(signingKey?.id);
    expect(config.signer?.publicKey).toBe(Buffer.from(signingKey?.publicKey ?? []).toString("base64"));
    expect(config.origins.allows("https://www.shop.example")).toBe(true);
    expect(config.origins.allows("https://evil.example")).toBe(false);
    expect(await readFile(config.caFile ?? "", "utf8")).toBe(mesh.authorityPem);
    const key = createPrivateKey(await readFile(config.clientFiles?.key ?? ""));
    const pem = await readFile(config.clientFiles?.certificate ?? "", "utf8");
    expect(new X509Certificate(pem).checkPrivateKey(key)).toBe(true);

    expect(stdout).toContain(certificate?.id);
    expect(stdout).not.toMatch(/octet_live_|PRIVATE KEY/);
    expect(stdout).not.toContain((await readFile(at("kit", "signing-key"), "utf8")).trim());
  });

  test("tells programs what was made, without any secret", async () => {
    const { stdout } = await octomil(kit("--json"));
    const document = JSON.parse(stdout);
    expect(document).toMatchObject({
      folder: at("kit"),
      license_key: { id: mesh.licenses[0]?.id, name: "kit" },
      edge_certificate: { id: mesh.certificates[0]?.id },
      edge_signing_key: { id: mesh.signingKeys[0]?.id },
    });
    expect([...document.files].sort()).toEqual(kitNames);
    expect(document.license_key).not.toHaveProperty("license");
    expect((await octomil(["edge", "kit", "--out", at("two"), "--quiet"])).stdout).toBe(`${at("two")}\n`);
  });

  test("says what is still to be set, and the edge refuses to start for that alone", async () => {
    const { code, stderr } = await octomil(kit());
    expect(code).toBe(exitCode.ok);
    expect(stderr).toContain("ALLOWED_ORIGIN");
    const environment = await environmentOf();
    expect(environment.OCTET_URL).toBe("https://127.0.0.1:7206");
    expect(problemsOf(environment)).toEqual([
      expect.stringContaining("EDGE_TLS_CERT_FILE is not set"),
      expect.stringContaining("ALLOWED_ORIGIN is not set"),
    ]);
  });

  test("names the folder of the edge's machine where it is another", async () => {
    await octomil(kit("--path", "/etc/octet"));
    const environment = await environmentOf();
    expect(environment.LICENSE_FILE).toBe("/etc/octet/license");
    expect(environment.EDGE_CLIENT_KEY_FILE).toBe("/etc/octet/edge.key");
  });

  test("with --mtls off has no certificate", async () => {
    expect((await octomil(kit("--mtls", "off", "--env", "test", "--origin", "*"))).code).toBe(exitCode.ok);
    expect(await filesOf(at("kit"))).toEqual(["edge.env", "license", "signing-key"]);
    expect(mesh.certificates).toEqual([]);
    const config = readEdgeConfig({ ...(await environmentOf()), EDGE_HOST: "127.0.0.1" });
    expect(config).toMatchObject({ clientFiles: undefined, origins: { any: true } });
    expect(config.license).toMatch(/^octet_test_/);
  });

  test("takes a new or empty folder; one that holds anything only with --force, whose other files stay", async () => {
    await mkdir(at("kit"), { mode: 0o755 });
    await writeFile(at("kit", "notes"), "mine");
    await writeFile(at("kit", "license"), "old", { mode: 0o644 });
    const refused = await octomil(kit());
    expect(refused.code).toBe(exitCode.usage);
    expect(refused.stderr).toContain("--force");
    expect(mesh.asked).toEqual([]);
    expect(await filesOf(at("kit"))).toEqual(["license", "notes"]);

    expect((await octomil(kit("--force"))).code).toBe(exitCode.ok);
    expect(await filesOf(at("kit"))).toEqual([...kitNames, "notes"].sort());
    expect(await readFile(at("kit", "license"), "utf8")).toBe(`${mesh.licenses[0]?.license}\n`);
    expect(await modeOf(at("kit", "license"))).toBe(0o600);
    expect(await modeOf(at("kit"))).toBe(0o700);

    await mkdir(at("empty"), { mode: 0o755 });
    expect((await octomil(["edge", "kit", "--out", at("empty")])).code).toBe(exitCode.ok);
    expect(await modeOf(at("empty"))).toBe(0o700);
  });

  test.each([
    ["createLicenseKey", 0],
    ["issueEdgeCertificate", 1],
    ["registerEdgeSigningKey", 2],
  ] as const)("revokes what it made and leaves nothing where %s fails", async (method, made) => {
    failAt(method);
    const { code, stdout, stderr } = await octomil(kit());
    expect({ code, stdout }).toEqual({ code: exitCode.failed, stdout: "" });
    expect(stderr).toContain(`${method} failed`);
    const ids = [mesh.licenses[0]?.id, mesh.certificates[0]?.id].slice(0, made);
    expect(mesh.revoked).toEqual(ids.reverse());
    expect(await filesOf()).toEqual([]);
  });

  test("keeps the kit that --force was to replace where it fails", async () => {
    await octomil(kit());
    const before = await readFile(at("kit", "license"), "utf8");
    failAt("registerEdgeSigningKey");
    expect((await octomil(kit("--force"))).code).toBe(exitCode.failed);
    expect(await filesOf(at("kit"))).toEqual(kitNames);
    expect(await readFile(at("kit", "license"), "utf8")).toBe(before);
    expect(mesh.revoked).toEqual([mesh.certificates[1]?.id, mesh.licenses[1]?.id]);
  });

  test("tells what it could not revoke, and by which command", async () => {
    failAt("registerEdgeSigningKey", "revokeLicenseKey");
    const { code, stderr } = await octomil(kit());
    expect(code).toBe(exitCode.failed);
    expect(stderr).toContain(`run octomil licenses revoke ${mesh.licenses[0]?.id}`);
    expect(stderr).not.toContain("edge-certificates revoke");
    expect(mesh.revoked).toEqual([mesh.certificates[0]?.id]);
  });

  test("revokes what it made where files cannot be put in place", async () => {
    await mkdir(at("kit"));
    await writeFile(at("kit", "license"), "old");
    mesh.before = (method) => {
      // In between somebody puts a folder where the licence is to go.
      if (method !== "registerEdgeSigningKey") return;
      rmSync(at("kit", "license"));
      mkdirSync(at("kit", "license"));
    };
    const { code } = await octomil(kit("--force"));
    expect(code).toBe(exitCode.failed);
    expect(mesh.revoked).toEqual([mesh.signingKeys[0]?.id, mesh.certificates[0]?.id, mesh.licenses[0]?.id]);
    expect((await readdir(at("kit"))).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("that is interrupted revokes what it made, with exit code 130", async () => {
    const controller = new AbortController();
    mesh.before = (method) => {
      if (method === "createLicenseKey") controller.abort(new Error("interrupted"));
    };
    const { code } = await octomil(kit(), { signal: controller.signal });
    expect(code).toBe(exitCode.interrupted);
    expect(mesh.revoked).toEqual([mesh.licenses[0]?.id]);
    expect(mesh.asked).toEqual(["createLicenseKey", "revokeLicenseKey"]);
    expect(await filesOf()).toEqual([]);
  });

  test("gives up, and revokes, where the answer with the licence was lost", async () => {
    mesh.replays = true;
    const { code, stderr } = await octomil(kit());
    expect(code).toBe(exitCode.failed);
    expect(stderr).toContain("Repeat the command");
    expect(mesh.revoked).toEqual([mesh.licenses[0]?.id]);
    expect(await filesOf()).toEqual([]);
  });

  test("leaves nothing where nobody is signed in, with exit code 3", async () => {
    const { code } = await octomil(kit(), { env: { OCTOMIL_API_KEY: "" } });
    expect(code).toBe(exitCode.unauthenticated);
    expect(await filesOf()).toEqual([]);
  });

  test("takes certificates for --ca, and no key", async () => {
    const key = generateKeyPairSync("ed25519").privateKey.export({ format: "pem", type: "pkcs8" });
    for (const content of ["", "x", `${mesh.authorityPem}\n${key}`]) {
      await writeFile(at("authority.pem"), content);
      expect((await octomil(kit("--ca", at("authority.pem")))).code).toBe(exitCode.usage);
    }
    expect(mesh.asked).toEqual([]);
  });
});

describe("wrong command lines", () => {
  const license = `lic_${"a".repeat(26)}`;

  test.each([
    "licenses create",
    "licenses create --name x --mtls maybe",
    "licenses create --name x --env staging",
    "licenses create --name x --env live --test",
    "licenses create --name x --lifetime 59s",
    "licenses create --name x --lifetime 733d",
    "licenses revoke key_x",
    "partner-keys create",
    "partner-keys revoke lic_x",
    "read-tokens create",
    "read-tokens create --scopes models:write",
    "read-tokens create --scopes models:read --lifetime 2h",
    "read-tokens revoke rdt_x",
    "edge-keys register --out seed",
    `edge-keys register --license ${license}`,
    `edge-keys register --license ${license} --public-key package.json --out seed`,
    `edge-keys register --license ${license} --public-key nofile`,
    "edge-keys register --license lic_x --out seed",
    "edge-keys revoke ecr_x",
    `edge-certificates issue --license ${license} --out x.crt`,
    `edge-certificates issue --license ${license} --out x --key-out x`,
    `edge-certificates issue --license ${license} --csr package.json --out x`,
    `edge-certificates issue --license ${license} --csr package.json --out x --key-out y`,
    "edge-certificates list --license x",
    "edge-certificates revoke esk_x",
    "edge kit",
    "edge kit --out package.json",
    "edge kit --out nowhere/kit",
    "edge kit --out kit --verdict-url http://mesh.example.com:7206",
    "edge kit --out kit --verdict-url https://mesh.example.com/path",
    "edge kit --out kit --origin https://shop.example/",
    "edge kit --out kit --origin shop.example",
    "edge kit --out kit --path etc/octet",
    "edge kit --out kit --path /etc/a$(b)",
    "edge kit --out kit --ca nofile",
    "edge kit --out kit --mtls maybe",
  ])("have exit code 2, before anything is sent and nothing is written: octomil %s", async (line) => {
    const people = await octomil(line.split(" "));
    expect(people.code).toBe(exitCode.usage);
    expect(people.stdout).toBe("");
    const programs = await octomil([...line.split(" "), "--json"]);
    expect(JSON.parse(programs.stderr)).toMatchObject({ error: { exit_code: 2 } });
    expect(mesh.asked).toEqual([]);
    for (const name of ["seed", "x", "x.crt", "y", "kit", "nowhere"]) expect(existsSync(name), name).toBe(false);
  });
});
