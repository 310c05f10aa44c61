import { posix } from "node:path";
import { usageError } from "./command-error.ts";

/** Names of the files of an edge's kit. */
export const kitFiles = {
  license: "license",
  signingKey: "signing-key",
  certificate: "edge.crt",
  certificateKey: "edge.key",
  authority: "ca.pem",
  environment: "edge.env",
} as const;

/** What the environment of an edge says. */
export interface EdgeEnvironment {
  /** The folder in which the edge finds the files of its kit. */
  folder: string;
  verdictUrl: string;
  /** `esk_…`. */
  signingKeyId: string;
  /** Origins of the pages; empty where they are still to be filled in. */
  origins: readonly string[];
  /** Whether the kit has a client certificate. */
  hasCertificate: boolean;
  /** Whether the kit has the certificate of the authority that the verdict service's own is from. */
  hasAuthority: boolean;
}

/**
 * Writes the environment of a standalone edge: lines that systemd (`EnvironmentFile=`), `docker --env-file` and a shell
 * read alike. Secrets are named by their files, so that they are in no process's environment.
 */
export function edgeEnvironment(facts: EdgeEnvironment): string {
  const at = (file: string) => posix.join(facts.folder, file);
  const lines = [
    "# Environment of a standalone edge of Octomesh. Every variable: services/edge-relay/README.md.",
    `OCTET_URL=${facts.verdictUrl}`,
    `LICENSE_FILE=${at(kitFiles.license)}`,
    `EDGE_SIGNING_KEY_FILE=${at(kitFiles.signingKey)}`,
    `EDGE_SIGNING_KEY_ID=${facts.signingKeyId}`,
  ];
  if (facts.hasCertificate) {
    lines.push(`EDGE_CLIENT_CERT_FILE=${at(kitFiles.certificate)}`);
    lines.push(`EDGE_CLIENT_KEY_FILE=${at(kitFiles.certificateKey)}`);
  }
  if (facts.hasAuthority) lines.push(`OCTET_CA_FILE=${at(kitFiles.authority)}`);
  if (facts.origins.length > 0) lines.push(`ALLOWED_ORIGIN=${facts.origins.join(",")}`);
  else {
    lines.push("# The origins of your pages, separated by commas: the edge does not start without them.");
    lines.push("#ALLOWED_ORIGIN=https://shop.example");
  }
  lines.push(
    "# The edge's own certificate and key, PEM, for the name that browsers call: it does not start without them, or its",
    "# EDGE_HOST on loopback.",
    "#PORT=443",
    "#EDGE_TLS_CERT_FILE=",
    "#EDGE_TLS_KEY_FILE=",
  );
  return `${lines.join("\n")}\n`;
}

/**
 * Checks the folder in which the edge is to find its kit. Only what systemd, Docker and a shell read alike may be in its
 * name. Throws a usage error.
 */
export function checkKitFolder(folder: string): string {
  if (/^\/[\w./@+-]*$/.test(folder) && folder.length <= 1024) return folder;
  throw usageError(
    `"${folder.slice(0, 100)}" cannot stand in edge.env`,
    "--path names the folder on the edge's machine: absolute, of letters, digits and ._/@+- alone.",
  );
}

/** Checks the URL at which an edge reaches the verdict service. Throws a usage error. */
export function checkVerdictUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isLoopback = url !== undefined && /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/.test(url.hostname);
  if (url === undefined || (url.protocol !== "https:" && !(url.protocol === "http:" && isLoopback))) {
    throw usageError(
      `"${text.slice(0, 100)}" is not the URL of a verdict service`,
      "Give one such as https://mesh.example.com:7206.",
    );
  }
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "" || url.pathname !== "/") {
    throw usageError("the URL of the verdict service is an origin: no path, query or password", `Give ${url.origin}.`);
  }
  return url.origin;
}

/** Checks the origins of pages that may report: origins, or `*` alone. Throws a usage error. */
export function checkOrigins(origins: readonly string[]): readonly string[] {
  if (origins.length === 1 && origins[0] === "*") return origins;
  for (const origin of origins) {
    if (/^https?:/.test(origin) && URL.canParse(origin) && new URL(origin).origin === origin) continue;
    throw usageError(
      `"${origin.slice(0, 100)}" is not the origin of a page`,
      "Give one such as https://shop.example: lower case, without a slash at the end; or * alone for every page.",
    );
  }
  return [...new Set(origins)];
}
