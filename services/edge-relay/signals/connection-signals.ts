import type { Server, Socket } from "node:net";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type ConnectionObserver, type ObservedConnection, observedOf } from "@octomesh/mesh/listen";
import type { HttpRequest } from "@octomesh/mesh/service";
import {
  type ConnectionTimingSchema,
  ConnectionTiming_Degradation as Degradation,
} from "@octomesh/proto/octomesh/edge/v1/connection_pb";
import type { Logger } from "pino";
import { parseClientHello } from "./client-hello.ts";
import { fileDescriptorOf } from "./file-descriptor.ts";
import { ja4Of } from "./ja4.ts";
import { errorNumbers, type Libc, type LibcResult, openLibc } from "./libc.ts";
import { parseSyn, type SynInit } from "./parse-syn.ts";
import { saveSyns, takeSavedSyn } from "./saved-syn.ts";
import { readTcpInfo } from "./tcp-info.ts";

/** Watches the connections of a listener, for its `observe` option, and says what was seen of a request's. */
export interface ConnectionSignals extends ConnectionObserver {
  /** Why the kernel cannot be asked; undefined where it can. Handshakes are watched either way. */
  readonly degradation: Degradation | undefined;
  /**
   * What is known of a request's connection: the kernel's numbers as they are now, the handshake's as they were.
   * Zero, and absent, where unknown or where the connection is closed or unwatched. Whether a proxy ends the
   * browser's connection is for the caller to know, who then sets BEHIND_PROXY.
   */
  timingOf(request: HttpRequest): MessageInitShape<typeof ConnectionTimingSchema>;
}

/** What signals are made of. The clock, in nanoseconds, and the C library are the process's own by default. */
export interface ConnectionSignalsOptions {
  readonly log: Logger;
  readonly now?: () => bigint;
  readonly libc?: LibcResult;
}

/**
 * Opens the signals of true TCP connections. Where the kernel cannot be asked it says so once in the log, with the
 * reason, and goes on without.
 *
 * Times of a handshake are taken where Node's event loop sees them. The kernel accepts a connection earlier, when the
 * handshake of TCP ends: `helloDelayUs` is therefore short by what the loop was late at the accept, and never long by
 * it.
 */
export function createConnectionSignals(options: ConnectionSignalsOptions): ConnectionSignals {
  const { log, now = process.hrtime.bigint } = options;
  const opened = probe(options.libc ?? openLibc());
  const { libc, degradation } = opened;
  if (degradation !== undefined) {
    log.warn({ reason: Degradation[degradation], problem: opened.problem }, "connections are not timed by the kernel");
  }
  const records = new WeakMap<ObservedConnection, ConnectionRecord>();
  return {
    degradation,
    listening(server: Server) {
      const fd = fileDescriptorOf(server);
      if (libc === undefined || fd === undefined) return;
      if (!saveSyns(libc, fd)) log.warn({ errno: libc.errno() }, "the kernel keeps no SYNs: signals go without");
    },
    accepted(socket: Socket) {
      const record = createRecord(socket, libc, now);
      records.set(record.observed, record);
      return record.observed;
    },
    timingOf(request) {
      const observed = observedOf(request);
      const timing = observed === undefined ? {} : (records.get(observed)?.timing() ?? {});
      return {
        ...timing,
        protocol: request.httpVersionMajor === 2 ? "h2" : "http/1.1",
        degradation: degradation ?? Degradation.UNSPECIFIED,
      };
    },
  };
}

interface ConnectionRecord {
  readonly observed: ObservedConnection;
  timing(): MessageInitShape<typeof ConnectionTimingSchema>;
}

function createRecord(socket: Socket, libc: Libc | undefined, now: () => bigint): ConnectionRecord {
  const acceptedAt = now();
  const acceptRttUs = readKernel(socket, libc)?.rttUs ?? 0;
  const syn = readSyn(socket, libc);
  let began: bigint | undefined;
  let helloDelayUs = 0n;
  let tlsHandshakeUs = 0n;
  let clientHello: { ja4: string; length: number } | undefined;
  let closed = false;
  return {
    observed: {
      began() {
        began = now();
      },
      firstBytes(bytes) {
        const hello = parseClientHello(bytes);
        if (hello === undefined) return;
        clientHello = { ja4: ja4Of(hello), length: hello.length };
        helloDelayUs = microseconds((began ?? now()) - acceptedAt);
      },
      secured() {
        if (began !== undefined) tlsHandshakeUs = microseconds(now() - began);
      },
      closed() {
        closed = true;
      },
    },
    timing() {
      const kernel = closed ? undefined : readKernel(socket, libc);
      return {
        minRttUs: BigInt(kernel?.minRttUs ?? 0),
        rttUs: BigInt(kernel?.rttUs ?? 0),
        rttVarUs: BigInt(kernel?.rttVarUs ?? 0),
        mss: kernel?.sendMss ?? 0,
        pathMtu: kernel?.pathMtu ?? 0,
        acceptRttUs: BigInt(acceptRttUs),
        helloDelayUs,
        tlsHandshakeUs,
        syn,
        clientHello,
      };
    },
  };
}

function readKernel(socket: Socket, libc: Libc | undefined) {
  const fd = libc === undefined ? undefined : fileDescriptorOf(socket);
  return libc === undefined || fd === undefined ? undefined : readTcpInfo(libc, fd);
}

function readSyn(socket: Socket, libc: Libc | undefined): SynInit | undefined {
  const fd = libc === undefined ? undefined : fileDescriptorOf(socket);
  const packet = libc === undefined || fd === undefined ? undefined : takeSavedSyn(libc, fd);
  return packet === undefined ? undefined : parseSyn(packet);
}

const AF_INET = 2;
const SOCK_STREAM = 1;

/** Asks about a socket of our own, so that a sandbox which forbids asking is known before the first connection. */
function probe(opened: LibcResult): LibcResult {
  const { libc } = opened;
  if (libc === undefined) return opened;
  const fd = libc.socket(AF_INET, SOCK_STREAM, 0);
  const allowed = fd >= 0 && readTcpInfo(libc, fd) !== undefined;
  const errno = allowed ? 0 : libc.errno();
  if (fd >= 0) libc.close(fd);
  if (allowed) return opened;
  const refused = errno === errorNumbers.EPERM || errno === errorNumbers.EACCES;
  return {
    degradation: refused ? Degradation.NO_PERMISSION : Degradation.UNAVAILABLE,
    problem: `the kernel does not tell TCP_INFO: error ${errno}`,
  };
}

function microseconds(nanoseconds: bigint): bigint {
  return nanoseconds > 0n ? nanoseconds / 1000n : 0n;
}
