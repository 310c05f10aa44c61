import { execFile } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Lab, LabTool } from "./lab.ts";

/**
 * What stands between the browser and the edge: nothing, an HTTP proxy that is asked to CONNECT, a SOCKS5 proxy, a router
 * that translates addresses, or a tunnel of IP packets, whose exit translates them too.
 */
export type HidingKind = "direct" | "connect" | "socks" | "nat" | "openvpn" | "wireguard";

/** Every kind, those that hide nothing first. */
export const hidingKinds = ["direct", "nat", "connect", "socks", "openvpn", "wireguard"] as const;

/** The tools that a kind needs. */
export const toolsOf: Readonly<Record<HidingKind, readonly LabTool[]>> = {
  direct: [],
  nat: ["iptables"],
  connect: ["tinyproxy"],
  socks: ["microsocks"],
  openvpn: ["iptables", "openvpn", "openssl"],
  wireguard: ["iptables", "wireguard-go", "wg"],
};

/** Where the intermediary stands: namespaces by their names, and addresses. */
export interface Stand {
  readonly client: { readonly namespace: string; readonly address: string };
  /** `address` is towards the client, `device` the one towards the edge. */
  readonly middle: { readonly namespace: string; readonly address: string; readonly device: string };
  /** The edge's network, CIDR. */
  readonly edgeNetwork: string;
  /** Holds configuration and keys; whoever made it removes it. */
  readonly folder: string;
}

/**
 * Starts the intermediary, and gives the URL of the proxy that the browser must be told of. Does not wait for tunnels and
 * proxies to come up: whoever uses the way tries until it is there.
 */
export async function startIntermediary(lab: Lab, kind: HidingKind, stand: Stand): Promise<string | undefined> {
  const { client, middle, folder } = stand;
  switch (kind) {
    case "direct":
      return undefined;
    case "connect": {
      const file = join(folder, "tinyproxy.conf");
      await writeFile(
        file,
        `Port 1080\nListen ${middle.address}\nTimeout 60\nMaxClients 50\nAllow ${client.address}\n`,
      );
      lab.run(middle.namespace, "tinyproxy", ["-d", "-c", file]);
      return `http://${middle.address}:1080`;
    }
    case "socks":
      lab.run(middle.namespace, "microsocks", ["-i", middle.address, "-p", "1080"]);
      return `socks5://${middle.address}:1080`;
    case "nat":
      lab.call(client.namespace, "ip", ["route", "add", stand.edgeNetwork, "via", middle.address]);
      translateAddresses(lab, stand);
      return undefined;
    case "openvpn":
      translateAddresses(lab, stand);
      await startOpenVpn(lab, stand);
      return undefined;
    case "wireguard":
      translateAddresses(lab, stand);
      await startWireGuard(lab, stand);
      return undefined;
  }
}

/** Has the intermediary forward packets, from its own address. */
function translateAddresses(lab: Lab, { middle }: Stand): void {
  // Containers show /proc/sys as read-only; the command has mounts of its own, and there a /proc of its own is not.
  const file = "/proc/sys/net/ipv4/ip_forward";
  const forward = `[ "$(cat ${file})" = 1 ] || echo 1 2>/dev/null >${file} || { mount -t proc proc /proc && echo 1 >${file}; }`;
  lab.call(middle.namespace, "sh", ["-c", forward]);
  const rule = ["-w", "-t", "nat", "-A", "POSTROUTING", "-o", middle.device, "-j", "MASQUERADE"];
  lab.call(middle.namespace, "iptables", rule);
}

/** OpenVPN 2.6 over UDP with TLS, as its defaults are: AES-256-GCM, and segments clamped by `mssfix`. */
async function startOpenVpn(lab: Lab, { client, middle, edgeNetwork, folder }: Stand): Promise<void> {
  const make = async (name: string) => {
    const [key, cert] = [join(folder, `${name}.key`), join(folder, `${name}.pem`)];
    const request = [
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:prime256v1",
      "-nodes",
      "-days",
      "2",
    ];
    await promisify(execFile)("openssl", [...request, "-subj", `/CN=${name}`, "-keyout", key, "-out", cert]);
    return { key, cert, fingerprint: new X509Certificate(await readFile(cert)).fingerprint256 };
  };
  const [exit, visitor] = await Promise.all([make("exit"), make("visitor")]);
  const common = ["--dev", "tun", "--proto", "udp", "--port", "1194", "--verb", "0"];
  const identity = (own: typeof exit, peer: typeof exit) => [
    ...["--cert", own.cert, "--key", own.key, "--peer-fingerprint", peer.fingerprint],
  ];
  const server = ["--local", middle.address, "--server", "10.77.2.0", "255.255.255.0", "--topology", "subnet"];
  lab.run(middle.namespace, "openvpn", [...common, ...server, "--dh", "none", ...identity(exit, visitor)]);
  const [network = "", bits = "24"] = edgeNetwork.split("/");
  const mask = [24, 16, 8, 0].map((shift) => ((2 ** 32 - 2 ** (32 - Number(bits))) >>> shift) & 255).join(".");
  const route = ["--route", network, mask];
  const retry = ["--connect-retry", "1", "1", "--hand-window", "10"];
  lab.run(client.namespace, "openvpn", [
    ...[...common, "--client", "--nobind", "--remote", middle.address, ...route, ...retry, ...identity(visitor, exit)],
  ]);
}

/** WireGuard in user space, with the 1,420 bytes of its default MTU. */
async function startWireGuard(lab: Lab, { client, middle, edgeNetwork, folder }: Stand): Promise<void> {
  const make = async (name: string) => {
    const file = join(folder, `${name}.key`);
    const script = 'umask 077; wg genkey > "$0"; wg pubkey < "$0"';
    const { stdout } = await promisify(execFile)("sh", ["-c", script, file]);
    return { file, publicKey: stdout.trim() };
  };
  const [exit, visitor] = await Promise.all([make("exit"), make("visitor")]);
  // `ip netns exec` gives each command mounts of its own: the control socket, which is named like the device, is seen by
  // nobody else, and goes with the process.
  const script = [
    "mkdir -p /var/run/wireguard && mount -t tmpfs tmpfs /var/run/wireguard || exit 1",
    "address=$1; route=$2; shift 2",
    "wireguard-go -f wg0 & device=$!",
    'tries=0; until wg set wg0 "$@"; do tries=$((tries + 1)); [ $tries -lt 200 ] || exit 1; sleep 0.05; done',
    "ip address add $address dev wg0 && ip link set wg0 up || exit 1",
    '[ -z "$route" ] || ip route add $route dev wg0 || exit 1',
    "wait $device",
  ].join("\n");
  const start = (namespace: string, address: string, route: string, settings: readonly string[]) =>
    lab.run(namespace, "sh", ["-c", script, "wireguard", address, route, ...settings]);
  start(middle.namespace, "10.77.2.1/24", "", [
    ...["private-key", exit.file, "listen-port", "51820"],
    ...["peer", visitor.publicKey, "allowed-ips", "10.77.2.2/32"],
  ]);
  start(client.namespace, "10.77.2.2/24", edgeNetwork, [
    ...["private-key", visitor.file, "peer", exit.publicKey],
    ...["endpoint", `${middle.address}:51820`, "allowed-ips", "0.0.0.0/0"],
  ]);
}
