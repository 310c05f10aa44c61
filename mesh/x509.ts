/**
 * X.509 as @peculiar/x509 knows it, loaded in the order that it demands. Import it from here, never from the package.
 */
import "reflect-metadata";

export * from "@peculiar/x509";
