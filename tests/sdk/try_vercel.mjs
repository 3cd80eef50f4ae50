// Vercel's AI SDK with its OpenAI-compatible provider.
import { PARAMETERS, QUESTION, SCHEMA_QUESTION, TOOL, TOOL_QUESTION, load, serve } from "./protocol.mjs";

const { generateText, generateObject, jsonSchema, streamText, tool } = load("ai");
const { createOpenAICompatible } = load("@ai-sdk/openai-compatible");

const settings = (asked, prompt, more = {}) => ({
  model: createOpenAICompatible({
    name: "slotd",
    baseURL: `${asked.url}/v1`,
    apiKey: asked.key,
    supportsStructuredOutputs: true,
  })(asked.model),
  prompt,
  maxOutputTokens: asked.max_tokens,
  ...more,
});

// The text alone would end as if it were whole: errors are parts of the full stream.
async function* stream(asked) {
  const leaving = new AbortController();
  try {
    const { fullStream } = streamText(settings(asked, QUESTION, { onError: () => {}, abortSignal: leaving.signal }));
    for await (const part of fullStream) {
      if (part.type === "error") throw part.error;
      if (part.type === "text-delta") yield part.text;
    }
  } finally {
    leaving.abort();
  }
}

async function tools(asked) {
  const weather = tool({ description: "The weather of a city.", inputSchema: jsonSchema(PARAMETERS) });
  const more = { tools: { [TOOL]: weather }, toolChoice: "required" };
  const { toolCalls } = await generateText(settings(asked, TOOL_QUESTION, more));
  return `${toolCalls[0].toolName} ${JSON.stringify(toolCalls[0].input)}`;
}

async function schema(asked) {
  const more = { schema: jsonSchema(PARAMETERS), schemaName: "place" };
  return JSON.stringify((await generateObject(settings(asked, SCHEMA_QUESTION, more))).object);
}

await serve({
  plain: async (asked) => (await generateText(settings(asked, QUESTION))).text,
  stream,
  tools,
  schema,
});
