import { expect, it } from "vitest";
import { createDefinitionWatchers } from "./definition-watchers.ts";

it("has told everybody when there is nobody to tell", () => {
  expect(createDefinitionWatchers({ now: () => 0 }).allTold("rol_a", 1n)).toBe(true);
});

it("waits for each watch to take the rollout at its revision", () => {
  const watchers = createDefinitionWatchers({ now: () => 0 });
  const one = watchers.begin();
  const two = watchers.begin();
  one.told("rol_a", 2n);
  expect(watchers.allTold("rol_a", 2n)).toBe(false);
  two.told("rol_a", 1n);
  expect(watchers.allTold("rol_a", 2n)).toBe(false);
  two.told("rol_a", 3n);
  expect(watchers.allTold("rol_a", 2n)).toBe(true);
});

it("takes a watch that has had nothing to send for a second to have been told, and one that is sending not", () => {
  let nowMs = 0;
  const watchers = createDefinitionWatchers({ now: () => nowMs });
  const watch = watchers.begin();
  nowMs = 999;
  expect(watchers.allTold("rol_a", 1n)).toBe(false);
  nowMs = 1000;
  expect(watchers.allTold("rol_a", 1n)).toBe(true);
  watch.busy();
  nowMs = 9000;
  expect(watchers.allTold("rol_a", 1n)).toBe(false);
  watch.idle();
  expect(watchers.allTold("rol_a", 1n)).toBe(false);
  watch.end();
  expect(watchers.allTold("rol_a", 1n)).toBe(true);
});
