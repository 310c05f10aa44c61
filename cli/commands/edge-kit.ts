import { X509Certificate } from "node:crypto";
import { basename, resolve } from "node:path";
import { clone } from "@bufbuild/protobuf";
import { type EdgeCertificate, EdgeCertificateSchema } from "@octomesh/proto/octomesh/identity/v1/edge_certificate_pb";
import { type EdgeSigningKey, EdgeSigningKeySchema } from "@octomesh/proto/octomesh/identity/v1/edge_signing_key_pb";
import {
  LicenseKey_ClientCertificateMode as ClientCertificateMode,
  type LicenseKey,
  LicenseKeySchema,
} from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError, usageError } from "../command-error.ts";
import type { Connection } from "../connection.ts";
import { checkKitFolder, checkOrigins, checkVerdictUrl, edgeEnvironment, kitFiles } from "../edge-environment.ts";
import { createEdgeKeyPair } from "../edge-key-pair.ts";
import { formatTime } from "../format-time.ts";
import { toDocument } from "../output.ts";
import { readSmallFile } from "../read-small-file.ts";
import { createSigningRequest } from "../signing-request.ts";
import { type StagedFiles, stageFolder } from "../staged-files.ts";
import { createUndoList, type UndoList } from "../undo-list.ts";
import { checkCertificate, issueEdgeCertificate } from "./edge-certificates.ts";
import { registerEdgeKey } from "./edge-keys.ts";
import { licenseOptions, parseLicense } from "./licenses.ts";

/** The port on which the verdict service listens where its configuration does not say. */
const verdictPort = 7206;
const maxAuthorityBytes = 65_536;

/** `octomil edge kit`: all that a standalone edge proves itself with, in one folder. */
export const edgeCommands: readonly CommandSpec[] = [
  {
    name: "kit",
    summary: "Write a folder with all that a standalone edge needs: licence, certificate, keys and environment",
    details:
      "Creates a licence, has a client certificate issued (not with --mtls off), and registers a signing key. Private keys " +
      "are made on this machine. The folder has mode 0700 and its files 0600: license, signing-key, edge.crt, edge.key, " +
      "ca.pem with --ca, and edge.env, which names them. If a step fails, what was made before it is revoked.\n\n" +
      "With --force the files of a kit that is there are replaced; the credentials in them stay good until you revoke them.",
    options: [
      ["--out <folder>", "where the kit is written: a new folder, or an empty one"],
      ["--license-name <name>", "name of the licence for people; the folder's if left out"],
      [
        "--verdict-url <url>",
        `where the edge reaches the verdict service; port ${verdictPort} of the mesh if left out`,
      ],
      ["--ca <file>", "certificates, in PEM, that the verdict service's own is checked by, where it is no public one"],
      ["--origin <origin>...", "origin of pages that may report; may be repeated"],
      ["--path <folder>", "where the folder will stand on the edge's machine; where it is written if left out"],
      ...licenseOptions,
      ["--force", "replace the files of a kit that is there"],
    ],
    examples: [
      'edge kit --license-name "edge Frankfurt" --verdict-url https://mesh.example.com:7206 --out edge-kit',
      "edge kit --out edge-kit --origin https://shop.example --path /etc/octet",
      "edge kit --out staging --env test --mtls request --ca ca.pem --json",
    ],
    run: makeKit,
  },
];

interface Kit {
  license: LicenseKey;
  certificate: EdgeCertificate | undefined;
  signingKey: EdgeSigningKey;
}

async function makeKit(context: CommandContext, input: CommandInput): Promise<void> {
  const out = input.required("out");
  const folder = resolve(out);
  const name = input.text("license-name") ?? basename(folder);
  if (name === "") throw usageError("--license-name is missing", "The folder has no name to take for it.");
  const license = { name, ...parseLicense(input) };
  const origins = checkOrigins(input.texts("origin"));
  const path = checkKitFolder(input.text("path") ?? folder);
  const givenUrl = input.text("verdict-url");
  const verdictUrl = givenUrl === undefined ? undefined : checkVerdictUrl(givenUrl);
  const authorityFile = input.text("ca");
  const authority = authorityFile === undefined ? undefined : await readAuthority(authorityFile);
  const hasCertificate = license.clientCertificate !== ClientCertificateMode.OFF;
  const names = [
    kitFiles.license,
    kitFiles.signingKey,
    ...(hasCertificate ? [kitFiles.certificate, kitFiles.certificateKey] : []),
    ...(authority === undefined ? [] : [kitFiles.authority]),
    kitFiles.environment,
  ];

  const files = await stageFolder(folder, names, { force: input.flag("force") });
  const undo = createUndoList(context.output);
  let kit: Kit;
  try {
    const connection = await context.connect();
    kit = await createCredentials(context, connection, { license, hasCertificate, files, undo });
    if (authority !== undefined) await files.write(kitFiles.authority, authority);
    await files.write(
      kitFiles.environment,
      edgeEnvironment({
        folder: path,
        verdictUrl: verdictUrl ?? `https://${new URL(connection.url).hostname}:${verdictPort}`,
        signingKeyId: kit.signingKey.id,
        origins,
        hasCertificate,
        hasAuthority: authority !== undefined,
      }),
    );
    context.terminal.signal.throwIfAborted();
    await files.commit();
  } catch (error) {
    await files.discard();
    await undo.undo();
    throw error;
  }
  tell(context, kit, folder, names);
  const missing = origins.length === 0 ? "ALLOWED_ORIGIN, EDGE_TLS_CERT_FILE" : "EDGE_TLS_CERT_FILE";
  context.output.note(
    `Still to be set in ${kitFiles.environment}: ${missing} and EDGE_TLS_KEY_FILE; it says what for.`,
  );
}

