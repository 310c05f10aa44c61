import { newId } from "@octomesh/mesh/ids";
import { afterEach, beforeEach, expect, test } from "vitest";
import {
  type ReportProof,
  type SessionKey,
  type SessionLimits,
  type SessionStore,
  waitForVerdict,
} from "../session-store.ts";

/** Opens stores of a suite, each empty. Two stores of `openPair` share what they hold where the kind can be shared. */
export interface StoreKind {
  open(limits: SessionLimits, now: () => number): Promise<SessionStore>;
  /** A second process on the same sessions; undefined for stores that are one process's own. */
  openBeside?(limits: SessionLimits, now: () => number): Promise<SessionStore>;
  /** Whether the store counts over all organisations. */
  readonly isBoundedOverall: boolean;
}

const limits: SessionLimits = { maxOfOrganization: 100, maxSessions: 1000, rememberMs: 600_000 };
const minute = 60_000;
const one: ReportProof = { bundleId: "bundle-one", nonce: "" };
const other: ReportProof = { bundleId: "bundle-other", nonce: "" };
const never = new AbortController().signal;

/** What every store of sessions does. */
export function describeSessionStore(kind: StoreKind): void {
  let now: number;
  let org: string;
  let store: SessionStore;
  const opened: SessionStore[] = [];
  const open = async (changed: Partial<SessionLimits> = {}): Promise<SessionStore> => {
    const made = await kind.open({ ...limits, ...changed }, () => now);
    opened.push(made);
    return made;
  };
  const key = (ref: string, orgId = org, sandbox = false): SessionKey => ({ orgId, sandbox, ref });
  const decision = (text = "DE", isNonced = false) => ({
    verdict: new TextEncoder().encode(text),
    evidence: new Uint8Array([0, 255, 13, 10]),
    expireMs: now + 10 * minute,
    isNonced,
  });
  const stateOf = async (which: SessionKey): Promise<string> => (await store.read(which)).state;

  beforeEach(async () => {
    now = 1_770_000_000_000;
    org = newId("org");
    store = await open();
  });
  afterEach(async () => {
    for (const each of opened.splice(0)) await each.close();
  });

  test("a session that nobody knows is unknown, and takes its report", async () => {
    expect(await store.read(key("a"))).toEqual({ state: "unknown" });
    expect(await store.check(key("a"), one)).toEqual({ outcome: "open", isNonced: false });
    expect(await stateOf(key("a"))).toBe("unknown");
    expect(await store.decide(key("a"), one, decision())).toBe("open");
    const reading = await store.read(key("a"));
    if (reading.state !== "ready") throw new Error(`the session is ${reading.state}`);
    expect(Buffer.from(reading.verdict).toString()).toBe("DE");
    expect([...reading.evidence]).toEqual([0, 255, 13, 10]);
  });

  test("a reference is good for one report, and the same one again is known", async () => {
    await store.decide(key("a"), one, decision());
    for (const ask of [
      async (proof: ReportProof) => (await store.check(key("a"), proof)).outcome,
      (proof: ReportProof) => store.decide(key("a"), proof, decision("FR")),
    ]) {
      expect(await ask(one)).toBe("duplicate");
      expect(await ask(other)).toBe("reported");
    }
    const reading = await store.read(key("a"));
    expect(reading.state === "ready" && Buffer.from(reading.verdict).toString()).toBe("DE");
  });

  test("of many reports at once one is taken", async () => {
    const outcomes = await Promise.all(
      Array.from({ length: 50 }, (_, index) =>
        store.decide(key("a"), { bundleId: `bundle-${index}`, nonce: "" }, decision(String(index))),
      ),
    );
    expect(outcomes.filter((outcome) => outcome === "open")).toHaveLength(1);
    expect(outcomes.filter((outcome) => outcome === "reported")).toHaveLength(49);
    const reading = await store.read(key("a"));
    const winner = outcomes.indexOf("open");
    expect(reading.state === "ready" && Buffer.from(reading.verdict).toString()).toBe(String(winner));
  });

  test("a registered session is collecting, and takes only a report with its nonce", async () => {
    const registered = { outcome: "registered", state: "collecting", createMs: now, expireMs: now + minute };
    expect(await store.register(key("a"), { nonce: "n-1", lifetimeMs: minute })).toEqual(registered);
    expect(await stateOf(key("a"))).toBe("collecting");
    for (const nonce of ["", "n-2", "n-1 "]) {
      expect(await store.check(key("a"), { ...one, nonce })).toEqual({ outcome: "nonce_mismatch", isNonced: true });
      expect(await store.decide(key("a"), { ...one, nonce }, decision())).toBe("nonce_mismatch");
    }
    expect(await stateOf(key("a"))).toBe("collecting");
    expect(await store.check(key("a"), { ...one, nonce: "n-1" })).toEqual({ outcome: "open", isNonced: true });
    expect(await store.decide(key("a"), { ...one, nonce: "n-1" }, decision("DE", true))).toBe("open");
    expect(await stateOf(key("a"))).toBe("ready");
  });

  test("without a nonce of its own a registered session takes whatever nonce", async () => {
    await store.register(key("a"), { nonce: "", lifetimeMs: minute });
    expect(await store.decide(key("a"), { ...one, nonce: "n-9" }, decision())).toBe("open");
  });

  test("registering again changes nothing; with another nonce, or after a report, it is refused", async () => {
    const first = await store.register(key("a"), { nonce: "n-1", lifetimeMs: minute });
    now += 1000;
    expect(await store.register(key("a"), { nonce: "n-1", lifetimeMs: 5 * minute })).toEqual(first);
    expect(await store.register(key("a"), { nonce: "n-2", lifetimeMs: minute })).toEqual({ outcome: "taken" });
    await store.decide(key("a"), { ...one, nonce: "n-1" }, decision("DE", true));
    expect(await store.register(key("a"), { nonce: "n-1", lifetimeMs: minute })).toMatchObject({
      outcome: "registered",
      state: "ready",
    });
    await store.decide(key("b"), one, decision());
    expect(await store.register(key("b"), { nonce: "", lifetimeMs: minute })).toEqual({ outcome: "taken" });
  });

  test("a session that was registered after the check is not decided by what the check said", async () => {
    expect(await store.check(key("a"), { ...one, nonce: "n-1" })).toEqual({ outcome: "open", isNonced: false });
    await store.register(key("a"), { nonce: "n-1", lifetimeMs: minute });
    expect(await store.decide(key("a"), { ...one, nonce: "n-1" }, decision())).toBe("changed");
    expect(await stateOf(key("a"))).toBe("collecting");
  });

  test("a session that is over is expired, is not taken again, and is forgotten after a while", async () => {
    await store.register(key("a"), { nonce: "", lifetimeMs: minute });
    await store.decide(key("b"), one, decision());
    now += minute;
    expect(await stateOf(key("a"))).toBe("expired");
    expect(await stateOf(key("b"))).toBe("ready");
    now += 9 * minute;
    expect(await stateOf(key("b"))).toBe("expired");
    for (const ref of ["a", "b"]) {
      expect((await store.check(key(ref), one)).outcome).toBe("expired");
      expect(await store.decide(key(ref), one, decision())).toBe("expired");
      expect(await store.register(key(ref), { nonce: "", lifetimeMs: minute })).toEqual({ outcome: "taken" });
    }
  });

  test("the same reference is another session for another organisation, and in the sandbox", async () => {
    const keys = [key("a"), key("a", org, true), key("a", newId("org"))];
    for (const [index, each] of keys.entries()) {
      expect(await stateOf(each)).toBe("unknown");
      expect(await store.decide(each, one, decision(String(index)))).toBe("open");
    }
    for (const [index, each] of keys.entries()) {
      const reading = await store.read(each);
      expect(reading.state === "ready" && Buffer.from(reading.verdict).toString()).toBe(String(index));
    }
  });

  test("a full organisation is refused, and others are not", async () => {
    store = await open({ maxOfOrganization: 3 });
    for (const ref of ["a", "b", "c"]) await store.register(key(ref), { nonce: "", lifetimeMs: minute });
    expect(await store.register(key("d"), { nonce: "", lifetimeMs: minute })).toEqual({ outcome: "organization_full" });
    expect((await store.check(key("d"), one)).outcome).toBe("organization_full");
    expect(await store.decide(key("d"), one, decision())).toBe("organization_full");
    expect(await store.decide(key("a"), one, decision())).toBe("open");
    expect(await store.decide(key("d", newId("org")), one, decision())).toBe("open");
    now += minute;
    expect(await store.decide(key("d"), one, decision())).toBe("open");
    expect(await stateOf(key("a"))).toBe("ready");
  });

  const whereBounded = kind.isBoundedOverall ? test : undefined;
  whereBounded?.("a full store refuses, and forgets nobody's live session", async () => {
    store = await open({ maxSessions: 2 });
    const orgs = [newId("org"), newId("org"), newId("org")];
    expect(await store.decide(key("a", orgs[0]), one, decision())).toBe("open");
    expect(await store.decide(key("a", orgs[1]), one, decision())).toBe("open");
    expect(await store.decide(key("a", orgs[2]), one, decision())).toBe("full");
    expect(await store.register(key("a", orgs[2]), { nonce: "", lifetimeMs: minute })).toEqual({ outcome: "full" });
    expect(await stateOf(key("a", orgs[0]))).toBe("ready");
    expect(store.held()).toBe(2);
    now += 10 * minute;
    expect(await store.decide(key("a", orgs[2]), one, decision())).toBe("open");
    expect(store.held()).toBe(1);
  });

  test("who waits is woken by the verdict, and by nobody else's", async () => {
    const waiting = waitForVerdict(store, key("a"), 20_000, never);
    const foreign = waitForVerdict(store, key("a", newId("org")), 300, never);
    await store.decide(key("b"), one, decision());
    await store.decide(key("a"), one, decision());
    expect(await waiting).toMatchObject({ state: "ready" });
    expect(await foreign).toEqual({ state: "unknown" });
  });

  test("waiting ends with its time, with the caller, and at once where it makes no sense", async () => {
    await store.register(key("a"), { nonce: "", lifetimeMs: minute });
    expect(await waitForVerdict(store, key("a"), 50, never)).toEqual({ state: "collecting" });
    const gone = new AbortController();
    const waiting = waitForVerdict(store, key("a"), 20_000, gone.signal);
    gone.abort();
    expect(await waiting).toEqual({ state: "collecting" });
    now += minute;
    expect(await waitForVerdict(store, key("a"), 20_000, never)).toEqual({ state: "expired" });
  });

  const { openBeside } = kind;
  const whereShared = openBeside === undefined ? undefined : test;
  whereShared?.("another process's verdict wakes, and its sessions are the same", async () => {
    const beside = await openBeside!(limits, () => now);
    opened.push(beside);
    await beside.register(key("a"), { nonce: "n-1", lifetimeMs: minute });
    expect(await stateOf(key("a"))).toBe("collecting");
    const waiting = waitForVerdict(store, key("a"), 20_000, never);
    expect(await beside.decide(key("a"), { ...one, nonce: "n-1" }, decision("DE", true))).toBe("open");
    expect(await waiting).toMatchObject({ state: "ready" });
    expect(await store.decide(key("a"), { ...other, nonce: "n-1" }, decision("FR", true))).toBe("reported");
  });

  test("an organisation is erased whole, its sandbox and what is over included", async () => {
    const spared = key("a", newId("org"));
    await store.register(key("over"), { nonce: "", lifetimeMs: 1000 });
    now += 2000;
    await store.decide(key("a"), one, decision());
    await store.decide(key("a", org, true), one, decision());
    await store.decide(spared, one, decision());
    expect(await store.count(org)).toBe(3);
    expect(await store.erase(org)).toBe(3);
    expect(await store.count(org)).toBe(0);
    expect(await stateOf(key("a"))).toBe("unknown");
    expect(await stateOf(key("over"))).toBe("unknown");
    expect(await stateOf(spared)).toBe("ready");
    expect(await store.erase(org)).toBe(0);
  });
}
