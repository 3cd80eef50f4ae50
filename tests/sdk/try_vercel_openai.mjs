// Vercel's AI SDK with its OpenAI provider, through `/v1/responses` as it does by itself.
import { readFile } from "node:fs/promises";

import { QUESTION, WORDS, load, sound, vectors } from "./protocol.mjs";
import { serveWith } from "./vercel.mjs";

const { createOpenAI } = load("@ai-sdk/openai");
const { embedMany, experimental_generateSpeech, experimental_transcribe } = load("ai");

const provider = (asked) => createOpenAI({ baseURL: `${asked.url}/v1`, apiKey: asked.key });

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

await serveWith((asked) => provider(asked)(asked.model), { embed, transcribe, speak });
