import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect } from "node:tls";
import { fileURLToPath } from "node:url";
import { createTestAuthority, type TestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { edgeVersion } from "./edge/edge-version.ts";
import { ask, issueClient, makeKit, newRef, report, runChannel, type TestKit } from "./test/edge-fixture.ts";
import { startVerdictServer, type VerdictServer } from "./test/verdict-server.ts";

const program = fileURLToPath(new URL("./octet-edge.ts", import.meta.url));
const children: ChildProcess[] = [];
let folder: string;
let authority: TestAuthority;
let verdict: VerdictServer;
let kit: TestKit;
let base: Record<string, string>;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "octet-edge-"));
  authority = await createTestAuthority();
  kit = await makeKit(authority);
  verdict = await startVerdictServer({ authority, keys: new Map([[kit.signingKeyId, kit.signer.publicKey]]) });
  const server = await authority.issue();
  const write = async (name: string, content: string): Promise<string> => {
    await writeFile(join(folder, name), content, { mode: 0o600 });
    return join(folder, name);
  };
  base = {
    OCTET_URL: verdict.url,
    LICENSE_FILE: await write("license", `${kit.license}\n`),
    EDGE_SIGNING_KEY: kit.seed.toString("base64"),
    EDGE_SIGNING_KEY_ID: kit.signingKeyId,
    ALLOWED_ORIGIN: "https://shop.example",
    OCTET_CA_FILE: await write("ca.pem", authority.bundle),
    EDGE_CLIENT_CERT_FILE: await write("client.pem", kit.certificate),
    EDGE_CLIENT_KEY_FILE: await write("client-key.pem", kit.key),
    EDGE_TLS_CERT_FILE: await write("server.pem", server.certificate),
    EDGE_TLS_KEY_FILE: await write("server-key.pem", server.key),
    EDGE_HOST: "127.0.0.1",
    EDGE_GRACE: "2s",
    PORT: "0",
  };
});

afterAll(async () => {
  await verdict.stop();
  await rm(folder, { recursive: true, force: true });
});

afterEach(async () => {
  verdict.answer(undefined);
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill("SIGKILL");
    await once(child, "exit");
  }
});

interface Program {
  readonly child: ChildProcess;
  output: string;
  errors: string;
  readonly exited: Promise<number | null>;
}