async function createCredentials(
  context: CommandContext,
  { clients }: Connection,
  plan: {
    license: ReturnType<typeof parseLicense> & { name: string };
    hasCertificate: boolean;
    files: StagedFiles;
    undo: UndoList;
  },
): Promise<Kit> {
  const { edgeCredentials } = clients;
  const { files, undo } = plan;
  // Ctrl-C ends the command between two calls, never within one: what was made is known then, and taken back.
  const goOn = () => context.terminal.signal.throwIfAborted();
  const keyPair = createEdgeKeyPair();
  await files.write(kitFiles.signingKey, `${keyPair.seed}\n`);
  const request = await createSigningRequest();
  if (plan.hasCertificate) await files.write(kitFiles.certificateKey, request.keyPem);

  goOn();
  const license = await edgeCredentials.createLicenseKey(plan.license);
  undo.did(`licenses revoke ${license.id}`, () => edgeCredentials.revokeLicenseKey({ id: license.id }));
  if (license.license === "") {
    throw new CommandError("the licence was created, but the answer that showed it was lost", {
      hint: "Repeat the command: it makes another one.",
    });
  }
  await files.write(kitFiles.license, `${license.license}\n`);

  let certificate: EdgeCertificate | undefined;
  if (plan.hasCertificate) {
    goOn();
    const issued = await issueEdgeCertificate(clients, license.id, request.csrPem);
    undo.did(`edge-certificates revoke ${issued.id}`, () => edgeCredentials.revokeEdgeCertificate({ id: issued.id }));
    checkCertificate(issued, request.keyPem);
    await files.write(kitFiles.certificate, issued.certificatePem);
    certificate = issued;
  }

  goOn();
  const signingKey = await registerEdgeKey(clients, license.id, keyPair.publicKey);
  undo.did(`edge-keys revoke ${signingKey.id}`, () => edgeCredentials.revokeEdgeSigningKey({ id: signingKey.id }));
  return { license, certificate, signingKey };
}

function tell(context: CommandContext, kit: Kit, folder: string, names: readonly string[]): void {
  const { license, certificate, signingKey } = kit;
  // The licence is in its file, and shown nowhere else.
  const shown = clone(LicenseKeySchema, license);
  shown.license = "";
  const document = {
    folder,
    files: [...names],
    license_key: toDocument(LicenseKeySchema, shown),
    edge_certificate: certificate === undefined ? null : toDocument(EdgeCertificateSchema, certificate),
    edge_signing_key: toDocument(EdgeSigningKeySchema, signingKey),
  };
  const { paint } = context.output;
  const facts: [string, string][] = [
    ["licence", `${license.id}, ${license.name}, good until ${formatTime(license.expireTime, "it is revoked")}`],
    [
      "certificate",
      certificate === undefined ? "" : `${certificate.id}, good until ${formatTime(certificate.expireTime)}`,
    ],
    ["signing key", signingKey.id],
    ["files", names.join(", ")],
  ];
  const rows = facts
    .filter(([, value]) => value !== "")
    .map(([label, value]) => `  ${paint.dim(label.padEnd(11))}  ${value}`);
  const text = [paint.green(`The edge's kit is in ${folder}.`), ...rows].join("\n");
  context.output.result(document, text, folder);
}

async function readAuthority(path: string): Promise<string> {
  const text = await readSmallFile(path, maxAuthorityBytes);
  try {
    new X509Certificate(text);
  } catch {
    throw usageError(`${path} holds no certificate in PEM`);
  }
  if (text.includes("PRIVATE KEY-----")) {
    throw usageError(
      `${path} holds a private key too`,
      "Give the certificates alone: an edge needs no authority's key.",
    );
  }
  return text;
}
