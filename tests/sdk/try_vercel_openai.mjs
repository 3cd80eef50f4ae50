// Vercel's AI SDK with its OpenAI provider, its models of chats.
import { readFile } from "node:fs/promises";

import { BEGINNING, QUESTION, WORDS, load, sound, vectors } from "./protocol.mjs";
import { serveWith } from "./vercel.mjs";

const { createOpenAI } = load("@ai-sdk/openai");
const { embedMany, experimental_generateSpeech, experimental_transcribe, generateText } = load("ai");

const provider = (asked) => createOpenAI({ baseURL: `${asked.url}/v1`, apiKey: asked.key });

async function complete(asked) {
  const model = provider(asked).completion(asked.model);
  return (await generateText({ model, prompt: BEGINNING, maxOutputTokens: asked.max_tokens })).text;
}

async function embed(asked) {
  const model = provider(asked).embedding(asked.model);
  return vectors((await embedMany({ model, values: WORDS })).embeddings);
}

async function transcribe(asked) {
  const model = provider(asked).transcription(asked.model);
  return (await experimental_transcribe({ model, audio: await readFile(asked.sound) })).text;
}

async function speak(asked) {
  const model = provider(asked).speech(asked.model);
  const settings = { model, text: QUESTION, voice: "alloy", outputFormat: "wav" };
  return sound((await experimental_generateSpeech(settings)).audio.uint8Array);
}

await serveWith((asked) => provider(asked).chat(asked.model), { complete, embed, transcribe, speak });
