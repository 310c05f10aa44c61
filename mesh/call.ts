import type { Logger } from "pino";
import type { Caller } from "./caller.ts";
import { newId } from "./ids.ts";

/** How an audited action ended. */
export type AuditOutcome = "success" | "denied" | "error";

/**
 * The audit event of one call while it is being made. `enforcePolicy` puts it on the call, the handler says what was
 * touched, and `database.ts` writes it in the transaction of the change. One draft becomes at most one event.
 */
export interface AuditDraft {
  /** `evt_` id, the key by which the audit log de-duplicates. */
  readonly id: string;
  /** What was attempted, as the method's policy names it, such as `devices.revoke`. */
  readonly action: string;
  /** When the call began, milliseconds since the Unix epoch. */
  readonly time: number;
  /** Whether it is still to be written, is durable, or was left out on purpose. */
  readonly state: "pending" | "written" | "skipped";
  /** Why it was left out; empty unless skipped. */
  readonly skipReason: string;
  /** What the action was on. Empty strings until `resource` was called. */
  readonly target: Readonly<{ type: string; id: string; name: string }>;
  /** What `note` collected. */
  readonly notes: Readonly<Record<string, string>>;
  /** Names what the action was on. The last call counts, so a retried transaction may repeat it. */
  resource(type: string, id: string, name?: string): void;
  /** Adds one fact to the event's metadata: at most 32 of them, key up to 64 and value up to 1,024 characters. */
  note(key: string, value: string): void;
  /** Leaves the event out, for a mutation that changed nothing (a replay). The reason stays in the draft. */
  skip(reason: string): void;
  /** Called by the database after the commit that made the event durable, and by nothing else. */
  markWritten(): void;
}

/** One authenticated call, as a handler and the storage layer see it. */
export interface Call {
  readonly caller: Caller;
  /** The organisation the call acts in; "" when it acts in none. */
  readonly orgId: string;
  readonly requestId: string;
  /** Absent when the method's policy audits nothing. */
  readonly audit?: AuditDraft;
  /** True only where the policy of the method declares its audit `NONE`: reports are data (DESIGN 8.2). */
  readonly auditExempt?: boolean;
  /** Aborts when the request has ended, or its caller has gone. */
  readonly signal: AbortSignal;
  /**
   * The signal for whoever waits: it aborts with `signal`, and with the caller's credential. Asked for by methods that may
   * outlast a credential, and by no other: a call that revokes its own must still be answered.
   */
  waitSignal(): AbortSignal;
  readonly log: Logger;
}

const maxNotes = 32;
const maxKeyCharacters = 64;
const maxValueCharacters = 1024;

/** Starts the audit event of a call. `id` and `time` are arguments for tests; otherwise new and now. */
export function createAuditDraft(init: { action: string; id?: string; time?: number }): AuditDraft {
  const time = init.time ?? Date.now();
  const id = init.id ?? newId("evt", time);
  const notes: Record<string, string> = Object.create(null);
  let target = { type: "", id: "", name: "" };
  let state: AuditDraft["state"] = "pending";
  let skipReason = "";
  return {
    id,
    action: init.action,
    time,
    get state() {
      return state;
    },
    get skipReason() {
      return skipReason;
    },
    get target() {
      return target;
    },
    get notes() {
      return notes;
    },
    resource(type, resourceId, name = "") {
      target = { type, id: resourceId, name: name.slice(0, maxValueCharacters) };
    },
    note(key, value) {
      if (key.length === 0 || key.length > maxKeyCharacters) {
        throw new TypeError(`an audit note's key has 1 to ${maxKeyCharacters} characters`);
      }
      if (!(key in notes) && Object.keys(notes).length >= maxNotes) {
        throw new TypeError(`an audit event holds at most ${maxNotes} notes`);
      }
      notes[key] = value.slice(0, maxValueCharacters);
    },
    skip(reason) {
      if (state === "written") throw new Error("the audit event is already durable");
      state = "skipped";
      skipReason = reason;
    },
    markWritten() {
      state = "written";
    },
  };
}
