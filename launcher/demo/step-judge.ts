import { randomBytes } from "node:crypto";
import {
  apiKey,
  createClients,
  decide,
  isReason,
  readVerdict,
  VerdictTokenError,
  verdictKeys,
  verifyVerdict,
} from "@octomesh/sdk";
import { chromiumPath, startBrowser } from "./browser.ts";
import { openPartnerSite } from "./partner-site.ts";
import { waitUntil } from "./wait-until.ts";
import type { World } from "./world.ts";

const keyPattern = /\bedg_partner_[0-9A-Za-z]{28}\b/;

/** Step 6: a page, the collector, the edge, a verdict, and the backend that reads and verifies it. */
export async function judge(world: World): Promise<void> {
  const { narrator, edgeUrl } = world;
  if (edgeUrl === undefined) {
    narrator.say("Skipped: --edge does not say where the mesh's edge is.");
    return;
  }
  const isReady = await waitUntil(async () => (await fetch(`${edgeUrl}/ready`)).ok, {
    timeoutMs: 60_000,
    everyMs: 250,
    signal: world.signal,
  });
  world.check(isReady, "the deployment's own edge was handed its licence, certificate and signing key");

  narrator.say("The shop's backend gets a key that reads verdicts, and nothing else.");
  const made = await world.octomil(["partner-keys", "create", "--name", "shop-backend"]);
  const partnerKey = keyPattern.exec(made.stdout)?.[0] ?? "";
  world.check(partnerKey !== "", "the partner key was shown, this once");
  const shop = createClients({ baseUrl: world.url, credential: apiKey(partnerKey), timeoutMs: 20_000 });
  try {
    await readOne(world, shop, edgeUrl);
  } finally {
    shop.close();
  }
}

async function readOne(world: World, shop: ReturnType<typeof createClients>, edgeUrl: string): Promise<void> {
  const { narrator } = world;
  const refused = await shop.models.listModels({}).catch((error: unknown) => error);
  world.check(isReason(refused, "CALLER_KIND_NOT_ALLOWED"), "the partner key opens nothing but verdicts");

  const sessionRef = `shop-${randomBytes(16).toString("base64url")}`;
  const nonce = randomBytes(16).toString("base64url");
  await shop.verdicts.createVerdictSession({ sessionRef, nonce });
  const before = await readVerdict(shop, sessionRef, { waitMs: 0 });
  world.check(before.state === "pending" && before.pending === "collecting", "before the page: pending, collecting");

  const browser = await startBrowser();
  if (browser === undefined) {
    narrator.say(
      `Skipped: the page in a real browser, and what is read of it. There is no Chromium at ${chromiumPath}.`,
    );
    return;
  }
  const site = await openPartnerSite(edgeUrl);
  try {
    narrator.say("A visitor opens the shop's page in Chromium; the collector talks to the edge alone.");
    const visit = async (): Promise<string> => {
      const page = await browser.newPage();
      const foreign: string[] = [];
      page.on("request", (request) => {
        const { origin } = new URL(request.url().replace(/^ws/, "http"));
        if (![new URL(site.url).origin, new URL(edgeUrl).origin].includes(origin)) foreign.push(origin);
      });
      await page.goto(`${site.url}?${new URLSearchParams({ ref: sessionRef, nonce })}`);
      // Asked from outside: the page's policy lets nobody evaluate in it later.
      await waitUntil(async () => !(await page.title()).startsWith("collecting"), { timeoutMs: 15_000, everyMs: 20 });
      const kept = await page.evaluate("[document.cookie, localStorage.length, sessionStorage.length].join()");
      const title = await page.title();
      await page.close();
      world.check(foreign.length === 0 && kept === ",0,0", "the page spoke to nobody else, and nothing was stored");
      return title;
    };
    const begin = performance.now();
    const title = await visit();
    world.check(title === 'done {"ok":true}', `the browser learns that its report was taken, and no more: ${title}`);

    const reading = await readVerdict(shop, sessionRef, { waitMs: 5000 });
    const tookMs = performance.now() - begin;
    if (reading.state !== "ready") {
      world.check(false, `the verdict is ${reading.pending}`);
      return;
    }
    world.check(true, `the backend read the verdict ${(tookMs / 1000).toFixed(1)} s after the visitor came`);
    const keys = verdictKeys(world.url);
    const audience = await orgIdOf(world);
    const verified = await verifyVerdict(reading.verdict.token, { keys, audience, sessionRef, nonce });
    narrator.say(
      `Verified offline: country ${verified.country ?? "not known (a loopback address is nowhere)"}, alarm ${verified.alarm}; ` +
        `the shop's policy says ${decide(verified).action}.`,
    );
    world.check(verified.alarm === "none", "nothing hides this session, and nothing is alarmed");
    const stolen = await verifyVerdict(reading.verdict.token, { keys, audience, sessionRef: "another" }).catch(
      (error: unknown) => error,
    );
    world.check(
      stolen instanceof VerdictTokenError && stolen.problem === "wrong_session",
      "the token is good for this session alone",
    );
    const again = await visit();
    world.check(again === "failed session_reported", `the reference is good for one report: ${again}`);
  } finally {
    await site.close();
    await browser.close();
  }
}

async function orgIdOf(world: World): Promise<string> {
  const { stdout } = await world.octomil(["whoami", "--json"], { quiet: true });
  return String((JSON.parse(stdout) as { org_id?: string }).org_id ?? "");
}
