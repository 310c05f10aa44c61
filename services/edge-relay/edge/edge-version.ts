/** Version of the edge, which its health answer and every bundle carry. */
export const edgeVersion = "0.1.0";
