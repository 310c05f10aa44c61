import { type Agent, request } from "node:http";

/** Posts a report to an edge on this machine; answers the HTTP status. */
export function postReport(url: string, body: string, agent: Agent): Promise<number> {
  return new Promise((resolve, reject) => {
    const outgoing = request(url, { method: "POST", agent, headers: { "content-type": "application/json" } });
    outgoing.on("error", reject);
    outgoing.on("response", (response) => {
      response.resume();
      response.on("end", () => resolve(response.statusCode ?? 0));
    });
    outgoing.end(body);
  });
}
