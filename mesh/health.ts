import type { ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from "@octomesh/proto/grpc/health/v1/health_pb";
import { fail, Reason } from "./errors.ts";

/** Whether a service is able to answer, told to whoever asks by grpc.health.v1 and by HTTP. */
export interface HealthState {
  /** `starting`, `serving`, or `draining`. */
  readonly state: "starting" | "serving" | "draining";
  set(state: HealthState["state"]): void;
  /** Adds a condition for readiness; `undefined` from it means all is well, a string says what is not. */
  addCheck(name: string, check: () => Promise<string | undefined>): void;
  /** Why the service is not ready: nothing if it is. */
  problems(): Promise<Record<string, string>>;
  onChange(callback: () => void): () => void;
}

const checkTimeoutMs = 2000;

/** Opens the health of a service, which begins as `starting`. */
export function createHealth(): HealthState {
  let state: HealthState["state"] = "starting";
  const checks = new Map<string, () => Promise<string | undefined>>();
  const callbacks = new Set<() => void>();
  return {
    get state() {
      return state;
    },
    set(next) {
      state = next;
      for (const callback of callbacks) callback();
    },
    addCheck(name, check) {
      checks.set(name, check);
    },
    async problems() {
      const problems: Record<string, string> = {};
      if (state !== "serving") problems.service = state;
      await Promise.all(
        [...checks].map(async ([name, check]) => {
          const problem = await within(check(), checkTimeoutMs);
          if (problem !== undefined) problems[name] = problem;
        }),
      );
      return problems;
    },
    onChange(callback) {
      callbacks.add(callback);
      return () => callbacks.delete(callback);
    },
  };
}

async function within(work: Promise<string | undefined>, ms: number): Promise<string | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve("no answer in time"), ms);
  });
  try {
    return await Promise.race([work, late]);
  } catch {
    return "failed";
  } finally {
    clearTimeout(timer);
  }
}

/** Serves grpc.health.v1.Health for the whole server ("") and for each named rpc service. */
export function healthRoutes(router: ConnectRouter, health: HealthState, serviceTypeNames: readonly string[]): void {
  const names = new Set(["", ...serviceTypeNames]);
  const status = (): ServingStatus => (health.state === "serving" ? ServingStatus.SERVING : ServingStatus.NOT_SERVING);
  router.service(Health, {
    check(request) {
      if (!names.has(request.service)) {
        throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such service here", {});
      }
      return { status: status() };
    },
    async *watch(request, context) {
      const known = names.has(request.service);
      let last: ServingStatus | undefined;
      while (!context.signal.aborted) {
        const now = known ? status() : ServingStatus.SERVICE_UNKNOWN;
        if (now !== last) yield { status: now };
        last = now;
        // A watch that went on would hold up the drain.
        if (health.state === "draining") return;
        await new Promise<void>((resolve) => {
          const stop = health.onChange(done);
          context.signal.addEventListener("abort", done, { once: true });
          function done(): void {
            stop();
            context.signal.removeEventListener("abort", done);
            resolve();
          }
        });
      }
    },
  });
}
