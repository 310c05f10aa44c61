import type { DesiredState_DesiredModel } from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import {
  ObservedState_Failure as Failure,
  ObservedState_State as State,
} from "@octomesh/proto/octomesh/device/v1/observed_state_pb";
import { type BackoffOptions, backoffMs } from "../backoff.ts";
import type { HttpClient, Platform } from "../platform/platform.ts";
import { abortable } from "../wait.ts";
import { type ActiveModel, activated, decodeActivation, encodeActivation, type VerifiedVersion } from "./activation.ts";
import type { ArtifactStore } from "./artifact-store.ts";
import { toHex } from "./bytes.ts";
import { DeviceError, type DeviceErrorKind, isDeviceError } from "./device-error.ts";
import type { DeviceRegistrationRecord } from "./device-store.ts";
import { type DownloadOutcome, downloadArtifact, isIntact } from "./download-artifact.ts";
import { verifyManifest } from "./manifest.ts";

/** A model that is active on this device. */
export interface InstalledModel extends VerifiedVersion {
  /** Id of the model, `mdl_…`. */
  modelId: string;
  /** Where the verified bytes can be opened, for artifact stores that have paths. Read only. */
  path?: string;
  /** The version before, whose bytes are kept. */
  previous?: VerifiedVersion;
}

/** Where one version of a model stands on this device. */
export interface ObservedModelState {
  modelId: string;
  versionId: string;
  state: State;
  failure: Failure;
  previousVersionId: string;
}

/** What the keeper tells while it works. */
export interface ModelKeeperEvents {
  /** A version is offered that is not active. */
  offered(model: DesiredState_DesiredModel): void;
  downloading(
    model: DesiredState_DesiredModel,
    progress: { offset: number; sizeBytes: number; resumed: boolean },
  ): void;
  progress(model: DesiredState_DesiredModel, progress: { offset: number; sizeBytes: number }): void;
  throttled(retryAfterMs: number): void;
  downloaded(model: DesiredState_DesiredModel, outcome: DownloadOutcome & { durationMs: number }): void;
  /** A version is active from now on. `downloaded` is false where its bytes were there. */
  activated(
    model: InstalledModel,
    change: { from: VerifiedVersion | undefined; downloaded: boolean; durationMs: number },
  ): void;
  removed(model: ActiveModel): void;
  /** A version did not become active; the one before stays. */
  failed(model: DesiredState_DesiredModel, error: DeviceError): void;
  /** What is observed changed. */
  observed(): void;
}

/** Settings of a model keeper. */
export interface ModelKeeperOptions {
  store: ArtifactStore;
  http: HttpClient;
  platform: Pick<Platform<unknown>, "sha256" | "verifyEd25519">;
  baseUrl: string;
  /** Largest artifact that is taken, in bytes. */
  maxArtifactBytes: number;
  registration(): DeviceRegistrationRecord;
  /** The `Authorization` header; a new one after the mesh refused the last. */
  authorization(refused?: number): Promise<string>;
  /** The desired model as the mesh says it now, with a new download grant; undefined if it is not desired any more. */
  refetch(modelId: string, signal: AbortSignal): Promise<DesiredState_DesiredModel | undefined>;
  /** Tries a version before it becomes active; a throw refuses it. */
  load?(model: InstalledModel): Promise<void>;
  events: ModelKeeperEvents;
  /** The clock, milliseconds since the Unix epoch. */
  now(): number;
  /** How failed versions are tried again. Default: after 30 s at first, an hour at most. */
  retry?: BackoffOptions;
}

