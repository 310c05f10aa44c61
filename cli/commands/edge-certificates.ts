import { type EdgeCertificate, EdgeCertificateSchema } from "@octomesh/proto/octomesh/identity/v1/edge_certificate_pb";
import type { Clients } from "@octomesh/sdk";
import { checkId } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError, usageError } from "../command-error.ts";
import { credentialState } from "../credential-state.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { explainLicenseRefusal } from "../license-refusal.ts";
import { readSmallFile } from "../read-small-file.ts";
import { readLicenseNames } from "../resource-names.ts";
import { certifies, createSigningRequest } from "../signing-request.ts";
import { stageFiles } from "../staged-files.ts";
import { createUndoList } from "../undo-list.ts";

/** `octomil edge-certificates …`: the client certificates by which edges prove themselves. */
export const edgeCertificateCommands: readonly CommandSpec[] = [
  {
    name: "issue",
    summary: "Make an edge's key and have its client certificate issued, good for 90 days",
    details:
      "The private key (ECDSA P-256) is made on this machine and stays here: --key-out is a new file of mode 0600, for " +
      "the edge's EDGE_CLIENT_KEY_FILE; --out holds the chain, for EDGE_CLIENT_CERT_FILE. With --csr the key is yours: " +
      "a signing request in PEM for an ECDSA P-256 or P-384, or Ed25519 key.",
    options: [
      ["--license <id>", "the licence that the certificate belongs to, lic_…"],
      ["--out <file>", "where the certificate chain is written"],
      ["--key-out <file>", "where the new private key is written"],
      ["--csr <file>", "certify the key of this signing request instead of making one"],
      ["--force", "replace files that are there"],
    ],
    examples: [
      "edge-certificates issue --license lic_… --out edge.crt --key-out edge.key",
      "edge-certificates issue --license lic_… --csr edge.csr --out edge.crt",
    ],
    run: issue,
  },
  {
    name: "list",
    summary: "List the client certificates of edges",
    options: [
      ["--license <id>", "only those of this licence, lic_…"],
      ["--limit <number>", "how many to show, or all; 200 if left out"],
    ],
    examples: ["edge-certificates list", "edge-certificates list --license lic_… --json"],
    run: list,
  },
  {
    name: "revoke",
    summary: "Revoke an edge's client certificate: no edge is taken for its holder any more",
    args: [["<id>", "id of the certificate, ecr_…"]],
    examples: ["edge-certificates revoke ecr_…"],
    run: revoke,
  },
];

async function issue(context: CommandContext, input: CommandInput): Promise<void> {
  const licenseKeyId = checkId("lic", input.required("license"));
  const out = input.required("out");
  const csrFile = input.text("csr");
  if (csrFile !== undefined && input.text("key-out") !== undefined) {
    throw usageError(
      "--csr and --key-out exclude each other",
      "There is no private key to write: it is yours already.",
    );
  }
  const keyOut = csrFile === undefined ? input.required("key-out") : undefined;
  const request: { csrPem: string; keyPem?: string } =
    csrFile === undefined ? await createSigningRequest() : { csrPem: await readRequest(csrFile) };
  const files = await stageFiles(keyOut === undefined ? [out] : [keyOut, out], { force: input.flag("force") });
  const undo = createUndoList(context.output);
  let certificate: EdgeCertificate;
  try {
    if (keyOut !== undefined) await files.write(keyOut, request.keyPem ?? "");
    const { clients } = await context.connect();
    certificate = await issueEdgeCertificate(clients, licenseKeyId, request.csrPem);
    const { id } = certificate;
    undo.did(`edge-certificates revoke ${id}`, () => clients.edgeCredentials.revokeEdgeCertificate({ id }));
    if (request.keyPem !== undefined) checkCertificate(certificate, request.keyPem);
    await files.write(out, certificate.certificatePem);
    context.terminal.signal.throwIfAborted();
    await files.commit();
  } catch (error) {
    await files.discard();
    await undo.undo();
    throw error;
  }
  context.output.show({
    schema: EdgeCertificateSchema,
    item: certificate,
    headline: `Certificate ${certificate.id} is issued.`,
    facts: [...factsOf(certificate), ["written to", out]],
  });
  if (keyOut !== undefined) context.output.note(`The private key is in ${keyOut}: keep it there, and nowhere else.`);
}

/** Has a signing request certified for a licence. Refusals that concern the licence say so. */
export async function issueEdgeCertificate(
  clients: Pick<Clients, "edgeCredentials">,
  licenseKeyId: string,
  csrPem: string,
): Promise<EdgeCertificate> {
  try {
    return await clients.edgeCredentials.issueEdgeCertificate({ licenseKeyId, csrPem });
  } catch (error) {
    throw explainLicenseRefusal(error, "edge-certificates");
  }
}

/** Makes sure that a certificate is that of the key it was asked for: an edge with another could not start. */
export function checkCertificate(certificate: EdgeCertificate, keyPem: string): void {
  if (certifies(certificate.certificatePem, keyPem)) return;
  throw new CommandError(`the mesh answered a certificate (${certificate.id}) that does not fit the key`);
}

async function readRequest(path: string): Promise<string> {
  const text = (await readSmallFile(path, 8192)).trim();
  if (/^-----BEGIN (NEW )?CERTIFICATE REQUEST-----\s[^-]+-----END (NEW )?CERTIFICATE REQUEST-----$/.test(text)) {
    return `${text}\n`;
  }
  throw usageError(
    `${path} is no certificate signing request in PEM`,
    'Make one: openssl req -new -key edge.key -subj "/" -out edge.csr.',
  );
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const license = input.text("license");
  const licenseKeyId = license === undefined ? "" : checkId("lic", license);
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.edgeCredentials.listEdgeCertificates({ pageSize, pageToken, licenseKeyId });
    return { items: answer.edgeCertificates, nextPageToken: answer.nextPageToken };
  });
  const forPeople = !context.output.json && !context.output.quiet;
  const nameOf = await readLicenseNames(clients, forPeople ? items.map((item) => item.licenseKeyId) : []);
  const now = context.terminal.now();
  context.output.list({
    schema: EdgeCertificateSchema,
    key: "edge_certificates",
    items,
    truncated,
    empty: "No certificates yet.",
    columns: [
      { title: "ID", value: (certificate) => certificate.id },
      { title: "LICENCE", value: (certificate) => nameOf(certificate.licenseKeyId) },
      { title: "STATE", value: (certificate) => credentialState(certificate, now) },
      { title: "EXPIRES", value: (certificate) => formatAge(certificate.expireTime, now, "never") },
      { title: "CREATED", value: (certificate) => formatAge(certificate.createTime, now, "") },
    ],
  });
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("ecr", input.args[0] ?? "");
  const { clients } = await context.connect();
  const certificate = await clients.edgeCredentials.revokeEdgeCertificate({ id });
  context.output.show({
    schema: EdgeCertificateSchema,
    item: certificate,
    headline: `Certificate ${certificate.id} is revoked; no edge is taken for its holder any more.`,
    facts: factsOf(certificate),
  });
}

function factsOf(certificate: EdgeCertificate): [string, string][] {
  return [
    ["id", certificate.id],
    ["licence", certificate.licenseKeyId],
    ["identity", certificate.spiffeId],
    ["created", formatTime(certificate.createTime)],
    ["expires", formatTime(certificate.expireTime)],
    ["revoked", formatTime(certificate.revokeTime)],
  ];
}
