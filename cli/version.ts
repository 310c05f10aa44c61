/** Version of the command, as in its package. */
export const cliVersion = "0.1.0";