/** Keeps the models of this device as the mesh wants them. */
export interface ModelKeeper {
  /** Takes the artifact store and reads what is active. Models whose bytes are not there any more are forgotten. */
  open(): Promise<void>;
  /**
   * Makes the models what is desired: fetches, verifies and activates versions that are not active, falls back to kept
   * ones without fetching, removes models that are not desired. Never throws for one model's failure: answers when what
   * failed should be tried again, in milliseconds since the Unix epoch; undefined if nothing is to be tried again.
   */
  apply(models: readonly DesiredState_DesiredModel[], signal: AbortSignal): Promise<number | undefined>;
  /** What is active. */
  installed(): InstalledModel[];
  /** What to report: every version on the device, and those that failed. */
  observed(): ObservedModelState[];
  /** The bytes of an active model, checked against its digest as they are read. */
  read(modelId: string): Promise<Uint8Array>;
  /** Gives the store back. */
  close(): Promise<void>;
}

interface Attempt {
  state: State;
  failure: Failure;
  /** Failures in a row. */
  count: number;
  /** Not before this time, milliseconds since the Unix epoch. */
  notBefore: number;
  versionId: string;
  /** Tells whether the same thing is offered again. */
  offer: string;
}

/** Makes a model keeper. Its calls are made one at a time. */
export function createModelKeeper(options: ModelKeeperOptions): ModelKeeper {
  const { store, events, platform } = options;
  let models: ActiveModel[] = [];
  const attempts = new Map<string, Attempt>();

  function installedModel({ modelId, active, previous }: ActiveModel): InstalledModel {
    return {
      modelId,
      ...active,
      ...(store.pathOf ? { path: store.pathOf(active.sha256) } : {}),
      ...(previous === undefined ? {} : { previous }),
    };
  }

  async function applyOne(desired: DesiredState_DesiredModel, signal: AbortSignal): Promise<void> {
    const current = models.find((model) => model.modelId === desired.modelId);
    const offer = offerOf(desired);
    const before = attempts.get(desired.modelId);
    if (before?.offer !== offer) attempts.delete(desired.modelId);
    else if (before.notBefore > options.now()) return;
    const mark = (state: State, failure: Failure = Failure.UNSPECIFIED) => {
      const { count = 0, notBefore = 0 } = attempts.get(desired.modelId) ?? {};
      attempts.set(desired.modelId, { state, failure, count, notBefore, versionId: desired.versionId, offer });
      events.observed();
    };
    try {
      const registration = options.registration();
      const { sha256, sizeBytes } = await verifyManifest(desired, registration, platform);
      const version: VerifiedVersion = {
        modelName: desired.modelName,
        version: desired.version,
        versionId: desired.versionId,
        rolloutId: desired.rolloutId,
        sha256,
        sizeBytes,
      };
      if (current?.active.versionId === version.versionId && current.active.sha256 === sha256) {
        attempts.delete(desired.modelId);
        if (current.active.rolloutId !== version.rolloutId) await commit(desired.modelId, version);
        return;
      }
      if (sizeBytes > options.maxArtifactBytes) {
        const limit = options.maxArtifactBytes;
        throw new DeviceError("ARTIFACT_TOO_LARGE", `the artifact has ${sizeBytes} bytes, this device takes ${limit}`);
      }
      events.offered(desired);
      const begin = performance.now();
      const isThere = await isIntact(store, sha256, sizeBytes, platform.sha256);
      if (!isThere) {
        mark(State.DOWNLOADING);
        await fetch(desired, sha256, sizeBytes, signal);
      }
      // From here to the commit the version's bytes are there and verified; an abort changes nothing that is active.
      mark(State.READY);
      await tryOut({ modelId: desired.modelId, ...version }, signal);
      signal.throwIfAborted();
      const from = await commit(desired.modelId, version);
      attempts.delete(desired.modelId);
      const model = models.find((candidate) => candidate.modelId === desired.modelId) as ActiveModel;
      const durationMs = performance.now() - begin;
      events.activated(installedModel(model), { from, downloaded: !isThere, durationMs });
      events.observed();
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error instanceof Superseded) {
        // No failure of the version: the mesh took it back while it was on its way, and will say what is to run instead.
        attempts.delete(desired.modelId);
        events.observed();
        return;
      }
      const failure = isDeviceError(error)
        ? error
        : new DeviceError("DOWNLOAD", `${desired.modelName} ${desired.version} could not be fetched`, { cause: error });
      const count = (attempts.get(desired.modelId)?.count ?? 0) + 1;
      const pauseMs = isLasting(failure.kind)
        ? Number.POSITIVE_INFINITY
        : backoffMs(count, options.retry ?? { baseDelayMs: 30_000, maxDelayMs: 3_600_000 });
      attempts.set(desired.modelId, {
        state: State.FAILED,
        failure: failureOf(failure.kind),
        count,
        notBefore: options.now() + pauseMs,
        versionId: desired.versionId,
        offer,
      });
      events.failed(desired, failure);
      events.observed();
    }
  }

  async function fetch(desired: DesiredState_DesiredModel, sha256: string, sizeBytes: number, signal: AbortSignal) {
    let offered = desired;
    let begin = performance.now();
    let hasStarted = false;
    const outcome = await downloadArtifact({
      sha256,
      sizeBytes,
      store,
      http: options.http,
      sha256Of: platform.sha256,
      signal,
      async source(refused) {
        const authorization = await options.authorization(refused);
        if (refused !== undefined) {
          const fresh = await options.refetch(desired.modelId, signal);
          if (fresh === undefined || offerOf(fresh) !== offerOf(desired)) {
            throw new Superseded();
          }
          offered = fresh;
        }
        const { downloadPath: path, downloadGrant: grant } = offered;
        // A path of the mesh's origin and nothing else: the access token must not follow a link elsewhere.
        if (!/^\/[A-Za-z0-9\-._~/:%]*$/.test(path) || path.startsWith("//")) {
          throw new DeviceError("MANIFEST_MISMATCH", "the download path is not one of the mesh's origin");
        }
        return {
          url: `${options.baseUrl}${path}`,
          headers: { authorization, ...(grant === "" ? {} : { "octomesh-download-grant": grant }) },
        };
      },
      onStart(offset) {
        if (hasStarted) return;
        hasStarted = true;
        begin = performance.now();
        events.downloading(desired, { offset, sizeBytes, resumed: offset > 0 });
      },
      onProgress: (offset) => events.progress(desired, { offset, sizeBytes }),
      onThrottled: (retryAfterMs) => events.throttled(retryAfterMs),
    });
    events.downloaded(desired, { ...outcome, durationMs: performance.now() - begin });
  }

  async function tryOut(version: VerifiedVersion & { modelId: string }, signal: AbortSignal): Promise<void> {
    if (options.load === undefined) return;
    const { modelId, ...active } = version;
    try {
      await abortable(options.load(installedModel({ modelId, active })), signal);
    } catch (cause) {
      throw new DeviceError("LOAD", `${version.modelName} ${version.version} could not be loaded`, { cause });
    }
  }

  /** The moment of activation: one atomic replacement of the record. */
  async function commit(modelId: string, version: VerifiedVersion): Promise<VerifiedVersion | undefined> {
    const next = activated(models, modelId, version);
    await store.writeActivation(encodeActivation(next.models));
    models = next.models;
    return next.from;
  }

  async function removeOthers(desired: readonly DesiredState_DesiredModel[]): Promise<void> {
    const wanted = new Set(desired.map((model) => model.modelId));
    const leaving = models.filter((model) => !wanted.has(model.modelId));
    for (const modelId of attempts.keys()) if (!wanted.has(modelId)) attempts.delete(modelId);
    if (leaving.length === 0) return;
    const staying = models.filter((model) => wanted.has(model.modelId));
    await store.writeActivation(encodeActivation(staying));
    models = staying;
    for (const model of leaving) events.removed(model);
    events.observed();
  }

  async function collectGarbage(desired: readonly DesiredState_DesiredModel[]): Promise<void> {
    const kept = new Set(models.flatMap((model) => [model.active.sha256, model.previous?.sha256]));
    // A piece of what is still desired stays, to be continued.
    for (const model of desired) {
      const verified = await verifyManifest(model, options.registration(), platform).catch(() => undefined);
      if (verified !== undefined) kept.add(verified.sha256);
    }
    for (const sha256 of await store.list()) if (!kept.has(sha256)) await store.remove(sha256);
  }

  return {
    async open() {
      await store.open();
      const recorded = decodeActivation(await store.readActivation());
      models = [];
      for (const model of recorded) {
        const isThere = async (version: VerifiedVersion) => (await store.sizeOf(version.sha256)) === version.sizeBytes;
        if (!(await isThere(model.active))) continue;
        const previous = model.previous && (await isThere(model.previous)) ? model.previous : undefined;
        models.push({ modelId: model.modelId, active: model.active, ...(previous ? { previous } : {}) });
      }
    },
    async apply(desired, signal) {
      await removeOthers(desired);
      for (const model of desired) {
        signal.throwIfAborted();
        await applyOne(model, signal);
      }
      await collectGarbage(desired);
      const times = [...attempts.values()].map((attempt) => attempt.notBefore).filter(Number.isFinite);
      return times.length === 0 ? undefined : Math.min(...times);
    },
    installed: () => models.map(installedModel),
    observed() {
      const observed: ObservedModelState[] = models.map(({ modelId, active, previous }) => ({
        modelId,
        versionId: active.versionId,
        state: State.ACTIVE,
        failure: Failure.UNSPECIFIED,
        previousVersionId: previous?.versionId ?? "",
      }));
      for (const [modelId, { versionId, state, failure }] of attempts) {
        const active = models.find((model) => model.modelId === modelId)?.active;
        if (active?.versionId === versionId) continue;
        observed.push({ modelId, versionId, state, failure, previousVersionId: active?.versionId ?? "" });
      }
      return observed;
    },
    async read(modelId) {
      const model = models.find((candidate) => candidate.modelId === modelId);
      if (model === undefined) throw new DeviceError("STORAGE", `model ${modelId} is not active on this device`);
      const { sha256, sizeBytes } = model.active;
      const bytes = new Uint8Array(sizeBytes);
      const digest = platform.sha256();
      let at = 0;
      for await (const piece of store.read(sha256)) {
        if (at + piece.length > sizeBytes) break;
        bytes.set(piece, at);
        at += piece.length;
      }
      digest.update(bytes);
      const found = toHex(await digest.digest());
      if (found !== sha256) throw new DeviceError("ARTIFACT_DIGEST", `the stored bytes of ${modelId} were changed`);
      return bytes;
    },
    close: () => store.close(),
  };
}

