import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { fromBinary } from "@bufbuild/protobuf";
import { createTestAuthority } from "@octomesh/mesh/test/certificate-fixture";
import { ConnectionTiming_Degradation as Degradation } from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import {
  LandmarkMeasurementSchema,
  SignedMeasurementSchema,
} from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import type { SignalBundle } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { type Browser, chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
// @ts-expect-error it is JavaScript, so that it runs before anything is built
import { buildCollector } from "../collector/build.mjs";
import { createTestLog, makeKit, newRef, type TestKit } from "../test/edge-fixture.ts";
import { isSignedBy, startVerdictServer, type TakenBundle, type VerdictServer } from "../test/verdict-server.ts";
import { createEdge, type Edge } from "./edge.ts";
import { loopbackOrigins } from "./origin-rule.ts";

// A machine without the browser skips this: what needs none of it is in edge.test.ts.
const executablePath = [process.env.CHROMIUM ?? "", "/usr/bin/chromium"].find(
  (path) => path !== "" && existsSync(path),
);

describe.skipIf(executablePath === undefined || process.platform !== "linux")("the built collector in Chromium", () => {
  let verdict: VerdictServer;
  let kit: TestKit;
  let own: TestKit;
  let browser: Browser;
  let integrity: string;
  const edges: Edge[] = [];
  const urls = { edge: "", landmark: "" };

  beforeAll(async () => {
    ({ integrity } = await buildCollector({ log: () => undefined }));
    const authority = await createTestAuthority();
    kit = await makeKit(authority);
    verdict = await startVerdictServer({ authority, keys: new Map([[kit.signingKeyId, kit.signer.publicKey]]) });
    own = await makeKit(authority);
    const { key, certificate } = await authority.issue();
    const tls = { options: () => ({ key, cert: certificate }) };
    const { log } = createTestLog();
    const shared = { host: "127.0.0.1", port: 0, origins: loopbackOrigins, tls, log };
    const location = { latitude: 52.52, longitude: 13.4 };
    const landmark = await createEdge({ ...shared, role: "landmark", name: "ber-1", location, signer: own.signer });
    urls.landmark = `wss://localhost:${landmark.port}/v1/ws`;
    const edge = await createEdge({ ...shared, role: "edge", name: "fra-1", landmarks: [urls.landmark] });
    edge.provision(kit.at(() => verdict.url));
    urls.edge = `https://localhost:${edge.port}`;
    edges.push(landmark, edge);
    browser = await chromium.launch({
      ...(executablePath === undefined ? {} : { executablePath }),
      args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
    });
  });

  afterAll(async () => {
    await browser?.close();
    await Promise.all(edges.map((edge) => edge.close(500)));
    await verdict?.stop();
  });

  /** Opens a page of an origin of its own, which loads the script from the edge and holds it to its digest. */
  async function visit(options: Record<string, unknown>): Promise<unknown> {
    const html = `<!doctype html><title>shop</title>
      <script src="${urls.edge}/octet-collector.js" integrity="${integrity}" crossorigin="anonymous"></script>`;
    const site = createServer((_, response) => response.setHeader("content-type", "text/html").end(html));
    site.listen(0, "127.0.0.1");
    await once(site, "listening");
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    try {
      await page.goto(`http://localhost:${(site.address() as AddressInfo).port}/`);
      const run = `octet.verify(${JSON.stringify(options)}).then((answer) => answer, (error) => error.code)`;
      return await page.evaluate(run);
    } finally {
      await page.close();
      site.closeAllConnections();
      site.close();
    }
  }

  it("is served by the edge with the digest that pages pin", async () => {
    const page = await browser.newPage({ ignoreHTTPSErrors: true });
    const script = await page.goto(`${urls.edge}/octet-collector.js`);
    const body = await script?.body();
    expect(script?.headers()).toMatchObject({
      "content-type": "text/javascript; charset=utf-8",
      "access-control-allow-origin": "*",
    });
    const pinned = await (await page.goto(`${urls.edge}/octet-collector.js.sri`))?.text();
    expect(pinned?.trim()).toBe(
      `sha384-${createHash("sha384")
        .update(body ?? "")
        .digest("base64")}`,
    );
    expect(body).toEqual(readFileSync(new URL("../collector/dist/octet-collector.js", import.meta.url)));
    await page.close();
  });

  it("measures over the edge and the landmark, and its bundle holds what all three saw", {
    timeout: 90_000,
  }, async () => {
    // A busy machine may not measure it all within the two seconds that the collector gives itself.
    let ref = "";
    let taken: TakenBundle | undefined;
    for (let visits = 0; visits < 8 && !isWhole(taken); visits += 1) {
      ref = newRef();
      expect(await visit({ apiUrl: urls.edge, sessionRef: ref, nonce: "nonce-nonce-nonce" })).toEqual({ ok: true });
      taken = verdict.taken.find(({ bundle }) => bundle.sessionRef === ref);
    }
    expect(taken).toMatchObject({ isSigned: true, license: kit.license });
    const bundle = taken?.bundle as SignalBundle;
    expect(bundle.connection).toMatchObject({
      degradation: Degradation.UNSPECIFIED,
      protocol: "h2",
      clientHello: { ja4: expect.stringMatching(/^t13/) },
    });
    expect(Number(bundle.connection?.minRttUs)).toBeGreaterThan(0);
    expect(bundle.latencyChannel?.roundTripUs).toHaveLength(20);
    expect(bundle.latencyChannel?.connection).toMatchObject({ protocol: "http/1.1" });
    expect(bundle.userAgent).toContain("Chrome");
    const report = JSON.parse(Buffer.from(bundle.collectorReport).toString());
    expect(report).toMatchObject({ v: 1, ref, nonce: "nonce-nonce-nonce", end: "done", timing: { pings: 20 } });
    expect(report.timing.rt[0].n).toBeGreaterThan(0);
    expect(report.landmarks).toEqual([{ url: urls.landmark, m: expect.any(String) }]);
    const signed = fromBinary(SignedMeasurementSchema, Buffer.from(report.landmarks[0].m, "base64url"));
    const measurement = fromBinary(LandmarkMeasurementSchema, signed.measurement);
    expect(measurement).toMatchObject({ landmarkId: "ber-1", position: { latitude: 52.52 } });
    expect(Buffer.from(measurement.sessionDigest).equals(createHash("sha256").update(ref).digest())).toBe(true);
    expect(measurement.channel?.roundTripUs.length).toBeGreaterThan(0);
    const purpose = "octomesh landmark measurement v1";
    expect(isSignedBy(own.signer.publicKey, purpose, signed.measurement, signed.signature)).toBe(true);
  });

  it("is told the edge's refusals by their codes", async () => {
    const ref = newRef();
    const options = { apiUrl: urls.edge, sessionRef: ref, mode: "passive" };
    expect(await visit(options)).toEqual({ ok: true });
    expect(await visit(options)).toBe("session_reported");
  });
});

/** Whether the collector came to its end: the channel and the landmark too. */
function isWhole(taken: TakenBundle | undefined): boolean {
  if (taken === undefined) return false;
  const report = JSON.parse(Buffer.from(taken.bundle.collectorReport).toString());
  return report.end === "done" && report.landmarks !== undefined && taken.bundle.latencyChannel !== undefined;
}
