import { defineConfig } from "vitest/config";

export default defineConfig({
  // The SDK's source, not its bundle, wherever a test imports it by name. "import" must not be among them: the workers
  // would hand it to require() too, and pg would be given an ES module.
  ssr: { resolve: { conditions: ["octomesh-source", "node"] } },
  test: {
    include: ["{mesh,services,sdk,cli,launcher,test,tools}/**/*.test.ts"],
    exclude: ["**/node_modules/**", "**/dist/**"],
    testTimeout: 30_000,
    hookTimeout: 120_000,
    globalSetup: ["mesh/test/global-setup.ts"],
    pool: "forks",
    maxWorkers: 2,
  },
});