/** The mesh does not want the version any more that is being fetched. */
class Superseded extends DeviceError {
  constructor() {
    super("DOWNLOAD", "the version is not desired any more");
  }
}

/** What is offered, without what differs each time it is said. */
function offerOf(model: DesiredState_DesiredModel): string {
  return JSON.stringify([model.versionId, model.keyId, Array.from(model.manifest), Array.from(model.signature)]);
}

/** Whether trying the same offer again cannot help. */
function isLasting(kind: DeviceErrorKind): boolean {
  return ["MANIFEST_SIGNATURE", "MANIFEST_KEY_UNKNOWN", "MANIFEST_MISMATCH", "ARTIFACT_TOO_LARGE", "LOAD"].includes(
    kind,
  );
}

function failureOf(kind: DeviceErrorKind): Failure {
  switch (kind) {
    case "MANIFEST_SIGNATURE":
    case "MANIFEST_KEY_UNKNOWN":
    case "MANIFEST_MISMATCH":
      return Failure.SIGNATURE;
    case "ARTIFACT_DIGEST":
    case "ARTIFACT_SIZE":
      return Failure.DIGEST;
    case "STORAGE":
    case "ARTIFACT_TOO_LARGE":
      return Failure.STORAGE;
    case "LOAD":
      return Failure.LOAD;
    default:
      return Failure.DOWNLOAD;
  }
}
