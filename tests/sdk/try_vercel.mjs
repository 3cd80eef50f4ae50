// Vercel's AI SDK with its OpenAI-compatible provider.
import { BEGINNING, WORDS, load, vectors } from "./protocol.mjs";
import { serveWith } from "./vercel.mjs";

const { createOpenAICompatible } = load("@ai-sdk/openai-compatible");
const { embedMany, generateText } = load("ai");

const provider = (asked) =>
  createOpenAICompatible({
    name: "slotd",
    baseURL: `${asked.url}/v1`,
    apiKey: asked.key,
    supportsStructuredOutputs: true,
  });

async function complete(asked) {
  const model = provider(asked).completionModel(asked.model);
  return (await generateText({ model, prompt: BEGINNING, maxOutputTokens: asked.max_tokens })).text;
}

async function embed(asked) {
  const model = provider(asked).embeddingModel(asked.model);
  return vectors((await embedMany({ model, values: WORDS })).embeddings);
}

await serveWith((asked) => provider(asked)(asked.model), { complete, embed });
