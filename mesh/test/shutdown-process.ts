/** A process that a test ends by signal. Its argument says how its parts behave; it writes a line for all that happens. */
import { createLogger } from "../log.ts";
import { createShutdown, handleSignals } from "../shutdown.ts";

const log = createLogger({ service: "identity", level: "fatal" });
const shutdown = createShutdown(log, 60_000);
handleSignals(shutdown, log);
const keepAlive = setInterval(() => undefined, 1000);
shutdown.signal.addEventListener("abort", () => console.log("aborted"));
shutdown.add("first", () => {
  clearInterval(keepAlive);
  console.log("first ended");
});
shutdown.add("second", async () => {
  console.log("second ending");
  if (process.argv[2] === "hang") await new Promise(() => undefined);
  if (process.argv[2] === "throw-late") {
    setTimeout(() => {
      throw new Error("late");
    });
    await new Promise((resolve) => process.once("uncaughtException", resolve));
  }
  console.log("second ended");
});
console.log("ready");
if (process.argv[2] === "throw") {
  setTimeout(() => {
    throw new Error("thrown");
  });
}
if (process.argv[2] === "reject") void Promise.reject(new Error("rejected"));
