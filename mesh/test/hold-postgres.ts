// Runs an embedded PostgreSQL until it is killed: the process that `embedded-postgres.test.ts` kills.
import pino from "pino";
import { startEmbeddedPostgres } from "../embedded-postgres.ts";

const [, , stateDir = ""] = process.argv;
const server = await startEmbeddedPostgres({ stateDir, log: pino({ level: "silent" }) });
process.stdout.write(`${JSON.stringify({ pid: server.pid, port: server.port })}\n`);
setInterval(() => {}, 60_000);
