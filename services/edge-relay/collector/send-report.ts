import { createBudget } from "./budget.ts";
import { OctetError } from "./octet-error.ts";

/** What the edge answers to a report that it took. A page must not decide anything by it: the browser's user can. */
export interface Answer {
  readonly ok: true;
  /** Only of an edge that was set up to show it, for demonstrations. */
  readonly verdict?: { readonly country?: string; readonly confidence: number; readonly alarm: string };
}

const answerLimitMs = 10_000;
const codePattern = /^[a-z0-9_]{1,64}$/;

/**
 * Sends a report and resolves to the edge's answer. Rejects with `aborted` when the signal fires, with `network` if there
 * is no answer within 10 s or it is not an edge's, and with the edge's own code if it refuses.
 */
export async function sendReport(apiUrl: string, body: string, signal?: AbortSignal): Promise<Answer> {
  const url = `${apiUrl}/v1/signals`;
  const isSameOrigin = new URL(url).origin === location.origin;
  const budget = createBudget(answerLimitMs, signal);
  try {
    const response = await fetch(url, {
      method: "POST",
      // text/plain spares the preflight, which is a round trip and which the edge does not need.
      headers: { "content-type": isSameOrigin ? "application/json" : "text/plain;charset=UTF-8" },
      body,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      keepalive: true,
      signal: budget.signal,
    });
    return readAnswer(response.status, await response.text());
  } catch (error) {
    if (error instanceof OctetError) throw error;
    if (budget.ended === "aborted") throw new OctetError("aborted", "octet: aborted by the page");
    if (budget.ended === "timeout") throw new OctetError("network", "octet: the edge did not answer within 10 s");
    throw new OctetError("network", "octet: the edge is out of reach, or does not allow this page's origin");
  } finally {
    budget.close();
  }
}

/** Reads the edge's answer. Throws its code where it refused, and `network` where this is no answer of an edge. */
export function readAnswer(status: number, text: string): Answer {
  let body: { ok?: unknown; error?: unknown } | null = null;
  try {
    body = Object(JSON.parse(text)) as { ok?: unknown; error?: unknown };
  } catch {
    // Some proxy's page.
  }
  if (status === 200 && body?.ok === true) return body as Answer;
  const code = body?.error;
  if (typeof code === "string" && codePattern.test(code)) {
    throw new OctetError(code, `octet: the edge refused the report: ${code}`, status);
  }
  throw new OctetError("network", `octet: what answered is no edge (HTTP ${status})`, status);
}
