// Makes the table of hosting networks and of carriers that split connections: `.cache/hosting-networks.bin`, which the
// verdict service reads (services/verdict/inference/network-classes.ts says its form). From the development dependency
// @ip-location-db/asn (RouteViews, NRO and DB-IP, each CC BY 4.0) and the rules below; nothing is fetched. Run by itself,
// or from another program through `hostingNetworks()`, which does nothing where the table is already of these inputs.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const source = join(root, "node_modules/@ip-location-db/asn");
const table = join(root, ".cache/hosting-networks.bin");
const stamp = `${table}.sha256`;
const magic = "octomesh networks 1\n";
const HOSTING = 0;
const SPLITTING = 1;

/** Words of names by which operators call themselves hosters, and those of others who use the same words. */
const hostingName =
  /\b(web ?)?hosting\b|\bhosts?\b|\bhosters?\b|\w*host(ing)?\b(?=[.,]| (llc|inc|ltd|limited|gmbh|bv|b\.v|srl|s\.r\.l|sa|ab|ou|international))|\bvps\b|\bvpn\b|\bidc\b|data ?-?cent(er|re)s?\b|\bcolo\b|\bcolocation\b|\bdedicated\b|\bservers?\b|\w+ ?cloud\b|\bcloud ?(flare|ferro|sigma|south|ie)?\b|rackspace|leaseweb/i;
const notHosting =
  /universit|college|school|hospital|clinic|government|ministr|municip|\bstate of\b|county|federal|\bbank\b|insurance|church|mobil|wireless|wi-?fi|the cloud networks|afrihost|cable|fib(er|re)|broadband|internet service provider|public library/i;

/**
 * Hosting, VPN and relay operators whose names say none of it, by AS number: the clouds and hosters with the most
 * addresses, known exits of VPN firms, and gateways through which companies' browsers go.
 */
// biome-ignore format: a table
const hostingNumbers = new Map([
  [16509, "Amazon"], [14618, "Amazon"], [8075, "Microsoft"], [15169, "Google"], [396982, "Google Cloud"], [31898, "Oracle"],
  [24940, "Hetzner"], [212317, "Hetzner"], [213230, "Hetzner"], [215859, "Hetzner"], [16276, "OVH"], [35540, "OVH"],
  [14061, "DigitalOcean"], [393406, "DigitalOcean"], [46652, "DigitalOcean"], [63949, "Akamai (Linode)"], [20473, "Vultr"],
  [20940, "Akamai"], [16625, "Akamai"], [36183, "Akamai"], [213120, "Akamai"], [54113, "Fastly"],
  [13335, "Cloudflare"], [209242, "Cloudflare"], [132892, "Cloudflare"], [202623, "Cloudflare"], [14789, "Cloudflare"],
  [12876, "Scaleway"], [29447, "Scaleway"], [54265, "Scaleway"], [51167, "Contabo"], [40021, "Contabo"], [141995, "Contabo"],
  [197540, "netcup"], [214996, "netcup"], [8560, "IONOS"], [26496, "GoDaddy"], [398101, "GoDaddy"], [22612, "Namecheap"],
  [46606, "Unified Layer"], [31034, "Aruba"], [45102, "Alibaba"], [37963, "Alibaba"], [132203, "Tencent"], [45090, "Tencent"],
  [9009, "M247"], [16247, "M247"], [42973, "M247"], [212238, "Datacamp"], [60068, "Datacamp"], [39351, "31173 (Mullvad)"],
  [136787, "PacketHub"], [147049, "PacketHub"], [207137, "PacketHub"], [141039, "PacketHub"], [272096, "PacketHub"],
  [62371, "Proton"], [208172, "Proton"], [209103, "Proton"], [137409, "GSL"], [53667, "FranTech"], [8100, "QuadraNet"],
  [46562, "Performive"], [46844, "Sharktech"], [29802, "Hivelocity"], [61317, "Hivelocity"], [32097, "WholeSale Internet"],
  [33387, "Nocix"], [23470, "ReliableSite"], [40676, "Psychz"], [35916, "Multacom"], [46475, "Limestone"], [11878, "tzulo"],
  [22363, "Powerhouse"], [25820, "IT7"], [62240, "Clouvider"], [25369, "Hydra"], [49981, "WorldStream"], [8315, "WorldStream"],
  [43350, "NForce"], [49453, "Global Layer"], [50304, "Blix"], [42708, "GleSYS"], [29066, "velia.net"], [30083, "velia.net"],
  [24961, "WIIT"], [199524, "G-Core"], [202422, "G-Core"], [21859, "Zenlayer"], [62610, "Zenlayer"], [3223, "Voxility"],
  [51852, "Private Layer"], [200651, "FlokiNET"], [202425, "IP Volume"], [206092, "F.N.S."], [55286, "B2 Net"],
  [49505, "Selectel"], [50340, "Selectel"], [9123, "Timeweb"], [210976, "Timeweb"], [198610, "Beget"], [197695, "REG.RU"],
  [210644, "Aeza"], [216246, "Aeza"], [9370, "SAKURA"], [7506, "GMO"], [9312, "xTom"], [203476, "Gandi"], [54825, "Packet"],
  [22616, "Zscaler"], [53813, "Zscaler"], [62044, "Zscaler"], [55256, "Netskope"], [13150, "Cato"],
]);

