import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { describe, expect, test } from "vitest";
import { readLicenseNames, readNames } from "./resource-names.ts";

function mesh(options: { refuse?: boolean } = {}) {
  const asked: string[] = [];
  const transport = createRouterTransport(({ service }) => {
    service(ModelService, {
      listModels({ pageToken }) {
        asked.push(`models ${pageToken}`);
        if (options.refuse === true) throw new ConnectError("no", Code.PermissionDenied);
        return pageToken === ""
          ? { models: [{ id: "mdl_a", name: "vad" }], nextPageToken: "2" }
          : { models: [{ id: "mdl_b", name: "asr" }], nextPageToken: "" };
      },
    });
    service(ModelVersionService, {
      listModelVersions({ modelId }) {
        asked.push(`versions ${modelId}`);
        if (modelId !== "mdl_a") throw new ConnectError("no such model", Code.NotFound);
        return { modelVersions: [{ id: "mvr_1", version: "1.0.0" }], nextPageToken: "" };
      },
    });
  });
  const clients = {
    models: createClient(ModelService, transport),
    modelVersions: createClient(ModelVersionService, transport),
  };
  return { asked, clients };
}

describe("readNames", () => {
  test("reads each list once, and no further than needed", async () => {
    const { asked, clients } = mesh();
    const items = Array.from({ length: 50 }, () => ({ modelId: "mdl_a", versionId: "mvr_1" }));
    const names = await readNames(clients, items);
    expect([names.model("mdl_a"), names.version("mvr_1")]).toEqual(["vad", "1.0.0"]);
    expect(asked).toEqual(["models ", "versions mdl_a"]);
  });

  test("asks for nothing where there is nothing to name", async () => {
    const { asked, clients } = mesh();
    await readNames(clients, [{ modelId: "", versionId: "" }]);
    expect(asked).toEqual([]);
  });

  test("follows pages, and leaves the id of what it does not find", async () => {
    const { asked, clients } = mesh();
    const names = await readNames(clients, [{ modelId: "mdl_b", versionId: "mvr_9" }, { modelId: "mdl_c" }]);
    expect([names.model("mdl_b"), names.model("mdl_c"), names.version("mvr_9")]).toEqual(["asr", "mdl_c", "mvr_9"]);
    expect(asked).toEqual(["models ", "models 2", "versions mdl_b"]);
  });

  test("leaves the ids where models may not be read", async () => {
    const { clients } = mesh({ refuse: true });
    const names = await readNames(clients, [{ modelId: "mdl_a", versionId: "mvr_1" }]);
    expect([names.model("mdl_a"), names.version("mvr_1")]).toEqual(["mdl_a", "1.0.0"]);
  });
});

describe("readLicenseNames", () => {
  const clientsOf = (refuse: boolean, asked: string[] = []) => ({
    edgeCredentials: createClient(
      EdgeCredentialService,
      createRouterTransport(({ service }) => {
        service(EdgeCredentialService, {
          listLicenseKeys({ pageToken }) {
            asked.push(pageToken);
            if (refuse) throw new ConnectError("no", Code.PermissionDenied);
            return pageToken === ""
              ? { licenseKeys: [{ id: "lic_a", name: "Frankfurt" }], nextPageToken: "2" }
              : { licenseKeys: [{ id: "lic_b", name: "Paris" }], nextPageToken: "" };
          },
        });
      }),
    ),
  });

  test("reads no further than needed, and nothing where there is nothing to name", async () => {
    const asked: string[] = [];
    const nameOf = await readLicenseNames(clientsOf(false, asked), ["lic_a", "lic_a"]);
    expect([nameOf("lic_a"), nameOf("lic_b")]).toEqual(["Frankfurt", "lic_b"]);
    await readLicenseNames(clientsOf(false, asked), []);
    expect(asked).toEqual([""]);
  });

  test("follows pages, and leaves the ids where licences may not be read", async () => {
    const [named, refused] = [
      await readLicenseNames(clientsOf(false), ["lic_b", "lic_c"]),
      await readLicenseNames(clientsOf(true), ["lic_a"]),
    ];
    expect([named("lic_b"), named("lic_c"), refused("lic_a")]).toEqual(["Paris", "lic_c", "lic_a"]);
  });
});
