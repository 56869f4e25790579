import { EventSourceParserStream } from 'eventsource-parser/stream';
import { getStreamChatUrl, type ChatRequest, type ErrorResponse, type StreamChunk } from './generated.js';

const [baseUrl = 'http://localhost:8000', message = ''] = process.argv.slice(2);
const stop = new AbortController();
process.once('SIGINT', () => stop.abort()); // closing the connection stops the model

function fail({ code, detail, correlation_id }: ErrorResponse): never {
  console.error(`${code}: ${detail} [${correlation_id}]`);
  process.exit(1);
}

try {
  // Not orval's `streamChat`: it reads the whole stream as one text.
  const response = await fetch(baseUrl + getStreamChatUrl(), {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ message } satisfies ChatRequest),
    signal: stop.signal,
  });
  if (!response.ok || !response.body) fail(await response.json());
  let reason = 'the connection broke off';
  for await (const { data } of response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())) {
    const chunk: StreamChunk = JSON.parse(data);
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
