import { EventSourceParserStream } from 'eventsource-parser/stream';
import createClient from 'openapi-fetch';
import type { components, paths } from './generated.js';

type Schemas = components['schemas'];
const [baseUrl, message = ''] = process.argv.slice(2);
const stop = new AbortController();
process.once('SIGINT', () => stop.abort()); // closing the connection stops the model

function fail({ code, detail, correlation_id }: Schemas['ErrorResponse']): never {
  console.error(`${code}: ${detail} [${correlation_id}]`);
  process.exit(1);
}

try {
  const { data, error } = await createClient<paths>({ baseUrl }).POST('/chat', {
    body: { message },
    parseAs: 'stream',
    signal: stop.signal,
  });
  if (error) fail(error);
  let reason = 'the connection broke off';
  for await (const event of data!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())) {
    const chunk: Schemas['StreamChunk'] = JSON.parse(event.data);
    switch (chunk.type) {
      case 'start': console.error(`[${chunk.model}, ${chunk.correlation_id}]`); break;
      case 'reasoning': break; // comes only to requests with `include_reasoning`
      case 'text': process.stdout.write(chunk.text); break;
      case 'done': reason = chunk.finish_reason; break;
      case 'error': fail(chunk.error);
      default: chunk satisfies never;
    }
  }
  if (reason !== 'stop') throw new Error(`The answer is incomplete: ${reason}.`);
} catch (error) {
  if (!stop.signal.aborted) throw error;
  process.exitCode = 130;
}
