// What both providers of Vercel's AI SDK share: `serveWith` takes what makes a model, and more calls.
import { PARAMETERS, QUESTION, SCHEMA_QUESTION, TOOL, TOOL_QUESTION, load, serve } from "./protocol.mjs";

const { generateText, generateObject, jsonSchema, streamText, tool } = load("ai");

export async function serveWith(model, more) {
  const settings = (asked, prompt, more = {}) => ({
    model: model(asked),
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
    ...more,
  });
}
