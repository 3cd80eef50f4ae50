// Vercel's AI SDK with its OpenAI provider, through `/v1/responses` as it does by itself.
import { load } from "./protocol.mjs";
import { serveWith } from "./vercel.mjs";

const { createOpenAI } = load("@ai-sdk/openai");

await serveWith((asked) => createOpenAI({ baseURL: `${asked.url}/v1`, apiKey: asked.key })(asked.model), {});
