// What both entry points export.
export type { BackoffOptions } from "./backoff.ts";
export { type Clients, type ClientsOptions, publicServices, type ServiceClients } from "./clients.ts";
export { apiKey, bearer, type Credential, type RefusedCredential, readToken } from "./credential.ts";
export type { VerifiedVersion } from "./device/activation.ts";
export type { ArtifactStore, PartialArtifact } from "./device/artifact-store.ts";
export type {
  AboutDevice,
  DeviceClient,
  DeviceClientOptions,
  DeviceClientState,
  DeviceEvents,
  DeviceStats,
  DownloadDetail,
  TelemetryReport,
} from "./device/device-client.ts";
export { DeviceError, type DeviceErrorKind, isDeviceError } from "./device/device-error.ts";
export {
  type DeviceRecord,
  type DeviceRegistrationRecord,
  type DeviceStore,
  decodeRecord,
  encodeRecord,
} from "./device/device-store.ts";
export type { FollowMode } from "./device/follow-desired-state.ts";
export { type ArtifactCache, cacheStorage, memoryArtifacts } from "./device/memory-artifacts.ts";
export { memoryStore } from "./device/memory-store.ts";
export type { InstalledModel } from "./device/model-keeper.ts";
export { memoryTelemetry, type TelemetryStorage } from "./device/telemetry-storage.ts";
export type { HttpClient, HttpRequest, HttpResponse, ProtocolOptions } from "./platform/platform.ts";
export { factsOf, isReason, parseRetryAfter, type ReasonName, reasonOf, retryAfterMsOf } from "./reason.ts";
export type { ResilienceOptions, RetryEvent, RetryOptions } from "./resilient-transport.ts";
export {
  memorySession,
  type SessionOptions,
  type SessionState,
  type SessionStore,
  session,
  sessionState,
} from "./session.ts";
export {
  type DecisionReason,
  decide,
  type VerdictAction,
  type VerdictDecision,
  type VerdictPolicy,
} from "./verdict/decide.ts";
export { readVerdict, type VerdictReading } from "./verdict/read-verdict.ts";
