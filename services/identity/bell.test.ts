import { expect, it } from "vitest";
import { createBell } from "./bell.ts";

const long = 600_000;
const never = new AbortController().signal;

it("ends the pause that is under way", async () => {
  const bell = createBell();
  const pause = bell.pause(long, never);
  bell.ring();
  await pause;
});

it("remembers one ring while nobody waits, and no more", async () => {
  const bell = createBell();
  bell.ring();
  bell.ring();
  await bell.pause(long, never);
  let isOver = false;
  const second = bell.pause(long, never).then(() => {
    isOver = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(isOver).toBe(false);
  bell.ring();
  await second;
});

it("ends with its time, and with its signal", async () => {
  const bell = createBell();
  await bell.pause(1, never);
  const controller = new AbortController();
  const pause = bell.pause(long, controller.signal);
  controller.abort();
  await pause;
  await bell.pause(long, controller.signal);
});