function start(environment: Record<string, string | undefined>, args: string[] = []): Program {
  const child = spawn(process.execPath, ["--import", "tsx", program, ...args], {
    env: { PATH: process.env.PATH ?? "", ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.push(child);
  const exited = new Promise<number | null>((resolve) => child.once("close", resolve));
  const running: Program = { child, output: "", errors: "", exited };
  child.stdout?.on("data", (chunk) => {
    running.output += String(chunk);
  });
  child.stderr?.on("data", (chunk) => {
    running.errors += String(chunk);
  });
  return running;
}

/** Waits until the program listens; answers its port. */
async function portOf(running: Program): Promise<number> {
  const find = (): number => {
    const line = running.output.split("\n").find((each) => each.includes('"listening"'));
    return line === undefined ? 0 : Number((JSON.parse(line) as { port: number }).port);
  };
  await expect.poll(find, { timeout: 60_000 }).toBeGreaterThan(0);
  return find();
}

async function run(environment: Record<string, string | undefined>, args: string[] = []) {
  const running = start(environment, args);
  const code = await running.exited;
  return { code, output: running.output, errors: running.errors };
}

const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return typeof address === "object" && address !== null ? address.port : 0;
};

// Each run loads and translates the sources first.
describe("octet-edge", { timeout: 120_000 }, () => {
  it("forwards what browsers report, and drains at SIGTERM", async () => {
    const running = start(base);
    const url = `https://localhost:${await portOf(running)}`;
    const ca = authority.bundle;
    expect(running.output).toContain(`signing on: kid=${kit.signingKeyId} ed25519 public key=${kit.signer.publicKey}`);
    expect((await report(url, newRef(), { ca })).body).toEqual({ ok: true });
    expect(verdict.taken.at(-1)?.clientSubject).toContain(`OU=${kit.licenseId}`);
    expect((await ask(`${url}/ready`, { ca })).status).toBe(200);
    let release = (): void => undefined;
    verdict.answer(
      () =>
        new Promise((resolve) => {
          release = () => resolve({ ok: true });
        }),
    );
    const ref = newRef();
    const answered = report(url, ref, { ca });
    await expect.poll(() => verdict.taken.at(-1)?.bundle.sessionRef).toBe(ref);
    running.child.kill("SIGTERM");
    await expect
      .poll(() =>
        ask(`${url}/health`, { ca }).then(
          () => true,
          () => false,
        ),
      )
      .toBe(false);
    release();
    expect((await answered).body).toEqual({ ok: true });
    expect(await running.exited).toBe(0);
    expect(running.output).not.toContain(kit.license.slice(0, 40));
    expect(running.output).not.toContain(base.EDGE_SIGNING_KEY);
  });

  it("follows its certificates when they are replaced", async () => {
    const running = start(base);
    const port = await portOf(running);
    const ca = authority.bundle;
    const shown = (): Promise<string> =>
      new Promise((resolve, reject) => {
        const socket = connect({ port, host: "127.0.0.1", servername: "localhost", ca }, () => {
          resolve(socket.getPeerX509Certificate()?.serialNumber ?? "");
          socket.destroy();
        });
        socket.on("error", reject);
      });
    const before = await shown();
    await report(`https://localhost:${port}`, newRef(), { ca });
    const subject = verdict.taken.at(-1)?.clientSubject;
    const [server, client] = [await authority.issue(), await issueClient(authority, kit.orgId, kit.licenseId)];
    const replace = async (name: string, content: string): Promise<void> => {
      await writeFile(join(folder, `${name}.new`), content);
      await rename(join(folder, `${name}.new`), join(folder, name));
    };
    await replace("server.pem", server.certificate);
    await replace("server-key.pem", server.key);
    await replace("client.pem", client.certificate);
    await replace("client-key.pem", client.key);
    await expect.poll(shown, { timeout: 10_000 }).not.toBe(before);
    const clientSubject = async (): Promise<string | undefined> => {
      await report(`https://localhost:${port}`, newRef(), { ca });
      return verdict.taken.at(-1)?.clientSubject;
    };
    await expect.poll(clientSubject, { timeout: 10_000 }).toContain(`CN=${client.certificateId}`);
    expect(subject).not.toContain(client.certificateId);
  });

  it("runs as a landmark without a licence", async () => {
    const { EDGE_SIGNING_KEY, EDGE_SIGNING_KEY_ID, ALLOWED_ORIGIN, EDGE_TLS_CERT_FILE, EDGE_TLS_KEY_FILE } = base;
    const running = start({
      EDGE_ROLE: "landmark",
      EDGE_LOCATION: "52.52,13.40",
      EDGE_HOST: "127.0.0.1",
      PORT: "0",
      ...{ EDGE_SIGNING_KEY, EDGE_SIGNING_KEY_ID, ALLOWED_ORIGIN, EDGE_TLS_CERT_FILE, EDGE_TLS_KEY_FILE },
    });
    const port = await portOf(running);
    const ca = authority.bundle;
    const channel = await runChannel(`wss://localhost:${port}/v1/ws?d=${"a".repeat(43)}`, { ca });
    expect(channel.done?.m).toBeDefined();
    expect((await report(`https://localhost:${port}`, newRef(), { ca })).status).toBe(404);
  });

  it("starts with no configuration that cannot be used, and says all that is wrong with it", async () => {
    const nothing = await run({});
    expect(nothing.code).toBe(78);
    for (const name of [
      "OCTET_URL",
      "LICENSE",
      "ALLOWED_ORIGIN",
      "EDGE_SIGNING_KEY",
      "EDGE_SIGNING_KEY_ID",
      "EDGE_TLS_CERT_FILE",
    ]) {
      expect(nothing.errors).toContain(
        `${name} is not set`.replace("EDGE_SIGNING_KEY_ID is not set", "EDGE_SIGNING_KEY_ID:"),
      );
    }
    const other = await makeKit(authority);
    await writeFile(join(folder, "other.pem"), other.certificate);
    await writeFile(join(folder, "other-key.pem"), other.key);
    const foreign = await run({
      ...base,
      EDGE_CLIENT_CERT_FILE: join(folder, "other.pem"),
      EDGE_CLIENT_KEY_FILE: join(folder, "other-key.pem"),
    });
    expect([foreign.code, foreign.output]).toEqual([78, ""]);
    expect(foreign.errors).toContain(`a certificate of the licence ${kit.licenseId} is expected`);
    const port = await freePort();
    const taken = createServer().listen(port, "127.0.0.1");
    await once(taken, "listening");
    const busy = await run({ ...base, PORT: String(port) });
    taken.close();
    expect([busy.code, busy.errors]).toEqual([78, expect.stringContaining(`PORT is ${port}`)]);
  });

  it("tells of itself", async () => {
    const [version, help, wrong] = await Promise.all([
      run({}, ["--version"]),
      run({}, ["--help"]),
      run({}, ["--colour"]),
    ]);
    expect(version).toMatchObject({ code: 0, output: `octet-edge ${edgeVersion}\n` });
    expect([help.code, help.output]).toEqual([0, expect.stringContaining("EDGE_QUEUE_MAX")]);
    expect([wrong.code, wrong.errors]).toEqual([64, expect.stringContaining("--colour")]);
  });

  it("checks itself, and its exit code says whether it can do its work", async () => {
    const port = await freePort();
    const [good, away, nothing, stray] = await Promise.all([
      run(base, ["--check"]),
      run({ ...base, OCTET_URL: `https://localhost:${port}` }, ["--check"]),
      run({}, ["--check"]),
      run(base, ["--url", "https://x.example"]),
    ]);
    expect(good).toMatchObject({
      code: 0,
      output: expect.stringContaining("takes this licence, certificate and signing key"),
    });
    expect(good.output).not.toContain("FAILED");
    expect(away).toMatchObject({ code: 1, output: expect.stringMatching(/FAILED {3}verdict service: .*ECONNREFUSED/) });
    expect([nothing.code, stray.code]).toEqual([78, 64]);
  });
});
