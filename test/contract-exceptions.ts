/**
 * The closed lists of `contract.test.ts`: everything that the rules of the contract let pass, each with its reason. A
 * method or field that is not here keeps the rule, and an entry that no longer names an exception fails the test.
 */

/** Methods that change something and leave no audit record of their own, with the exemption that their policy states. */
export const auditExemptions: Readonly<Record<string, "REPORT" | "PART" | "MESH">> = {
  "ArtifactService.AppendArtifactUpload": "PART",
  "AuditService.IngestAuditEvents": "MESH",
  "CredentialService.AcknowledgeRevocations": "MESH",
  "CredentialService.ReportCredentialUse": "REPORT",
  "DeviceService.Heartbeat": "REPORT",
  "DeviceService.ReportObservedState": "REPORT",
  "EdgeService.ProvisionEdge": "PART",
  "ModelVersionService.ListManifestKeys": "MESH",
  "TelemetryService.ReportTelemetry": "REPORT",
  "TenantService.EraseTenant": "PART",
  "VerdictService.CreateVerdictSession": "REPORT",
  "VerdictService.SubmitSignals": "REPORT",
};

/** Methods that callers outside the mesh reach and that have no REST binding. */
export const withoutRest: Readonly<Record<string, string>> = {
  "DeviceService.WatchDesiredState": "a stream; REST clients poll GetDesiredState",
};

/** REST paths outside `/api/v1`. */
export const foreignPaths: Readonly<Record<string, string>> = {
  "/.well-known/jwks.json": "the place where RFC 8615 and common practice look for keys",
  "/v1/signals": "the published interface of the verdict service",
  "/v1/sessions": "the published interface of the verdict service",
  "/.well-known/verdict-jwks.json": "the place where RFC 8615 and common practice look for keys",
  "/v1/verdict/{session_ref}": "the published interface of the verdict service",
  "/v1/verdict/{session_ref}/evidence": "beside the published interface of the verdict service",
};

/** Methods that admit API keys or read tokens without demanding a scope. */
export const withoutScope: Readonly<Record<string, string>> = {
  "SessionService.GetCaller": "tells any caller who it is, and nothing else",
};

/** Methods that declare no idempotency, because a repetition of the call must fail. */
export const withoutIdempotency: Readonly<Record<string, string>> = {
  "OrganizationService.SetUpOrganization": "the set-up code is used once",
  "SessionService.AcceptInvitation": "the invitation's code is used once",
};

/** List methods without pages. */
export const withoutPages: Readonly<Record<string, string>> = {
  "ModelVersionService.ListManifestKeys": "between services only, and an organisation has at most 16 keys",
};

/** Fields whose name sounds like a secret and which hold none. */
export const notSecret: Readonly<Record<string, string>> = {};
