import type { Fleet } from "@octomesh/cli/fleet/fleet";
import type { Clients } from "@octomesh/sdk";
import type { Narrator } from "./narrator.ts";
import { commandLine, type Octomil, type OctomilOptions, type OctomilResult } from "./octomil-process.ts";

/** Something that must hold, and whether it did. */
export interface Check {
  chapter: string;
  ok: boolean;
  text: string;
}

/** A published version of the demo's model. */
export interface PublishedVersion {
  version: string;
  path: string;
  sha256: string;
  sizeBytes: number;
}

/** A rollout step that was carried out, with how long the fleet took to follow. */
export interface RolloutStep {
  text: string;
  devices: number;
  /** From the command to each device's activation, ascending, in milliseconds. */
  latenciesMs: number[];
}

/** What the steps of the main job share. */
export interface World {
  readonly url: string;
  /** Where the mesh's own edge is; undefined where nobody said. */
  readonly edgeUrl: string | undefined;
  readonly setUpCode: string;
  readonly deviceCount: number;
  readonly narrator: Narrator;
  readonly signal: AbortSignal;
  readonly checks: Check[];
  readonly rolloutSteps: RolloutStep[];
  readonly published: PublishedVersion[];
  /** Commands that were run, and how long they took. */
  readonly commands: { line: string; durationMs: number }[];
  /** Which chapter is being told. */
  chapter: string;
  /** Name of the model. */
  readonly model: string;
  modelId: string;
  /** The keys of the organisation, as they were shown once. */
  ciKey: string;
  fleetKey: string;
  /** Clients with the fleet's key, as an organisation's backend has them. */
  backend: Clients | undefined;
  fleet: Fleet | undefined;
  /** The device that runs into the registration limit, and when its first attempt began. */
  limited: { index: number; registered: Promise<void> } | undefined;
  /** Says that something must hold, and records whether it does. Answers it. */
  check(ok: boolean, text: string): boolean;
  /** Runs a command as a person does, shows it, and expects this exit code, 0 if none is named. Throws at another. */
  octomil(args: readonly string[], options?: CommandOptions): Promise<OctomilResult>;
}

/** How a command of the story is run. */
export interface CommandOptions extends OctomilOptions {
  /** The exit code that is expected; `refused` is any but 0. */
  expect?: number | "refused";
  /** Does not show what it prints. */
  quiet?: boolean;
}

/** What a world is made of. */
export interface WorldOptions {
  url: string;
  edgeUrl?: string;
  setUpCode: string;
  deviceCount: number;
  narrator: Narrator;
  octomil: Octomil;
  signal: AbortSignal;
}

/** Makes the world that the steps of the main job work in. */
export function createWorld(options: WorldOptions): World {
  const { narrator } = options;
  const world: World = {
    url: options.url,
    edgeUrl: options.edgeUrl,
    setUpCode: options.setUpCode,
    deviceCount: options.deviceCount,
    narrator,
    signal: options.signal,
    checks: [],
    rolloutSteps: [],
    published: [],
    commands: [],
    chapter: "",
    model: "voice-activity",
    modelId: "",
    ciKey: "",
    fleetKey: "",
    backend: undefined,
    fleet: undefined,
    limited: undefined,
    check(ok, text) {
      world.checks.push({ chapter: world.chapter, ok, text });
      narrator.verdict(ok, text);
      return ok;
    },
    async octomil(args, { expect = 0, quiet = false, ...how } = {}) {
      options.signal.throwIfAborted();
      const line = commandLine(args);
      narrator.command(line);
      const result = await options.octomil(args, how);
      world.commands.push({ line, durationMs: result.durationMs });
      if (!quiet) narrator.output(result.stdout);
      if (result.code !== 0) narrator.output(result.stderr);
      if (expect === "refused" ? result.code === 0 : result.code !== expect) {
        world.check(false, `${line} exited with ${result.code} where ${expect} was expected: ${result.stderr.trim()}`);
        throw new Error(`${line} exited with ${result.code}`);
      }
      return result;
    },
  };
  return world;
}

/** What is there, or an error that says what is missing: for what an earlier step provides. */
export function provided<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new Error(`${what} is missing: an earlier step did not get that far`);
  return value;
}