/**
 * Networks that end and renew TCP connections themselves: satellite operators with performance-enhancing proxies
 * (RFC 3135), and the mobile carriers in which transparent web proxies were found (Xu et al., PAM 2015: all four of the
 * USA, by 2015's names; it was shown for HTTP, and is taken to hold for what else they carry). Starlink is not among them.
 */
const splittingName =
  /^(viasat|hughes (network|communications|telecom|de colombia)|hughes de colombia|inmarsat|intelsat|speedcast|marlink|iridium (service|satellite)|avanti (broadband|communications)|skylogic|eutelsat|konnect (data|com)|kacific|telesat (network|international|servicos)|globecomm|panasonic avionics|gogo business|anuvu|ses (astra|services)|new skies satellites|applied satellite technology|kvh industries|nigerian communications satellite|pt\.? (pasifik satelit|telkom satelit))/i;
const splittingNumbers = new Set([20057, 21928, 22394, 6167]);

/** Class of an AS; undefined for most. */
export function classOf(number, name) {
  if (splittingNumbers.has(number) || splittingName.test(name)) return SPLITTING;
  if (hostingNumbers.has(number)) return HOSTING;
  return hostingName.test(name) && !notHosting.test(name) ? HOSTING : undefined;
}

/** Makes the table if needed, and returns whether it was. Throws where the package is missing or its rows are of another form. */
export function hostingNetworks() {
  const digest = createHash("sha256")
    .update(readFileSync(fileURLToPath(import.meta.url)))
    .update(readFileSync(join(source, "package.json")))
    .digest("hex");
  if (existsSync(table) && existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return false;
  const four = rangesOf("asn-ipv4-num.csv", (text) => Number(text));
  // Providers hand out /64 and larger: the lower halves do not tell networks apart.
  const six = rangesOf("asn-ipv6-num.csv", (text) => BigInt(text) >> 64n);
  const head = Buffer.alloc(magic.length + 8);
  head.write(magic, "latin1");
  head.writeUInt32BE(four.length, magic.length);
  head.writeUInt32BE(six.length, magic.length + 4);
  const body = Buffer.alloc(9 * four.length + 17 * six.length);
  let at = 0;
  for (const [first, last, which] of four) {
    at = body.writeUInt32BE(first, at);
    at = body.writeUInt32BE(last, at);
    at = body.writeUInt8(which, at);
  }
  for (const [first, last, which] of six) {
    at = body.writeBigUInt64BE(first, at);
    at = body.writeBigUInt64BE(last, at);
    at = body.writeUInt8(which, at);
  }
  mkdirSync(dirname(table), { recursive: true });
  // Readers see the old table or the new one, never a half.
  writeFileSync(`${table}.${process.pid}`, Buffer.concat([head, body]));
  renameSync(`${table}.${process.pid}`, table);
  writeFileSync(stamp, digest);
  return true;
}

/** The classed ranges of a file in rising order, neighbours of one class joined. */
function rangesOf(file, read) {
  const ranges = [];
  const classes = new Map();
  for (const line of readFileSync(join(source, file), "utf8").split("\n")) {
    if (line === "") continue;
    const row = /^(\d+),(\d+),(\d+),(.*)$/.exec(line);
    if (row === null) throw new Error(`${file}: not a row of first, last, number and name: ${line.slice(0, 80)}`);
    const [, first, last, number, name] = row;
    const key = `${number},${name}`;
    if (!classes.has(key)) classes.set(key, classOf(Number(number), name.replace(/^"|"$/g, "").replaceAll('""', '"')));
    const which = classes.get(key);
    if (which === undefined) continue;
    const [begin, end] = [read(first), read(last)];
    const before = ranges.at(-1);
    if (before !== undefined && begin <= before[1]) {
      // Of two networks in one /64 the first is taken.
      if (end > before[1] && before[2] === which) before[1] = end;
      continue;
    }
    const follows =
      before !== undefined && before[2] === which && (typeof begin === "bigint" ? begin - 1n : begin - 1) === before[1];
    if (follows) before[1] = end;
    else ranges.push([begin, end, which]);
  }
  return ranges;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.stdout.write(
    hostingNetworks() ? "wrote .cache/hosting-networks.bin\n" : ".cache/hosting-networks.bin is up to date\n",
  );
}
